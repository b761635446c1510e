from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("lm_eval", reason="lm-evaluation-harness is an extra: pip install 'spq-graph[eval]'")

from spq_graph.runtime.harness import loading
from spq_graph.runtime.harness.loading import load_tasks
from spq_graph.terms.errors import DataError, UsageError
from tests.support.harness_tasks import CHOICES, WRITTEN, write_rows, write_task
from tests.support.hub_sets import write_set

ROWS = [{"query": "w1", "context": "w1", "continuation": "w2", "choices": ["w2", "w3"], "gold": 0}] * 3


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", ROWS)


def test_task_files_and_how_they_are_asked(tmp_path: Path, rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = write_task(tmp_path / "one.yaml", rows, CHOICES), write_task(tmp_path / "other.yml", rows, WRITTEN)
    found = load_tasks([str(one)])
    assert list(found["tasks"]) == ["one"]
    assert list(load_tasks([str(one), str(other)])["tasks"]) == ["one", "other"]
    assert capsys.readouterr() == ("", "")


def test_a_file_of_a_folder_of_thousands_is_not_looked_for_among_them(
    tmp_path: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval.tasks import _index

    looked: list[Path] = []
    monkeypatch.setattr(
        _index.TaskIndex, "_iter_yaml_files", staticmethod(lambda root: looked.append(root) or iter(()))
    )
    load_tasks([str(write_task(tmp_path / "one.yaml", rows, CHOICES))])
    assert looked == []


def test_a_group_in_a_file_is_made_of_tasks_beside_it(tmp_path: Path, rows: Path) -> None:
    for name in ("one", "other"):
        write_task(tmp_path / f"{name}.yaml", rows, CHOICES)
    (tmp_path / "both.yaml").write_text(
        "group: both\ntask: [one, other]\naggregate_metric_list:\n  - {metric: acc, weight_by_size: true}\n"
    )
    found = load_tasks([str(tmp_path / "both.yaml")])
    assert list(found["groups"]) == ["both"]
    assert sorted(found["tasks"]) == ["one", "other"]


@pytest.fixture
def arc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ARC easy as the Hub has it, in the cache of `datasets`, and no network."""
    row = {
        "id": "1",
        "question": "Which?",
        "choices": {"text": ["this", "that"], "label": ["A", "B"]},
        "answerKey": "B",
    }
    splits = dict.fromkeys(("train", "validation", "test"), [row] * 2)
    write_set(monkeypatch, tmp_path, "allenai/ai2_arc", splits, "ARC-Easy")
    monkeypatch.setattr(loading, "why_unreachable", lambda: "no network")


@pytest.mark.usefixtures("arc")
def test_a_task_by_name_with_data_from_the_cache() -> None:
    found = load_tasks(["arc_eas[xy]"])
    assert list(found["tasks"]) == ["arc_easy"]
    assert len(list(found["tasks"]["arc_easy"].test_docs())) == 2


@pytest.mark.usefixtures("arc")
def test_another_configuration_is_not_in_the_cache() -> None:
    with pytest.raises(
        DataError, match="allenai/ai2_arc is not in the cache of `datasets`, and the Hub cannot be reached: no network"
    ):
        load_tasks(["arc_challenge"])


def test_where_the_hub_answers_it_is_asked(tmp_path: Path, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    build, offline = loading._build, []

    def built(manager: Any, spec: str) -> list[Any]:
        offline.append(datasets.config.HF_HUB_OFFLINE)
        if len(offline) == 1:
            raise ConnectionError("Couldn't reach 'org/name' on the Hub")
        return build(manager, spec)

    monkeypatch.setattr(loading, "_build", built)
    monkeypatch.setattr(loading, "why_unreachable", lambda: None)
    assert list(load_tasks([str(write_task(tmp_path / "one.yaml", rows, CHOICES))])["tasks"]) == ["one"]
    assert offline == [True, False]


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"no task 'hellaswg': did you mean hellaswag"):
        load_tasks(["hellaswg"])
    with pytest.raises(UsageError, match=r"no task 'zzz_\*'\n"):
        load_tasks(["zzz_*"])

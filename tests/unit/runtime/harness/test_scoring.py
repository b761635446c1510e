"""The harness on a whole, through the verb: its figures beside those of our own reader of the same rows."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("lm_eval", reason="lm-evaluation-harness is an extra: pip install 'spq-graph[eval]'")

from spq_graph import evaluate
from spq_graph.runtime.harness import adapter
from spq_graph.runtime.sessions.session import Runner
from spq_graph.runtime.text.tokenizer import TextTokenizer
from spq_graph.workbench.opening import Opening
from spq_graph.workbench.steps import Steps
from tests.conftest import ROOT, write_tokenizer
from tests.support.command import done, spq
from tests.support.decoders import write_decoder
from tests.support.harness_tasks import CHOICES, GREEDY, ROLLING, WRITTEN, write_rows, write_task


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_tokenizer(folder)
    return write_decoder(folder / "model.onnx", layers=2, cache=True, positions=True)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Rows of choices, and rows to be continued, half of which the model's own likeliest word continues."""
    random, folder = np.random.default_rng(3), tmp_path_factory.mktemp("rows")

    def words(count: int) -> str:
        return " ".join(f"w{n}" for n in random.integers(0, 60, count))

    choices = [
        {"query": words(int(n)), "choices": [words(int(m)) for m in random.integers(1, 4, 3)], "gold": int(n) % 3}
        for n in random.integers(1, 12, 40)
    ]
    greedy = [{"context": words(int(n)), "continuation": words(1)} for n in random.integers(2, 12, 30)]
    return write_rows(folder / "choices.jsonl", choices), write_rows(folder / "greedy.jsonl", greedy)


def test_figures_are_those_of_our_reader_of_the_same_rows(model: Path, rows: tuple[Path, Path], tmp_path: Path) -> None:
    tasks = [
        write_task(tmp_path / f"{kind}.yaml", file, form)
        for kind, file, form in (("theirs", rows[0], CHOICES), ("met", rows[1], GREEDY))
    ]
    result = done("eval", model, "--tasks", ",".join(map(str, tasks)), "--tasks", rows[0], "--tasks", rows[1], "--json")
    found = result.json["tasks"]
    for its, ours in (("theirs", "choices"), ("met", "greedy")):
        for name, value in found[ours].items():
            assert found[its][name] == pytest.approx(value, rel=1e-9), name
    assert 0 < found["theirs"]["accuracy"] < 1
    assert found["theirs"]["accuracy"] != found["theirs"]["accuracy_normalized"]
    n, share = 40, found["theirs"]["accuracy"]
    assert found["theirs"]["accuracy_stderr"] == pytest.approx((share * (1 - share) / (n - 1)) ** 0.5)
    assert found["theirs"]["metrics"]["acc,none"] == share
    assert found["met"]["metrics"]["perplexity_stderr,none"] > 0
    assert found["theirs"]["num_fewshot"] == 0
    assert "it/s" not in result.err
    assert "Scoring theirs, met" in result.err


def test_the_task_files_of_the_documentation_read_our_forms(
    model: Path, rows: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(4)
    asked = [json.loads(line) for line in rows[0].read_text().splitlines()]
    for row in asked[::2]:
        row["query"] = f"Question: {row['query']}\n"
    either = [
        {"context_options": row["choices"][:2], "continuation": f"w{random.integers(60)} w9", "gold": row["gold"] % 2}
        for row in asked
    ]
    write_rows(tmp_path / "choices.jsonl", asked)
    write_rows(tmp_path / "contexts.jsonl", either)
    (tmp_path / "continuations.jsonl").write_bytes(rows[1].read_bytes())
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    for text in re.findall(r"```yaml\n(.*?)```", page, flags=re.DOTALL):
        (name,) = re.findall("^task: my_(.*)$", text, flags=re.MULTILINE)
        Path("my.yaml").write_text(text, encoding="utf-8")
        found = evaluate(model, tasks=["my.yaml", f"{name}.jsonl"]).tasks
        assert found[f"my_{name}"].accuracy == found[name].accuracy, name
        assert found[f"my_{name}"].accuracy_stderr == pytest.approx(found[name].accuracy_stderr)
        if name == "choices":
            assert found[f"my_{name}"].accuracy_normalized == found[name].accuracy_normalized
        assert found[name].n in (30, 40)


def test_a_model_writes_and_a_text_is_scored_whole(model: Path, rows: tuple[Path, Path], tmp_path: Path) -> None:
    kinds = (("written", WRITTEN), ("whole", ROLLING))
    tasks = [write_task(tmp_path / f"{name}.yaml", rows[1], form) for name, form in kinds]
    found = evaluate(model, tasks=tasks, limit=5)
    assert (found.tasks["written"].n, found.tasks["whole"].n) == (5, 5)
    assert found.tasks["written"].accuracy is not None
    assert found.tasks["whole"].accuracy is None
    assert found.tasks["whole"].metrics["word_perplexity,none"] > 1
    said = done("eval", model, "--tasks", tasks[1], "--limit", 5).out
    assert (
        said.strip() == f"whole: word_perplexity,none {found.tasks['whole'].metrics['word_perplexity,none']:.6g} of 5"
    )


def test_solved_examples_before_a_question(model: Path, rows: tuple[Path, Path], tmp_path: Path) -> None:
    task = write_task(tmp_path / "few.yaml", rows[0], CHOICES, "fewshot_split: test\n")
    seen = {}
    for shots in (0, 2):
        found = evaluate(model, tasks=[task], num_fewshot=shots).tasks["few"]
        assert found.num_fewshot == shots
        seen[shots] = (found.accuracy, found.accuracy_normalized)
    assert evaluate(model, tasks=[task], num_fewshot=2).tasks["few"].accuracy == seen[2][0]
    assert seen[0] != seen[2]
    remarks: list[str] = []
    none = write_task(tmp_path / "none.yaml", rows[0], CHOICES, "num_fewshot: 0\n")
    assert (
        evaluate(model, tasks=[none], num_fewshot=2, steps=Steps(remark=remarks.append)).tasks["none"].num_fewshot == 0
    )
    assert remarks == ["none takes no solved examples before a question: --num-fewshot is not used"]
    assert (
        "--num-fewshot: not used with tasks in jsonl" in done("eval", model, "--tasks", rows[0], "--num-fewshot", 1).err
    )


def test_a_group_has_a_figure_of_its_own(model: Path, rows: tuple[Path, Path], tmp_path: Path) -> None:
    for name in ("one", "other"):
        write_task(tmp_path / f"{name}.yaml", rows[0], CHOICES)
    (tmp_path / "both.yaml").write_text(
        "group: both\ntask: [one, other]\naggregate_metric_list:\n  - {metric: acc, weight_by_size: true}\n"
    )
    found = evaluate(model, tasks=[tmp_path / "both.yaml"]).tasks
    assert found["both"].accuracy == found["one"].accuracy == found["other"].accuracy
    assert (found["both"].n, found["one"].n) == (80, 40)


def test_an_out_folder_and_a_window(model: Path, rows: tuple[Path, Path], tmp_path: Path) -> None:
    """On what was quantized as on its source; texts too long for the window are counted."""
    words = tmp_path / "words.txt"
    words.write_text(" ".join(f"w{n % 60}" for n in range(900)))
    out = tmp_path / "out"
    done("quantize", model, "-o", out, "--calibration", words, "--no-eval", "--spike-ratio", 5, "--window", 64)
    task, remarks = write_task(tmp_path / "theirs.yaml", rows[0], CHOICES), []
    quantized = evaluate(Opening(out, tokenizer=model.parent), tasks=[task]).tasks["theirs"]
    assert quantized.accuracy == pytest.approx(evaluate(model, tasks=[task]).tasks["theirs"].accuracy, abs=0.2)
    evaluate(Opening(model, window=8), tasks=[task], steps=Steps(remark=remarks.append))
    assert "texts were longer than the model takes, and lost their beginning" in remarks[-1]


def test_names_between_commas_and_files_are_told_apart(model: Path, rows: tuple[Path, Path], tmp_path: Path) -> None:
    task = write_task(tmp_path / "a.yaml", rows[0], CHOICES)
    given = f"{task}, {rows[0]}"
    assert set(json.loads(done("eval", model, "--tasks", given, "--limit", 2, "--json").out)["tasks"]) == {
        "a",
        "choices",
    }
    assert "cannot be read" in spq("eval", model, "--tasks", tmp_path / "absent").err


def test_a_fault_of_the_model_is_not_called_one_of_the_task(
    model: Path, rows: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise AttributeError("no such thing")

    monkeypatch.setattr(adapter, "likelihoods", broken)
    with pytest.raises(AttributeError, match="no such thing"):
        evaluate(model, tasks=[write_task(tmp_path / "a.yaml", rows[0], CHOICES)], limit=1)


def test_questions_are_asked_by_the_chat_template(
    model: Path, rows: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(
        "{{ bos_token }}{% for m in messages %}"
        "{{ 'w50' if m.role == 'user' else 'w51' }} {{ m.content }} w52 {% endfor %}"
        "{% if add_generation_prompt %}w51 {% endif %}",
        encoding="utf-8",
    )
    asked: list[tuple[str, str]] = []
    score = adapter.OnnxLM.loglikelihood

    def heard(self: adapter.OnnxLM, requests: list[Any], **named: Any) -> list[tuple[float, bool]]:
        asked.extend(request.args for request in requests)
        found: list[tuple[float, bool]] = score(self, requests, **named)
        return found

    monkeypatch.setattr(adapter.OnnxLM, "loglikelihood", heard)
    write_rows(tmp_path / "rows.jsonl", [{"query": f"w{n}", "choices": ["w2", "w3"], "gold": 1} for n in (5, 6)])
    task = write_task(tmp_path / "a.yaml", tmp_path / "rows.jsonl", CHOICES, "fewshot_split: test\n")
    opening = Opening(model, tokenizer=tmp_path)
    evaluate(opening, tasks=[task], limit=1, num_fewshot=1, chat=True)
    assert asked[0][0] == "<s>w50 w6 w52 w51 w3 w52 w50 w5 w52 w51 "
    tokenizer = TextTokenizer.load(tmp_path)
    lm = adapter.OnnxLM(Runner(model), tokenizer, max_length=64)
    assert lm.tok_encode(asked[0][0]) == [1, *tokenizer.encode(asked[0][0].removeprefix("<s>"))]
    begun = [{"role": "user", "content": "w5"}, {"role": "assistant", "content": "w6 "}]
    going_on = lm.apply_chat_template(begun, add_generation_prompt=False)
    assert going_on == "<s>w50 w5 w52 w51 w6"  # with BOS once, as where an answer is asked for
    assert lm.tok_encode(going_on) == [1, *tokenizer.encode("w50 w5 w52 w51 w6")]

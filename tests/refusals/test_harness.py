"""Refusals of tasks of lm-evaluation-harness, each made and put right as it says; there is no network."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

pytest.importorskip("onnxruntime")

from docs.refusals import ROOT
from spq_graph.runtime.harness import loading
from tests.conftest import write_tokenizer
from tests.refusals.conftest import Made
from tests.support.command import done, spq
from tests.support.decoders import write_decoder
from tests.support.following import Told
from tests.support.harness_tasks import CHOICES, GREEDY, ROLLING, WRITTEN, write_rows, write_task
from tests.support.hub_sets import write_set

follows = pytest.mark.follows
harness = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None,
    reason="lm-evaluation-harness is an extra: pip install 'spq-graph[eval]'",
)
ROW = {"query": "w1", "choices": ["w2", "w3"], "gold": 0, "context": "w1 w2", "continuation": "w3"}


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", [ROW] * 3)


def asking(made: Made, *more: object, model: Path | None = None) -> list[object]:
    return ["eval", model or made.model, "--tokenizer", made.words, "--limit", 1, *more]


@follows("runtime/harness/loading.py:refuse_absent_harness")
def test_without_the_harness(refusal: Told, made: Made, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(loading, "find_spec", lambda name: None if name == "lm_eval" else find(name))
    refusal.command(*asking(made, "--tasks", "hellaswag"))
    extra = refusal.error.remedy.partition("[")[2].partition("]")[0]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert any(one.startswith("lm-eval") for one in project["optional-dependencies"][extra])
    ours = write_rows(rows, [{key: ROW[key] for key in ("query", "choices", "gold")}])
    done(*asking(made, "--tasks", ours))


@harness
@follows("runtime/harness/loading.py:load_tasks", "no such task file")
def test_no_task_file(refusal: Told, made: Made, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_task(tmp_path / "mine.yaml", rows, CHOICES)
    refusal.command(*asking(made, "--tasks", "mine.yaml"))
    monkeypatch.chdir(tmp_path)
    done(*asking(made, "--tasks", "mine.yaml"))


@harness
@follows("runtime/harness/loading.py:_found", "asked for twice")
def test_a_task_and_a_group_that_it_is_in(refusal: Told, made: Made, rows: Path, tmp_path: Path) -> None:
    one, group = write_task(tmp_path / "one.yaml", rows, CHOICES), tmp_path / "all.yaml"
    group.write_text("group: all\ntask: [one]\n", encoding="utf-8")
    refusal.command(*asking(made, "--tasks", one, "--tasks", group))
    for name in (one, group):
        done(*asking(made, "--tasks", name))


@harness
@follows("runtime/harness/loading.py:_matching")
def test_an_unknown_name(refusal: Told, made: Made, rows: Path, tmp_path: Path) -> None:
    refusal.command(*asking(made, "--tasks", "my_own_set"))
    assert "FILE.yaml" in refusal.error.remedy
    done(*asking(made, "--tasks", write_task(tmp_path / "my_own_set.yaml", rows, CHOICES)))
    from lm_eval._cli.harness import HarnessCLI
    from lm_eval.tasks import TaskManager

    assert "arc_easy" in TaskManager().all_tasks  # what that command lists
    with pytest.raises(SystemExit) as ended:
        HarnessCLI()._parser.parse_args(["ls", "tasks", "--help"])
    assert ended.value.code == 0


ARC = {"question": "w1", "choices": {"text": ["w2", "w3"], "label": ["A", "B"]}, "answerKey": "B"}
SPLITS = ("train", "validation", "test")


@harness
@follows("runtime/harness/loading.py:_require_hub")
def test_data_that_are_not_here_and_no_network(
    refusal: Told, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "none")
    monkeypatch.setattr(loading, "why_unreachable", lambda: "no network")
    asked = asking(made, "--tasks", "arc_easy", "--json")
    refusal.command(*asked)
    repository = refusal.error.what.partition(" ")[0]
    assert repository == "allenai/ai2_arc"
    with monkeypatch.context() as cached:
        write_set(cached, tmp_path, repository, {split: [ARC] for split in SPLITS}, "ARC-Easy")  # as that run leaves it
        assert done(*asked).json["tasks"]["arc_easy"]["n"] == 1
    copy = tmp_path / "here" / repository
    copy.mkdir(parents=True)
    files = "".join(f"  - {{split: {split}, path: rows.jsonl}}\n" for split in SPLITS)
    (copy / "README.md").write_text(f"---\nconfigs:\n- config_name: ARC-Easy\n  data_files:\n{files}---\n", "utf-8")
    write_rows(copy / "rows.jsonl", [ARC])
    monkeypatch.chdir(tmp_path / "here")
    assert done(*asked).json["tasks"]["arc_easy"]["n"] == 1


@harness
@follows("runtime/harness/loading.py:_told", "needs a package")
def test_a_package_that_a_task_needs(
    refusal: Told, made: Made, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own.py").write_text("import absent_package\n\ndef same(rows):\n    return rows\n", encoding="utf-8")
    task = write_task(tmp_path / "mine.yaml", rows, CHOICES, "process_docs: !function own.same\n")
    refusal.command(*asking(made, "--tasks", task))
    assert "absent_package" in refusal.error.what
    monkeypatch.setitem(sys.modules, "absent_package", SimpleNamespace())  # as if it had been installed
    done(*asking(made, "--tasks", task))


@harness
@follows("runtime/harness/loading.py:_told", "does not hand out")
def test_data_that_the_hub_does_not_have(
    refusal: Told, made: Made, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    load, known = datasets.load_dataset, "json"

    def hub(path: str, **named: object) -> object:
        if path != known:
            raise datasets.exceptions.DatasetNotFoundError(f"Dataset '{path}' doesn't exist on the Hub.")
        return load(path, **named)

    monkeypatch.setattr(datasets, "load_dataset", hub)
    task = write_task(tmp_path / "mine.yaml", rows, CHOICES)
    written = task.read_text(encoding="utf-8")
    task.write_text(written.replace("dataset_path: json", "dataset_path: org/jsn"), encoding="utf-8")
    refusal.command(*asking(made, "--tasks", task))
    task.write_text(written, encoding="utf-8")
    done(*asking(made, "--tasks", task))


@harness
@follows("runtime/harness/loading.py:_told", "are not there")
def test_files_of_data_that_are_elsewhere(refusal: Told, made: Made, rows: Path, tmp_path: Path) -> None:
    task = write_task(tmp_path / "mine.yaml", Path("rows.jsonl"), CHOICES)
    refusal.command(*asking(made, "--tasks", task))
    done(*asking(made, "--tasks", write_task(task, rows, CHOICES)))


@harness
@follows("runtime/harness/loading.py:_told", "cannot be loaded")
def test_a_task_file_that_is_none(refusal: Told, made: Made, rows: Path, tmp_path: Path) -> None:
    task = write_task(tmp_path / "mine.yaml", rows, CHOICES.replace("{{query}}", "{{question}}"))
    refusal.command(*asking(made, "--tasks", task))
    assert "'question' is undefined" in refusal.error.what
    done(*asking(made, "--tasks", write_task(task, rows, CHOICES)))


@harness
@follows("runtime/harness/loading.py:_refuse_unrun")
def test_a_task_that_runs_what_a_model_writes(refusal: Told, made: Made, rows: Path, tmp_path: Path) -> None:
    task = write_task(tmp_path / "mine.yaml", rows, CHOICES)
    refusal.command(*asking(made, "--tasks", f"humaneval,{task}"))
    done(*asking(made, "--tasks", task))


@harness
@follows("spq_graph/workbench/harness.py:asked_of_harness")
def test_writing_on_another_runtime(refusal: Told, made: Made, rows: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="--target openvino wants OpenVINO")
    task, other = write_task(tmp_path / "a.yaml", rows, WRITTEN), write_task(tmp_path / "b.yaml", rows, CHOICES)
    refusal.command(*asking(made, "--tasks", task, "--tasks", other, "--target", "openvino"))
    done(*asking(made, "--tasks", task, "--tasks", other))
    done(*asking(made, "--tasks", other, "--target", "openvino"))


@harness
@follows("runtime/harness/scoring.py:score_tasks", "does not fit")
def test_a_row_that_a_task_does_not_fit(refusal: Told, made: Made, rows: Path, tmp_path: Path) -> None:
    write_rows(rows, [ROW | {"choices": ["w2", "w3", "w4"]}, ROW])
    third = CHOICES.replace("{{query}}", "{{choices[2]}}")
    bad, good = (write_task(tmp_path / f"{name}.yaml", rows, form) for name, form in (("a", third), ("b", GREEDY)))
    arguments = ["eval", made.model, "--tokenizer", made.words]
    refusal.command(*arguments, "--tasks", f"{bad},{good}")
    done(*arguments, "--tasks", good)
    assert "does not fit its data" in spq(*arguments, "--tasks", bad).err
    done(*arguments, "--tasks", write_task(bad, rows, CHOICES))


@harness
@follows("runtime/harness/adapter.py:OnnxLM.eot_token_id")
def test_a_tokenizer_without_a_beginning(refusal: Told, made: Made, rows: Path, tmp_path: Path) -> None:
    words = tmp_path / "words"
    shutil.copytree(made.words, words)
    known = json.loads((words / "tokenizer.json").read_text(encoding="utf-8"))
    (words / "tokenizer.json").write_text(json.dumps(known | {"post_processor": None}), encoding="utf-8")
    settings = json.loads((words / "tokenizer_config.json").read_text(encoding="utf-8"))
    bare = {name: value for name, value in settings.items() if name not in ("bos_token", "eos_token")}
    (words / "tokenizer_config.json").write_text(json.dumps(bare), encoding="utf-8")
    arguments = ["eval", made.model, "--tokenizer", words, "--tasks", write_task(tmp_path / "a.yaml", rows, ROLLING)]
    refusal.command(*arguments)
    for name in ("bos_token", "eos_token"):
        (words / "tokenizer_config.json").write_text(json.dumps(bare | {name: settings[name]}), encoding="utf-8")
        done(*arguments)


@harness
@follows("runtime/harness/adapter.py:OnnxLM._prompt")
def test_more_new_tokens_than_the_model_takes(refusal: Told, made: Made, rows: Path, tmp_path: Path) -> None:
    task = write_task(tmp_path / "mine.yaml", rows, WRITTEN.replace("max_gen_toks: 6", "max_gen_toks: 16"))
    refusal.command(*asking(made, "--tasks", task, "--window", 16))
    option, size = refusal.error.remedy.partition(",")[0].split()
    done(*asking(made, "--tasks", task, option, size))
    done(*asking(made, "--tasks", write_task(tmp_path / "other.yaml", rows, GREEDY), "--window", 16))


@harness
@follows("runtime/harness/adapter.py:_check_vocabulary")
def test_a_tokenizer_of_another_model(refusal: Told, made: Made, rows: Path, tmp_path: Path) -> None:
    words = tmp_path / "words"
    words.mkdir()
    write_tokenizer(words)
    known = json.loads((words / "tokenizer.json").read_text(encoding="utf-8"))
    known["model"]["vocab"]["w3"] = 900
    (words / "tokenizer.json").write_text(json.dumps(known), encoding="utf-8")
    task = write_task(tmp_path / "mine.yaml", rows, GREEDY)
    refusal.command("eval", made.model, "--tokenizer", words, "--tasks", task)
    done("eval", made.model, "--tokenizer", made.words, "--tasks", task)


@harness
@follows("runtime/harness/adapter.py:OnnxLM._loglikelihood_tokens")
def test_tasks_of_logits_that_are_nan(refusal: Told, made: Made, rows: Path, tmp_path: Path) -> None:
    path = write_decoder(tmp_path / "broken.onnx", layers=2)
    model = onnx.load(path)
    weight = next(t for t in model.graph.initializer if t.name == "layers.1.mlp.up_proj.weight")
    weight.CopyFrom(numpy_helper.from_array(np.full_like(numpy_helper.to_array(weight), 3e38), weight.name))
    onnx.save(model, path)
    refusal.command(*asking(made, "--tasks", write_task(tmp_path / "mine.yaml", rows, GREEDY), model=path))
    assert "layers.1.mlp" in spq("eval", path, "--text", made.text).err


@harness
@follows("spq_graph/workbench/speaking.py:refuse_wordless", "leave out --apply-chat-template")
def test_a_model_without_a_chat_template(refusal: Told, made: Made, rows: Path, tmp_path: Path) -> None:
    task, words = write_task(tmp_path / "mine.yaml", rows, CHOICES), tmp_path / "words"
    refusal.command(*asking(made, "--tasks", task, "--apply-chat-template"))
    done(*asking(made, "--tasks", task))
    shutil.copytree(made.words, words)
    (words / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }} w9 {% endfor %}", "utf-8")
    done("eval", made.model, "--tokenizer", words, "--tasks", task, "--apply-chat-template")

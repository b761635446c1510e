"""Refusals of what verbs are asked for, each made and put right as it says."""

from __future__ import annotations

import json
import shutil
import sys
import types
from pathlib import Path

import onnx
import pytest

pytest.importorskip("onnxruntime")

from spq_graph.jobs.calibrate import calibrate
from spq_graph.jobs.inspect import inspect
from spq_graph.passes.files.read import load_graph
from spq_graph.terms.targets import target_named
from tests.conftest import write_tokenizer
from tests.refusals.conftest import Made
from tests.support.command import done
from tests.support.decoders import write_decoder
from tests.support.following import Told

follows = pytest.mark.follows


@follows("spq_graph/jobs/bench.py:_fitting")
def test_prompts_of_another_length(refusal: Told, tmp_path: Path) -> None:
    model = write_decoder(tmp_path / "model.onnx", layers=1, fixed=(1, 16))
    refusal.command("bench", model, "--rounds", 1, "--length", 99)
    done("bench", model, "--rounds", 1, *refusal.error.remedy.split())


@follows("spq_graph/jobs/calibrate.py:_shard")
def test_shards(refusal: Told, made: Made, tmp_path: Path) -> None:
    arguments = ["calibrate", made.model, "-o", tmp_path / "ranges", "--calibration", made.data]
    refusal.command(*arguments, "--shard", "4/4")
    done(*arguments, *refusal.error.remedy.removeprefix("for example ").split())


@follows("spq_graph/terms/rows.py:Extent.of")
def test_ladders(refusal: Told, made: Made, tmp_path: Path) -> None:
    arguments = ["quantize", made.model, "-o", tmp_path / "out", "--calibration", made.data, "--text", made.text]
    refusal.command(*arguments, "--ladder", "long")
    _, short, _, full = refusal.error.remedy.split()
    rows = [
        len(done(*arguments, "--ladder", name, "--force", "--json").json["report"]["ladder"]) for name in (short, full)
    ]
    assert rows[0] == 4 < rows[1]


def choices(path: Path) -> Path:
    path.write_text(json.dumps({"query": "w1 w2", "choices": ["w3", "w4"], "gold": 1}) + "\n", encoding="utf-8")
    return path


@follows("spq_graph/jobs/evaluate.py:evaluate", "there is nothing to measure on")
def test_evaluate_on_nothing(refusal: Told, made: Made, tmp_path: Path) -> None:
    refusal.command("eval", made.model)
    done("eval", made.model, "--text", made.text)
    done("eval", made.model, "--tasks", choices(tmp_path / "task.jsonl"), "--tokenizer", made.words)


@follows("spq_graph/jobs/evaluate.py:evaluate", "--against compares on a text")
def test_against_without_a_text(refusal: Told, made: Made, tmp_path: Path) -> None:
    tasks = ["--tasks", choices(tmp_path / "task.jsonl"), "--tokenizer", made.words]
    refusal.command("eval", made.out, "--against", made.model, *tasks)
    done("eval", made.out, "--against", made.model, *tasks, "--text", made.text)


@follows("spq_graph/jobs/evaluate.py:_runs_on", "models are measured on cpu or openvino")
def test_evaluate_on_another_target(refusal: Told, made: Made) -> None:
    refusal.command("eval", made.model, "--text", made.text, "--target", "cuda")
    done("eval", made.model, "--text", made.text, "--target", "cpu")
    pytest.importorskip("openvino")
    done("eval", made.model, "--text", made.text, "--target", "openvino")


@follows("spq_graph/jobs/evaluate.py:_check")
def test_tasks_without_a_tokenizer(refusal: Told, made: Made, tmp_path: Path) -> None:
    arguments = ["eval", made.model, "--tasks", choices(tmp_path / "task.jsonl")]
    refusal.command(*arguments)
    done(*arguments, "--tokenizer", made.words)


@follows("spq_graph/jobs/export.py:export")
def test_export_of_onnx(
    refusal: Told, made: Made, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That the folder itself is exported is what tests of the exporter see to; it takes seconds."""

    def exported(folder: Path, out: Path, **_: object) -> None:
        assert folder == tiny_llama
        shutil.copy(made.model, out)

    monkeypatch.setattr("spq_graph.models.export.export_folder", exported)
    refusal.command("export", made.model, "-o", tmp_path / "out")
    done("export", tiny_llama, "-o", tmp_path / "out")


@follows("spq_graph/workbench/speaking.py:require_tokenizer")
def test_generate_without_a_tokenizer(refusal: Told, made: Made) -> None:
    arguments = ["generate", made.model, "--prompt", "w1 w2", "--max-new-tokens", 2]
    refusal.command(*arguments)
    done(*arguments, "--tokenizer", made.words)


def tokenizer_with(folder: Path, **model: object) -> Path:
    """A tokenizer without BOS, in which some things are otherwise."""
    folder.mkdir()
    write_tokenizer(folder)
    (folder / "tokenizer_config.json").unlink()
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    content["post_processor"] = None
    content["model"] |= model
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


@follows("spq_graph/workbench/speaking.py:Speaker.prompt")
def test_a_prompt_of_no_tokens(refusal: Told, made: Made, tmp_path: Path) -> None:
    words = tokenizer_with(tmp_path / "words")
    arguments = ["generate", made.model, "--tokenizer", words, "--max-new-tokens", 2, "--prompt"]
    refusal.command(*arguments, "")
    done(*arguments, "w1 w2")


@follows("spq_graph/workbench/speaking.py:_check_vocabulary")
def test_generate_with_another_tokenizer(refusal: Told, made: Made, tmp_path: Path) -> None:
    other = tokenizer_with(tmp_path / "other", vocab={"<unk>": 0, "w1": 90})
    arguments = ["generate", made.model, "--prompt", "w1", "--max-new-tokens", 2, "--tokenizer"]
    refusal.command(*arguments, other)
    done(*arguments, made.words)


@follows("spq_graph/jobs/inspect.py:_chosen", "did you mean")
def test_inspect_a_site_misspelled(refusal: Told, made: Made) -> None:
    refusal.command("inspect", made.model, "layers.1.mlp.downproj")
    near = refusal.error.remedy.split("'")[1]
    assert [site["key"] for site in done("inspect", made.model, near, "--json").json["sites"]] == [near]
    assert len(done("inspect", made.model, "--json").json["sites"]) > 10


@follows("spq_graph/jobs/inspect.py:_chosen", "-> leave out --site")
def test_inspect_no_site(refusal: Told, made: Made) -> None:
    refusal.command("inspect", made.model, "--site", "nowhere")
    assert len(done("inspect", made.model, "--json").json["sites"]) > 10


@follows("spq_graph/cli/looking.py:inspect")
def test_inspect_two_sites(refusal: Told, made: Made) -> None:
    gate, down = "layers.0.mlp.gate_proj", "layers.0.mlp.down_proj"
    refusal.command("inspect", made.model, gate, "--site", down)
    assert len(done("inspect", made.model, gate, "--json").json["sites"]) == 1
    assert len(done("inspect", made.model, "layers.0.mlp.*_proj", "--json").json["sites"]) == 3


@follows("spq_graph/jobs/speed_report.py:check_report")
def test_no_report_to_write_into(refusal: Told, made: Made, tmp_path: Path) -> None:
    once = ["--rounds", 1, "--length", 4]
    refusal.command("bench", made.model, *once, "--report")
    shutil.copytree(made.out, tmp_path / "out")
    done("bench", tmp_path / "out", *once, "--report")
    done("bench", made.model, *once)


@pytest.fixture
def out(made: Made, tmp_path: Path) -> Path:
    """An OUT to change."""
    return Path(shutil.copytree(made.out, tmp_path / "changed"))


def made_again(made: Made, folder: Path) -> None:
    done("apply", made.model, made.plan, "-o", folder)
    done("verify", folder, made.model)


@follows("spq_graph/jobs/verify.py:verify", "there is no NAME")
def test_verify_what_is_no_out(refusal: Told, made: Made, tmp_path: Path) -> None:
    refusal.command("verify", made.words, made.model)
    done("verify", made.out, made.model)
    made_again(made, tmp_path / "again")


@follows("spq_graph/jobs/verify.py:verify", "the graph was made with another plan")
def test_verify_with_another_plan(refusal: Told, made: Made, out: Path, tmp_path: Path) -> None:
    plan = json.loads((out / "plan.json").read_text(encoding="utf-8"))
    plan["recipe"]["seed"] = 5
    (out / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    refusal.command("verify", out, made.model)
    made_again(made, tmp_path / "again")


@follows("spq_graph/jobs/verify.py:verify", "is not the recipe of the plan")
def test_verify_another_recipe(refusal: Told, made: Made, out: Path, tmp_path: Path) -> None:
    (out / "recipe.toml").write_text("bits = 5\n", encoding="utf-8")
    refusal.command("verify", out, made.model)
    done("apply", made.model, out / "plan.json", "-o", tmp_path / "applied")
    done("verify", tmp_path / "applied", made.model)
    (out / "recipe.toml").unlink()
    done("verify", out, made.model)


@follows("spq_graph/jobs/verify.py:verify", ": REASON ->")
def test_verify_other_weights(refusal: Told, made: Made, out: Path, tmp_path: Path) -> None:
    model = onnx.load(out / "model.onnx")
    tensor = next(t for t in model.graph.initializer if t.name.startswith("embed_tokens"))
    tensor.raw_data = bytes(4) + tensor.raw_data[4:]
    (out / "model.onnx.data").unlink()
    onnx.save(model, out / "model.onnx", save_as_external_data=True, location="model.onnx.data")
    refusal.command("verify", out, made.model)
    made_again(made, tmp_path / "again")


@follows("models/onnx_folder.py:onnx_of", "no such file")
def test_view_nothing(refusal: Told, made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    with_netron(monkeypatch)
    refusal.command("view", made.out / "absent.onnx", "--no-browser")
    for path in (made.model, made.out):
        assert "http://localhost" in done("view", path, "--no-browser").out


def with_netron(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after `pip install netron`."""
    netron = types.ModuleType("netron")
    netron.__dict__.update(start=lambda *_: ("localhost", 8123), wait=lambda: None)
    monkeypatch.setitem(sys.modules, "netron", netron)


@follows("spq_graph/jobs/view.py:view", "Netron is not installed")
def test_view_without_netron(refusal: Told, made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "netron", None)
        refusal.command("view", made.out)
        assert inspect(made.out).sites
    assert load_graph(made.out / "model.onnx").graph  # for netron.app
    with_netron(monkeypatch)
    done("view", made.out, "--no-browser")


@follows("spq_graph/terms/targets.py:target_named")
def test_no_such_target(refusal: Told, made: Made) -> None:
    refusal.command("bench", made.model, "--target", "tpu")
    names = refusal.error.remedy.removeprefix("one of ").split(", ")
    assert [target_named(name) for name in names] == names


@follows("spq_graph/workbench/data.py:refuse_foreign")
def test_ranges_of_another_model(refusal: Told, made: Made, tmp_path: Path) -> None:
    other = write_decoder(tmp_path / "other.onnx", layers=1, seed=5)
    plan = ["-o", tmp_path / "plan.json", "--spike-ratio", 50]
    refusal.command("plan", other, made.ranges, *plan)
    calibrate(other, tmp_path / "ranges", calibration=made.data)
    done("plan", other, tmp_path / "ranges", *plan)

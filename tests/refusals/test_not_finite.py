"""Refusals of what is not finite, each made and put right as it says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, numpy_helper

pytest.importorskip("onnxruntime")

from spq_graph.documents.json_text import json_text
from spq_graph.passes.adapt.prepared import canonical
from spq_graph.passes.find.identify import identify
from spq_graph.runtime.generation.sample import sample_ids
from spq_graph.runtime.measures.evaluate import score_text
from spq_graph.runtime.measures.finite import LogitsNotFiniteError
from spq_graph.runtime.measures.tasks import load_task, score_task
from spq_graph.runtime.sessions.session import Runner
from spq_graph.runtime.text.sequences import Ids, Sequences
from spq_graph.runtime.text.tokenizer import TextTokenizer
from spq_graph.workbench.naming import once_quantized
from spq_graph.workbench.not_finite import not_finite, sized, too_large
from spq_graph.workbench.opening import Opening
from tests.refusals.conftest import Made
from tests.support.command import done, spq
from tests.support.decoder_graphs import decoder
from tests.support.decoders import random_ids, write_decoder
from tests.support.following import Told
from tests.support.halves import rewritten
from tests.support.words import words

follows = pytest.mark.follows


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """Sound weights, of which one is so large that what it makes is none: infinite, and then NaN."""
    path = write_decoder(tmp_path / "broken.onnx", layers=2)
    model = onnx.load(path)
    weight = next(t for t in model.graph.initializer if t.name == "layers.1.mlp.up_proj.weight")
    weight.CopyFrom(numpy_helper.from_array(np.full_like(numpy_helper.to_array(weight), 3e38), weight.name))
    onnx.save(model, path)
    return path


def eval_says_where(path: Path, made: Made) -> None:
    """`spq-graph eval` on this file and a text says in which of its nodes that begins."""
    failed = spq("eval", path, "--text", made.text)
    assert failed.code != 0
    assert "layers.1.mlp" in failed.err
    done("eval", made.model, "--text", made.text)


@follows("passes/find/sound.py:refuse_broken_weights")
def test_weights_that_are_not_finite(refusal: Told, made: Made, tmp_path: Path) -> None:
    damaged = write_decoder(tmp_path / "model.onnx", layers=1, broken_layer=0)
    data = ["-o", tmp_path / "ranges", "--calibration", made.data]
    refusal.command("calibrate", damaged, *data)
    done("calibrate", write_decoder(damaged, layers=1), *data)


@follows("runtime/generation/sample.py:finite")
def test_sampling_from_what_is_not_finite(refusal: Told, made: Made, broken: Path) -> None:
    with refusal:
        sample_ids(Runner(broken), sequences=1, length=4, seed=0, bos=1)
    eval_says_where(broken, made)


def ones() -> Sequences:
    ids = random_ids(2, 8)
    return Sequences(ids, np.ones_like(ids))


@follows("runtime/measures/finite.py:LogitsNotFiniteError.__init__")
def test_logits_that_are_not_finite(refusal: Told, made: Made, broken: Path) -> None:
    with refusal:
        score_text(Runner(broken), [], ones())
    eval_says_where(broken, made)


@follows("runtime/measures/timing.py:require_finite")
def test_timing_what_is_not_finite(refusal: Told, made: Made, broken: Path) -> None:
    refusal.command("bench", broken, "--rounds", 1, "--length", 4)
    eval_says_where(broken, made)


@follows("runtime/measures/tasks.py:score_task", "logits hold NaN")
def test_tasks_of_what_is_not_finite(refusal: Told, made: Made, broken: Path, tmp_path: Path) -> None:
    task = tmp_path / "task.jsonl"
    task.write_text(json.dumps({"query": "w1", "choices": ["w3", "w4"], "gold": 1}) + "\n", encoding="utf-8")

    def logits(ids: Ids, mask: Ids) -> np.ndarray:
        return np.full((*ids.shape, 32), np.nan, np.float32)

    with refusal:
        score_task(load_task(task), TextTokenizer(words()), logits, max_length=16)
    eval_says_where(broken, made)


@follows(
    "spq_graph/documents/json_text.py:json_text",
    "please report this",
    outside="it is for us to mend: no document of ours may hold it",
)
def test_a_number_that_json_has_not(refusal: Told) -> None:
    with refusal:
        json_text({"sites": [{"ratio": float("nan")}]}, "plan.json")
    assert refusal.error.what.startswith("'sites.0.ratio'")


def end_of(path: Path) -> Path:
    """The sound model with logits that are too large, behind the last of its sites."""
    model = onnx.load(write_decoder(path, layers=2))
    model.graph.node[-1].output[0] = "before"
    model.graph.initializer.append(numpy_helper.from_array(np.array(3e38, np.float32), "factor"))
    for read, made in (("before", "larger"), ("larger", "logits")):
        model.graph.node.append(onnx.helper.make_node("Mul", [read, "factor"], [made], name=f"make_{made}"))
    onnx.save(model, path)
    return path


def once(refusal: Told, source: Path, file: Path, row: Ids) -> None:
    """As if a file had come of a source."""
    error = LogitsNotFiniteError("made.onnx", 0, row, np.ones_like(row))
    with Opening(source).open() as bench, refusal:
        raise once_quantized(error, bench, canonical(file), file)


@pytest.mark.parametrize(
    "begins",
    [
        pytest.param(
            "nowhere", marks=follows("spq_graph/workbench/naming.py:once_quantized", "are not -> pass --keep")
        ),
        pytest.param("at a site", marks=follows("spq_graph/workbench/naming.py:once_quantized", "--keep 'SITE'")),
        pytest.param(
            "behind", marks=follows("spq_graph/workbench/naming.py:once_quantized", "FAULT -> pass --keep '*'")
        ),
    ],
)
def test_not_finite_once_quantized(refusal: Told, made: Made, broken: Path, tmp_path: Path, begins: str) -> None:
    """Where it begins is found, with a site that it concerns or without one, or it is not found."""
    files = {"nowhere": made.model, "at a site": broken, "behind": end_of(tmp_path / "end.onnx")}
    once(refusal, made.model, files[begins], random_ids(1, 8))
    _, option, site, *more = refusal.error.remedy.split()
    data = ["--calibration", made.data, "--spike-ratio", 50, "--no-eval"]
    done("quantize", made.model, "-o", tmp_path / "out", *data, option, site.strip("'"), *more)


@follows("spq_graph/workbench/naming.py:once_quantized", "export the model in float32 or bfloat16")
def test_not_finite_once_quantized_for_float16(refusal: Told, tmp_path: Path) -> None:
    """A product beyond what float16 holds, in what was made of a float16 source; in float32 it has room."""
    for name, dtype in (("half", np.float16), ("made", np.float16), ("whole", np.float32)):
        model = decoder(dtype=dtype)
        read = {node.input[1] for node in model.graph.node if node.op_type == "MatMul"}
        for tensor in model.graph.initializer if name != "half" else ():
            values = numpy_helper.to_array(tensor)
            if tensor.name in read and values.shape[0] < values.shape[1]:  # what makes more channels: gates among them
                tensor.CopyFrom(numpy_helper.from_array(np.full_like(values, 6e4), tensor.name))
        onnx.save(model, tmp_path / f"{name}.onnx")
    ids = np.random.default_rng(0).integers(0, 16, (32, 16))
    once(refusal, tmp_path / "half.onnx", tmp_path / "made.onnx", ids[:1, :8])
    np.savez(tmp_path / "ids.npz", input_ids=ids)
    data = ["--calibration", tmp_path / "ids.npz", "--window", 16, "--no-eval"]
    done("quantize", tmp_path / "whole.onnx", "-o", tmp_path / "out", *data)


@follows("spq_graph/workbench/not_finite.py:too_large")
def test_float16_that_is_too_small(refusal: Told) -> None:
    half, whole = (ir.from_proto(decoder(dtype=dtype)) for dtype in (np.float16, np.float32))
    value = next(v.name or "" for node in half.graph for v in node.outputs if v.name)
    error = too_large(half, [], {value: 473_441.0}, "model.onnx")
    assert error is not None
    with refusal:
        again = too_large(half, [], {value: 473_441.0}, "model.onnx")
        assert again is not None
        raise again
    assert sized(whole, identify(whole).sites) == {}  # as it is once exported in float32


@follows("spq_graph/workbench/not_finite.py:not_finite", "ON -> export the model again")
def test_not_finite_somewhere(refusal: Told, made: Made) -> None:
    with refusal:
        raise not_finite("a text", "model.onnx", None)
    done("eval", made.model, "--text", made.text)


@follows("spq_graph/workbench/not_finite.py:not_finite", "ON: FAULT")
def test_not_finite_at_a_node(refusal: Told, made: Made, broken: Path) -> None:
    refusal.command("eval", broken, "--text", made.text)
    assert "export the model" in refusal.error.remedy
    done("eval", write_decoder(broken, layers=2), "--text", made.text)


def masked(path: Path, number: float) -> Path:
    """A decoder whose mask lets nothing through behind the third token, by some number."""
    model = onnx.load(write_decoder(path, layers=2))
    mask = next(tensor for tensor in model.graph.initializer if tensor.name == "causal")
    values = numpy_helper.to_array(mask).copy()
    values[2] = number
    mask.CopyFrom(numpy_helper.from_array(values, mask.name))
    onnx.save(model, path)
    return path


@follows("spq_graph/workbench/not_finite.py:not_finite", "ON: FAULT")
def test_a_mask_of_infinity(refusal: Told, made: Made, tmp_path: Path) -> None:
    refusal.command("eval", masked(tmp_path / "model.onnx", -np.inf), "--text", made.text)
    assert "a mask of large negative numbers in place of -inf" in refusal.error.remedy
    done("eval", masked(tmp_path / "model.onnx", -1e4), "--text", made.text)


@follows("spq_graph/workbench/not_finite.py:not_finite", "ON: FAULT")
def test_logits_beyond_float16(refusal: Told, made: Made, tmp_path: Path) -> None:
    path, loud = write_decoder(tmp_path / "model.onnx", layers=2), {"lm_head.weight": 20_000.0}
    refusal.command("eval", rewritten(path, factors=loud), "--text", made.text)
    assert "export the model in float32 or bfloat16" in refusal.error.remedy
    for kind in (TensorProto.FLOAT, TensorProto.BFLOAT16):
        again = write_decoder(tmp_path / "again.onnx", layers=2)
        done("eval", rewritten(again, into=kind, factors=loud), "--text", made.text)


PROMPT = ["--prompt", "w1 w2", "--max-new-tokens", 2, "--tokenizer"]


@follows("spq_graph/workbench/not_finite.py:not_finite", "a prompt: FAULT")
def test_not_finite_on_a_prompt(refusal: Told, made: Made, broken: Path) -> None:
    refusal.command("generate", broken, *PROMPT, made.words)
    assert "export the model" in refusal.error.remedy
    done("generate", write_decoder(broken, layers=2), *PROMPT, made.words)


@follows("spq_graph/workbench/not_finite.py:not_finite", "a prompt -> export")
def test_not_finite_somewhere_on_a_prompt(refusal: Told, made: Made) -> None:
    with refusal:
        raise not_finite("a prompt", "model.onnx", None)
    done("generate", made.model, *PROMPT, made.words)


@follows("spq_graph/documents/json_text.py:json_text", "correct it beside the source")
def test_a_number_of_the_source_that_json_has_not(refusal: Told, made: Made, tmp_path: Path) -> None:
    """In the settings that onnxruntime-genai's builder left beside a model."""
    source, settings = tmp_path / "model.onnx", tmp_path / "genai_config.json"
    shutil.copy(made.model, source)

    def says(temperature: str) -> None:
        decoder = '"model": {"decoder": {"filename": "model.onnx"}}'
        settings.write_text(f'{{{decoder}, "search": {{"temperature": {temperature}}}}}', encoding="utf-8")

    says("NaN")
    refusal.command("apply", source, made.plan, "-o", tmp_path / "out")
    says("0.7")
    done("apply", source, made.plan, "-o", tmp_path / "out")

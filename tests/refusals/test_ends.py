"""Refusals of what a graph takes and gives, each made and put right as it says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("onnxruntime")

from spq_graph.runtime.measures.asked import gives_last_only
from spq_graph.runtime.sessions.session import Runner
from tests.refusals.conftest import Made
from tests.support.command import done
from tests.support.decoders import LONGEST, random_ids, write_decoder, write_ids
from tests.support.ends import write_with_end
from tests.support.following import Told

follows = pytest.mark.follows


@follows("runtime/measures/evaluate.py:nothing_to_predict", "the graph takes exactly")
def test_no_row_reaches_behind_the_last_token(refusal: Told, tmp_path: Path) -> None:
    model = write_with_end(tmp_path / "model.onnx", "last", layers=1, fixed=(1, 16))

    def of_rows(length: int) -> list[object]:
        return ["eval", model, "--text", write_ids(tmp_path / f"{length}.npz", rows=2, length=length)]

    refusal.command(*of_rows(16))
    needed = int(refusal.error.remedy.partition("rows of ")[2].split()[0])
    for length in (needed, 40):
        done(*of_rows(length))


@follows("runtime/measures/evaluate.py:_refuse_other_vocabulary")
def test_models_of_two_vocabularies(refusal: Told, made: Made, tmp_path: Path) -> None:
    wider = write_with_end(tmp_path / "wider.onnx", "wider", layers=1)
    refusal.command("eval", wider, "--against", made.model, "--text", made.text)
    for model in (wider, made.model):
        done("eval", model, "--text", made.text)


def with_input(path: Path, name: str, kind: int, shape: list[int | str]) -> Path:
    proto = onnx.load(write_decoder(path, layers=1))
    proto.graph.input.append(helper.make_tensor_value_info(name, kind, shape))
    onnx.save(proto, path)
    return path


def with_other_ids(path: Path, name: str, kind: int = TensorProto.INT64) -> Path:
    """A decoder in which input_ids is called otherwise."""
    proto = onnx.load(write_decoder(path, layers=1))
    for node in proto.graph.node:
        for place, read in enumerate(node.input):
            node.input[place] = name if read == "input_ids" else read
    del proto.graph.input[0]
    proto.graph.input.append(helper.make_tensor_value_info(name, kind, ["batch", "length"]))
    onnx.save(proto, path)
    return path


def inspected_and_run(refusal: Told, wrong: Path, right: Path, made: Made) -> None:
    """`spq-graph inspect` reads the file as it is, and another export of the model runs."""
    refusal.command("eval", wrong, "--text", made.text)
    assert "`spq-graph inspect` reads this file as it is" in refusal.error.remedy
    assert done("inspect", wrong, "--json").json["sites"]
    done("eval", right, "--text", made.text)


@follows("runtime/sessions/feeds.py:TokenInputs._find_ids", "no input 'input_ids'")
def test_no_ids(refusal: Told, made: Made, tmp_path: Path) -> None:
    two = with_other_ids(tmp_path / "model.onnx", "tokens")
    proto = onnx.load(two)
    proto.graph.input.append(helper.make_tensor_value_info("others", TensorProto.INT64, ["batch", "length"]))
    onnx.save(proto, two)
    inspected_and_run(refusal, two, made.model, made)


@follows("runtime/sessions/feeds.py:TokenInputs._find_ids", "what an embedding makes")
def test_embeddings_for_ids(refusal: Told, made: Made, tmp_path: Path) -> None:
    """The embedding in front of it, in one file, is the decoder that was exported with it."""
    proto = onnx.load(write_decoder(tmp_path / "model.onnx", layers=1))
    lookup = next(node for node in proto.graph.node if node.name == "embed_tokens")
    table = next(t for t in proto.graph.initializer if t.name == "embed_tokens.weight")
    for node in proto.graph.node:
        for place, read in enumerate(node.input):
            if read == "input_ids" and node is not lookup:
                node.input[place] = "attention_mask"
            elif read == lookup.output[0]:
                node.input[place] = "inputs_embeds"
    proto.graph.node.remove(lookup)
    proto.graph.initializer.remove(table)
    del proto.graph.value_info[:]
    whole = helper.make_tensor_value_info("inputs_embeds", TensorProto.FLOAT, ["batch_size", "sequence_length", 32])
    proto.graph.input[0].CopyFrom(whole)
    onnx.save(proto, tmp_path / "alone.onnx")
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch_size", "sequence_length"])
    embedded = helper.make_tensor_value_info("embedded", TensorProto.FLOAT, ["batch_size", "sequence_length", 32])
    gather = helper.make_node("Gather", [table.name, "input_ids"], ["embedded"], name="embed")
    graph = helper.make_graph([gather], "embedding", [ids], [embedded], [table])
    front = helper.make_model(graph, opset_imports=proto.opset_import, ir_version=proto.ir_version)
    merged = onnx.compose.merge_models(front, proto, io_map=[("embedded", "inputs_embeds")])
    onnx.save(merged, tmp_path / "merged.onnx")
    inspected_and_run(refusal, tmp_path / "alone.onnx", tmp_path / "merged.onnx", made)
    assert "`onnx.compose.merge_models`" in refusal.error.remedy
    done("eval", tmp_path / "model.onnx", "--text", made.text)


@follows("runtime/sessions/feeds.py:TokenInputs._unknown_mask")
def test_a_mask_of_unknown_meaning(refusal: Told, made: Made, tmp_path: Path) -> None:
    pairs = with_input(tmp_path / "model.onnx", "pair_mask", TensorProto.FLOAT, ["batch", 1, "queries", "keys"])
    inspected_and_run(refusal, pairs, made.model, made)


@follows("runtime/sessions/feeds.py:TokenInputs._foreign", "export the decoder alone")
def test_an_input_that_no_decoder_has(refusal: Told, made: Made, tmp_path: Path) -> None:
    wrong = with_input(tmp_path / "model.onnx", "pixels", TensorProto.FLOAT, ["batch", "height", "width", 3, 1])
    inspected_and_run(refusal, wrong, made.model, made)


@follows("runtime/sessions/feeds.py:TokenInputs._foreign", "if it is a weight")
def test_a_weight_from_outside(refusal: Told, made: Made, tmp_path: Path) -> None:
    path, name = write_decoder(tmp_path / "model.onnx", layers=1), "layers.0.mlp.gate_proj.weight"
    model = onnx.load(path)
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    values = numpy_helper.to_array(weight)
    model.graph.initializer.remove(weight)
    model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, values.shape))
    onnx.save(model, path)
    refusal.command("eval", path, "--text", made.text)
    assert done("inspect", path, "--json").json["sites"]
    code = next(part for part in refusal.error.remedy.split("`") if "from_array" in part)
    exec(code, {"graph": model.graph, "onnx": onnx, "values": values})
    onnx.save(model, path)
    done("eval", path, "--text", made.text)


def sliced(path: Path, start: int, declared: list[int | str]) -> Path:
    """A decoder whose logits are those from one token on, the last, and of a declared shape."""
    model = onnx.load(write_decoder(path, layers=1))
    values = (("e0", start), ("e1", LONGEST + 1), ("e2", 1))
    model.graph.initializer.extend(numpy_helper.from_array(np.array([value]), name) for name, value in values)
    model.graph.node[-1].output[0] = "all"
    model.graph.node.append(helper.make_node("Slice", ["all", *(n for n, _ in values)], ["logits"], name="some"))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("logits", TensorProto.FLOAT, declared))
    onnx.save(model, path)
    return path


def logits_of(path: Path) -> tuple[int, ...]:
    ids, runner = random_ids(1, 8), Runner(path)
    gives_last_only(runner)
    return runner.logits(ids, np.ones_like(ids)).shape


@follows("runtime/sessions/session.py:Decoder.by_token", "neither logits of every token")
def test_logits_of_neither(refusal: Told, tmp_path: Path) -> None:
    with refusal:
        logits_of(sliced(tmp_path / "some.onnx", -3, ["batch_size", "some", 64]))
    assert logits_of(write_decoder(tmp_path / "whole.onnx", layers=1)) == (1, 8, 64)


@follows("runtime/sessions/session.py:Decoder.by_token", "is declared to hold logits of every token")
def test_logits_that_are_declared_otherwise(refusal: Told, tmp_path: Path) -> None:
    """Too large to be tried out at once, so that what it declares is believed."""
    wrong, right = ["batch_size", "sequence_length", 64], ["batch_size", 1, 64]
    believed = Runner(sliced(tmp_path / "model.onnx", -1, [*wrong]))
    assert believed.declares_every
    believed.last_only, ids = False, random_ids(1, 8)
    with refusal:
        believed.logits(ids, np.ones_like(ids))
    assert "its second dimension as 1" in refusal.error.remedy
    again = Runner(sliced(tmp_path / "model.onnx", -1, [*right]))
    assert not again.declares_every
    assert gives_last_only(again)
    assert again.logits(ids, np.ones_like(ids)).shape == (1, 1, 64)


@follows("spq_graph/jobs/evaluate.py:_require_every")
def test_tasks_of_a_last_token(refusal: Told, made: Made, tmp_path: Path) -> None:
    model, task = write_with_end(tmp_path / "model.onnx", "last", layers=1), tmp_path / "task.jsonl"
    task.write_text(json.dumps({"query": "w3", "choices": ["w4", "w5"], "gold": 0}) + "\n", encoding="utf-8")
    refusal.command("eval", model, "--tasks", task, "--tokenizer", made.words)
    done("eval", model, "--text", made.text)


PROMPT = ["--prompt", "w1", "--max-new-tokens", 2, "--tokenizer"]


@pytest.fixture
def headless(tmp_path: Path) -> Path:
    return write_with_end(tmp_path / "model.onnx", "hidden", layers=1)


@follows("spq_graph/workbench/answers.py:require_logits", "no text to generate")
def test_generate_without_logits(refusal: Told, made: Made, headless: Path) -> None:
    refusal.command("generate", headless, *PROMPT, made.words)
    done("generate", made.model, *PROMPT, made.words)


@follows("spq_graph/workbench/answers.py:require_logits", "no perplexity")
def test_evaluate_without_logits(refusal: Told, made: Made, headless: Path, tmp_path: Path) -> None:
    refusal.command("eval", headless, "--text", made.text)
    verb, option, _ = refusal.error.remedy.partition("`spq-graph ")[2].partition("`")[0].split()
    done(verb, headless, "-o", tmp_path / "out", option, made.data)
    done("eval", made.model, "--text", made.text)


@follows("spq_graph/workbench/answers.py:require_logits", "no comparison")
def test_compare_without_logits(refusal: Told, made: Made, headless: Path) -> None:
    refusal.command("eval", made.model, "--text", made.text, "--against", headless)
    done("eval", made.model, "--text", made.text)


@follows("spq_graph/workbench/answers.py:require_logits", "no text to sample")
def test_sample_without_logits(refusal: Told, made: Made, headless: Path, tmp_path: Path) -> None:
    refusal.command("calibrate", headless, "-o", tmp_path / "ranges")
    done("calibrate", headless, "-o", tmp_path / "ranges", refusal.error.remedy.split()[1], made.data)


@pytest.fixture
def fixed(tmp_path: Path) -> Path:
    return write_with_end(tmp_path / "fixed.onnx", "last", layers=1, fixed=(1, 16))


@follows("spq_graph/workbench/answers.py:require_continuing", "pass --calibration FILE")
def test_nothing_to_sample(refusal: Told, made: Made, fixed: Path, tmp_path: Path) -> None:
    refusal.command("calibrate", fixed, "-o", tmp_path / "ranges")
    done("calibrate", fixed, "-o", tmp_path / "ranges", refusal.error.remedy.split()[1], made.data)


@follows("spq_graph/workbench/answers.py:require_continuing", "with a free length")
def test_nothing_grows(refusal: Told, made: Made, fixed: Path, tmp_path: Path) -> None:
    refusal.command("generate", fixed, *PROMPT, made.words)
    done("generate", write_with_end(tmp_path / "free.onnx", "last", layers=1), *PROMPT, made.words)
    done("generate", write_decoder(tmp_path / "every.onnx", layers=1, fixed=(1, 16)), *PROMPT, made.words)

"""Refusals around a prefix, each made and put right as it says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

pytest.importorskip("onnxruntime")

from spq_graph.passes.adapt.prepared import canonical
from spq_graph.passes.base.run import run
from spq_graph.passes.changes.prefix import PrependPrefix
from tests.refusals.conftest import Made
from tests.support.command import done, spq
from tests.support.decoder_graphs import Decoder, decoder
from tests.support.decoders import write_decoder
from tests.support.following import Told
from tests.support.prefixes import prefix_for

follows = pytest.mark.follows


def quantizing(made: Made, model: Path, out: Path) -> tuple[object, ...]:
    return ("quantize", model, "-o", out, "--calibration", made.data, "--spike-ratio", 50, "--no-eval")


def recipe(folder: Path, tokens: object) -> Path:
    (folder / "r.toml").write_text(f"[remedies.prefix]\nuse = 'always'\ntokens = {tokens}\n")
    return folder / "r.toml"


def with_input(model: Path, name: str, kind: int, sizes: list[Any]) -> onnx.ModelProto:
    proto = onnx.load(model)
    proto.graph.input.append(helper.make_tensor_value_info(name, kind, sizes))
    return proto


@follows("passes/find/caches.py:find_caches", "takes no keys and values")
def test_a_model_without_a_cache(refusal: Told, made: Made, tmp_path: Path) -> None:
    plain = write_decoder(tmp_path / "plain.onnx", layers=2)
    refusal.command(*quantizing(made, plain, tmp_path / "out"), "--recipe", recipe(tmp_path, [1]))
    done(*quantizing(made, made.model, tmp_path / "out"), "--recipe", recipe(tmp_path, [1]))


@follows("passes/find/caches.py:find_caches", "no input of token ids")
def test_a_model_whose_ids_are_in_no_rows(refusal: Told, made: Made) -> None:
    graph = canonical(made.model)
    prefix = prefix_for(made.model, (1,))
    graph.graph.inputs[0].shape = None
    with refusal:
        run(graph, [PrependPrefix(prefix)])
    run(canonical(made.model), [PrependPrefix(prefix)])


@follows("passes/find/caches.py:find_caches", "is not known to go with a cache")
def test_an_input_that_is_not_known_to_go_with_a_cache(refusal: Told, made: Made, tmp_path: Path) -> None:
    prefix = prefix_for(made.model, (1,))
    onnx.save(with_input(made.model, "use_cache_branch", TensorProto.BOOL, [1]), tmp_path / "merged.onnx")
    with refusal:
        run(canonical(tmp_path / "merged.onnx"), [PrependPrefix(prefix)])
    run(canonical(made.model), [PrependPrefix(prefix)])


@follows("passes/find/caches.py:_refuse_fused")
def test_attention_of_onnx_runtime(refusal: Told, made: Made, tmp_path: Path) -> None:
    onnx.save(decoder(Decoder(attention="GroupQueryAttention")), tmp_path / "fused.onnx")
    with refusal:
        run(canonical(tmp_path / "fused.onnx"), [PrependPrefix(prefix_for(made.model, (1,)))])
    run(canonical(made.model), [PrependPrefix(prefix_for(made.model, (1,)))])


@follows("passes/find/caches.py:_refuse_other")
def test_a_cache_of_a_fixed_length(refusal: Told, made: Made, tmp_path: Path) -> None:
    proto, prefix = onnx.load(made.model), prefix_for(made.model, (1,))
    for value in proto.graph.input:
        if value.name.startswith("past"):
            value.type.tensor_type.shape.dim[2].dim_value = 8
    onnx.save(proto, tmp_path / "fixed.onnx")
    with refusal:
        run(canonical(tmp_path / "fixed.onnx"), [PrependPrefix(prefix)])
    run(canonical(made.model), [PrependPrefix(prefix)])


@follows("passes/changes/prefix.py:PrependPrefix.call")
def test_a_graph_that_has_a_prefix(refusal: Told, made: Made) -> None:
    graph, prefix = canonical(made.model), prefix_for(made.model, (1,))
    run(graph, [PrependPrefix(prefix)])
    with refusal:
        run(graph, [PrependPrefix(prefix)])
    run(canonical(made.model), [PrependPrefix(prefix)])


@follows("passes/changes/prefix.py:_refuse_misfit")
def test_keys_and_values_of_another_model(refusal: Told, made: Made, tmp_path: Path) -> None:
    deeper = write_decoder(tmp_path / "deeper.onnx", layers=3, cache=True)
    with refusal:
        run(canonical(made.model), [PrependPrefix(prefix_for(deeper, (1,)))])
    given = quantizing(made, made.model, tmp_path / "out")
    done(*given, "--recipe", recipe(tmp_path, [1]))  # which makes the plan again


@follows("spq_graph/workbench/prefixing.py:prefix_of", "leaves nothing")
def test_a_prefix_as_long_as_a_sequence(refusal: Told, made: Made, tmp_path: Path) -> None:
    given = quantizing(made, made.model, tmp_path / "out")
    refusal.command(*given, "--recipe", recipe(tmp_path, [1, 2, 3, 4]), "--window", 4)
    done(*given, "--recipe", recipe(tmp_path, [1, 2]), "--window", 4)


@follows("spq_graph/workbench/prefixing.py:prefix_of", "is not one of the")
def test_a_token_that_the_model_does_not_have(refusal: Told, made: Made, tmp_path: Path) -> None:
    given = quantizing(made, made.model, tmp_path / "out")
    refusal.command(*given, "--recipe", recipe(tmp_path, [1, 64]))
    done(*given, "--recipe", recipe(tmp_path, [1, 63]))


@follows("spq_graph/workbench/prefixing.py:prove")
def test_a_graph_that_does_not_count_what_its_cache_holds(refusal: Told, made: Made, tmp_path: Path) -> None:
    proto = onnx.load(write_decoder(tmp_path / "model.onnx", layers=2, positions=True, cache=True))
    graph = proto.graph
    for node in graph.node:
        node.input[:] = ["counted" if name == "position_ids" else name for name in node.input]
    for name, value in (("zero_at", 0), ("one_at", 1)):
        graph.initializer.append(helper.make_tensor(name, TensorProto.INT64, [], [value]))
    counting = [  # new tokens alone
        ("Shape", ["input_ids"], "sizes"),
        ("Gather", ["sizes", "one_at"], "new"),
        ("Range", ["zero_at", "new", "one_at"], "counted"),
    ]
    for at, (op_type, inputs, output) in enumerate(counting):
        graph.node.insert(at, helper.make_node(op_type, inputs, [output], name=output))
    graph.input.remove(next(value for value in graph.input if value.name == "position_ids"))
    onnx.save(proto, tmp_path / "odd.onnx")
    given = quantizing(made, tmp_path / "odd.onnx", tmp_path / "out")
    refusal.command(*given, "--recipe", recipe(tmp_path, [1]))
    done(*given, "--no-remedy", "prefix")


@follows("spq_graph/documents/plan_arrays.py:with_arrays.whole", "cannot be read")
def test_a_plan_without_its_keys_and_values(refusal: Told, made: Made, tmp_path: Path) -> None:
    out, alone = prefixed(made, tmp_path), tmp_path / "alone"
    alone.mkdir()
    shutil.copy(out / "plan.json", alone)
    refusal.command("apply", made.model, alone / "plan.json", "-o", tmp_path / "again")
    shutil.copy(out / "plan.safetensors", alone)
    done("apply", made.model, alone / "plan.json", "-o", tmp_path / "again")


@follows("spq_graph/documents/plan_arrays.py:with_arrays.whole", "these are not")
def test_keys_and_values_that_are_not_those_of_the_plan(refusal: Told, made: Made, tmp_path: Path) -> None:
    out = prefixed(made, tmp_path)
    content = (out / "plan.safetensors").read_bytes()
    (out / "plan.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    refusal.command("verify", out, made.model)
    (out / "plan.safetensors").write_bytes(content)
    done("verify", out, made.model)


def test_tokens_that_are_not_those_of_its_keys_and_values(made: Made, tmp_path: Path) -> None:
    out = prefixed(made, tmp_path)
    said = json.loads((out / "plan.json").read_text())
    said["treatments"][0]["changes"][0]["tokens"] = [1]
    (out / "plan.json").write_text(json.dumps(said))
    told = spq("verify", out, made.model)
    assert told.code == 2
    assert "not [1, heads, 1, width]" in told.err


def prefixed(made: Made, folder: Path) -> Path:
    """OUT with a prefix of two tokens."""
    done(*quantizing(made, made.model, folder / "out"), "--recipe", recipe(folder, [1, 5]))
    return folder / "out"

"""Graphs that are quantized in part: quantized around, and what is already is listed in its role."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from spq_graph.passes.canon.canonicalize import Canonicalize
from spq_graph.passes.files.read import load_graph
from spq_graph.passes.find.identify import Identified
from spq_graph.passes.find.quantized import identify_floating, refuse_quantized
from spq_graph.passes.forms.reading import precision_of
from spq_graph.terms.errors import GraphError
from spq_graph.terms.site import Role
from tests.support.decoders import write_decoder

GATE, DOWN, HEAD = "layers.0.mlp.gate_proj", "layers.1.mlp.down_proj", "lm_head"


def put(model: onnx.ModelProto, at: str, *nodes: onnx.NodeProto) -> None:
    """Put nodes in the place of the one with this name."""
    index = next(i for i, node in enumerate(model.graph.node) if node.name == at)
    del model.graph.node[index]
    for node in reversed(nodes):
        model.graph.node.insert(index, node)


def node_named(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.name == name)


def const(model: onnx.ModelProto, name: str, array: np.ndarray) -> str:
    model.graph.initializer.append(numpy_helper.from_array(array, name))
    return name


def weight_of_node(model: onnx.ModelProto, name: str) -> np.ndarray:
    wanted = node_named(model, name).input[1]
    return numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == wanted))


def int4(model: onnx.ModelProto, name: str) -> None:
    """Weight-only, as MatMulNBits: 4 bits, one block of 32 for each column."""
    node, weight = node_named(model, name), weight_of_node(model, name)
    rows, columns = weight.shape
    blocks = -(-rows // 32)
    padded = np.zeros((blocks * 32, columns), np.float32)
    padded[:rows] = weight
    apart = padded.reshape(blocks, 32, columns).transpose(2, 0, 1)
    scales = np.maximum(np.abs(apart).max(axis=-1), 1e-6) / 7
    codes = (np.rint(apart / scales[..., None]) + 8).astype(np.uint8)
    packed = codes[..., ::2] | (codes[..., 1::2] << 4)
    inputs = [node.input[0], const(model, f"{name}.q", packed), const(model, f"{name}.s", scales.astype(np.float32))]
    made = helper.make_node(
        "MatMulNBits",
        inputs,
        list(node.output),
        name=name,
        domain="com.microsoft",
        K=rows,
        N=columns,
        bits=4,
        block_size=32,
    )
    put(model, name, made)


def qdq(model: onnx.ModelProto, name: str) -> None:
    """Weight in 8 bits behind DequantizeLinear, its activation behind a pair."""
    node, weight = node_named(model, name), weight_of_node(model, name)
    scale = np.float32(np.abs(weight).max() / 127)
    codes = const(model, f"{name}.q", np.rint(weight / scale).astype(np.int8))
    scales = const(model, f"{name}.s", np.array(scale))
    wide, zero = (
        const(model, f"{name}.as", np.array(np.float32(0.05))),
        const(model, f"{name}.z", np.array(np.uint8(128))),
    )
    put(
        model,
        name,
        helper.make_node("QuantizeLinear", [node.input[0], wide, zero], [f"{name}.aq"], name=f"{name}.Q"),
        helper.make_node("DequantizeLinear", [f"{name}.aq", wide, zero], [f"{name}.ad"], name=f"{name}.DQ"),
        helper.make_node("DequantizeLinear", [codes, scales], [f"{name}.wd"], name=f"{name}.WDQ"),
        helper.make_node("MatMul", [f"{name}.ad", f"{name}.wd"], list(node.output), name=name),
    )


def embedding(model: onnx.ModelProto, name: str = "embed_tokens") -> None:
    """A table in 8 bits, whose rows are looked up."""
    table, ids = node_named(model, name).input
    array = numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == table))
    scale = np.float32(np.abs(array).max() / 127)
    codes, scales = (
        const(model, "table.q", np.rint(array / scale).astype(np.int8)),
        const(model, "table.s", np.array(scale)),
    )
    put(
        model,
        name,
        helper.make_node("DequantizeLinear", [codes, scales], ["table"], name="table.DQ"),
        helper.make_node("Gather", ["table", ids], ["embed_tokens.out"], name=name),
    )


def edited(path: Path, *edits: tuple[Callable[[onnx.ModelProto, str], None], str]) -> Path:
    """A decoder of two layers, with these edits."""
    model = onnx.load(write_decoder(path, layers=2))
    for edit, name in edits:
        edit(model, name)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, path)
    return path


def opened(path: Path) -> tuple[ir.Model, Identified]:
    model = load_graph(path)
    Canonicalize()(model)
    refuse_quantized(model, path)
    return model, identify_floating(model)


@pytest.mark.parametrize("edit", [int4, qdq])
@pytest.mark.parametrize("name", [GATE, DOWN, HEAD])
def test_quantized_around(tmp_path: Path, edit: Callable[[onnx.ModelProto, str], None], name: str) -> None:
    _, whole = opened(write_decoder(tmp_path / "whole.onnx", layers=2))
    model, found = opened(edited(tmp_path / "model.onnx", (edit, name)))
    assert [(s.key, s.role, s.layer, s.input) for s in found.sites] == [
        (s.key, s.role, s.layer, s.input) for s in whole.sites if s.key != name
    ]
    assert found.blocks == whole.blocks
    (entry,) = found.unmatched
    (site,) = (site for site in whole.sites if site.key == name)
    role = site.role
    how = "MatMulNBits, 4 bits" if edit is int4 else "DequantizeLinear"
    where = "" if role is Role.LM_HEAD else f" of layer {site.layer}"
    assert (entry.node, entry.reason) == (
        name,
        f"{role}{where}: its weight is quantized already ({how}); it stays as it is",
    )
    assert {str(precision_of(node)) for node in model.graph if node.name in {s.node for s in found.sites}} == {"fp32"}


def test_a_quantized_table(tmp_path: Path) -> None:
    _, found = opened(edited(tmp_path / "model.onnx", (embedding, "embed_tokens"), (int4, HEAD)))
    assert len(found.sites) == 14
    assert [(u.node, u.reason.split(";")[0]) for u in found.unmatched] == [
        ("embed_tokens", "its table is quantized already (DequantizeLinear)"),
        (HEAD, "lm_head: its weight is quantized already (MatMulNBits, 4 bits)"),
    ]


@pytest.mark.parametrize("edit", [int4, qdq])
def test_half_of_it_is_too_much(tmp_path: Path, edit: Callable[[onnx.ModelProto, str], None]) -> None:
    parts = [f"layers.0.self_attn.{letter}_proj" for letter in "qkvo"] + [GATE, "layers.0.mlp.up_proj"]
    opened(edited(tmp_path / "most.onnx", *((edit, name) for name in parts)))
    with pytest.raises(GraphError, match="quantized already"):
        opened(edited(tmp_path / "half.onnx", *((edit, name) for name in [*parts, DOWN, HEAD])))

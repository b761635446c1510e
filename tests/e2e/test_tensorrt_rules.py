"""Files for TensorRT keep to what its documents say, whatever is in them, and a file that does not is found out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from spq_graph.terms.precision import Precision
from spq_graph.terms.site import Role, Site
from spq_graph.terms.targets import PROFILES
from tests.support.command import Case, done
from tests.support.decoder_graphs import Decoder, decoder, token_feeds
from tests.support.graphs import Glu
from tests.support.inserting import applied, plan_for
from tests.support.tensorrt_rules import RULES, broken

GLU = Glu(width=32, inner=64)
KEPT = [precision for precision in PROFILES["tensorrt"].high if precision is not Precision.FP32]
SHAPES = {
    "plain": Decoder(glu=GLU, heads=4, kv_heads=2),
    "biased, packed": Decoder(glu=Glu(width=32, inner=64, bias=True, packing="packed"), attention="packed"),
    "experts": Decoder(glu=GLU, experts=3),
    "tied, capped": Decoder(glu=GLU, tied=True, capped=True),
}


def written(folder: Path, shape: Decoder, kept: Precision, rest: Precision = Precision.INT8, **more: object) -> Path:
    """A decoder with its down and o projections in one format, and all others in another."""
    path = folder / "model.onnx"
    dtype = more.pop("dtype", np.float32)
    onnx.save(decoder(shape, opset=more.pop("opset", 21), dtype=dtype), path)  # type: ignore[arg-type]

    def choose(site: Site) -> Precision:
        if site.role in (Role.LM_HEAD, Role.ROUTER, Role.EMBEDDING):
            return Precision.FP16 if dtype is np.float16 else Precision.FP32
        return kept if site.role in (Role.GLU_DOWN, Role.ATTN_O) else rest

    return applied(path, plan_for(path, token_feeds(), choose, target="tensorrt", **more))  # type: ignore[arg-type]


@pytest.mark.parametrize("kept", KEPT, ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_every_format_in_every_kind_of_decoder(tmp_path: Path, name: str, kept: Precision) -> None:
    assert broken(onnx.load(written(tmp_path, SHAPES[name], kept))) == []


@pytest.mark.parametrize("bits", [Precision.INT8, Precision.INT6_IN_8], ids=str)
def test_with_outlier_branches_and_below_eight_bits(tmp_path: Path, bits: Precision) -> None:
    assert broken(onnx.load(written(tmp_path, SHAPES["plain"], bits, bits, peeled=3))) == []


@pytest.mark.parametrize("opset", [13, 18, 20, 23])
def test_of_older_and_newer_graphs(tmp_path: Path, opset: int) -> None:
    assert broken(onnx.load(written(tmp_path, SHAPES["plain"], Precision.FP8_E4M3, opset=opset))) == []


def test_of_graphs_in_half_precision(tmp_path: Path) -> None:
    assert broken(onnx.load(written(tmp_path, SHAPES["plain"], Precision.FP8_E4M3, dtype=np.float16))) == []


def test_what_the_command_line_writes(case: Case, tmp_path: Path) -> None:
    done("apply", case.model, case.out / "plan.json", "-o", tmp_path / "out", "--target", "tensorrt")
    assert broken(onnx.load(tmp_path / "out" / "model.onnx")) == []


def test_files_for_other_targets_do_not_keep_to_it(case: Case) -> None:
    assert broken(onnx.load(case.out / "model.onnx"))


# ------------------------------------------------------------------------------------------------ broken on purpose

Tamper = Callable[[onnx.ModelProto], None]


def node(model: onnx.ModelProto, kind: str, number: int = 0) -> onnx.NodeProto:
    return [one for one in model.graph.node if one.op_type == kind][number]


def constant(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(one for one in model.graph.initializer if one.name == name)


def set_constant(model: onnx.ModelProto, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    tensor = constant(model, name)
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), name))


def quantizer(model: onnx.ModelProto, number: int, change: Callable[[np.ndarray], np.ndarray]) -> None:
    set_constant(model, node(model, "QuantizeLinear").input[number], change)


def of_weight(model: onnx.ModelProto) -> onnx.NodeProto:
    names = {one.name for one in model.graph.initializer}
    return next(one for one in model.graph.node if one.op_type == "DequantizeLinear" and one.input[0] in names)


def unsigned(model: onnx.ModelProto) -> None:
    quantizer(model, 2, lambda zero: zero.astype(np.uint8))
    del model.graph.value_info[:]  # which say that codes are signed


def computed_scale(model: onnx.ModelProto) -> None:
    name = node(model, "QuantizeLinear").input[1]
    tensor = constant(model, name)
    model.graph.initializer.remove(tensor)
    model.graph.node.insert(0, helper.make_node("Constant", [], [name], value=tensor))


def other_axis(model: onnx.ModelProto) -> None:
    del of_weight(model).attribute[:]
    of_weight(model).attribute.append(helper.make_attribute("axis", 0))


def operator(kind: str, domain: str = "") -> Tamper:
    def tamper(model: onnx.ModelProto) -> None:
        model.graph.node.append(helper.make_node(kind, ["logits"], ["more"], name="more", domain=domain))
        model.opset_import.extend([helper.make_opsetid(domain, 1)] if domain else [])

    return tamper


def unquantized(model: onnx.ModelProto) -> None:
    product = next(one for one in model.graph.node if of_weight(model).output[0] in one.input)
    pair = next(one for one in model.graph.node if product.input[0] in one.output)
    source = next(one for one in model.graph.node if pair.input[0] in one.output)
    product.input[0] = source.input[0]


def between(model: onnx.ModelProto) -> None:
    back = of_weight(model)
    place = list(model.graph.node).index(back) + 1
    model.graph.node.insert(place, helper.make_node("Identity", [back.output[0]], ["same"], name="same"))
    next(one for one in model.graph.node[place + 1 :] if back.output[0] in one.input).input[1] = "same"


def old(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 26


BROKEN: dict[str, tuple[Tamper, str]] = {
    "foreign": (operator("Gelu", "com.microsoft"), "com.microsoft::Gelu"),
    "not taken": (operator("Unique"), "::Unique"),
    "opset": (old, "opset 26"),
    "double": (lambda model: model.graph.node.append(_cast(TensorProto.DOUBLE)), "of type 11"),
    "unsigned": (unsigned, "codes of type 2"),
    "zero point": (lambda model: quantizer(model, 2, lambda zero: zero + np.int8(3)), "a zero point that is not 0"),
    "negative scale": (lambda model: quantizer(model, 1, lambda scale: -scale), "not positive and finite"),
    "infinite scale": (lambda model: quantizer(model, 1, lambda s: s * np.float32(np.inf)), "not positive and finite"),
    "scale of no constant": (computed_scale, "its scale is no constant"),
    "axis": (other_axis, "scales along another axis"),
    "one operand": (unquantized, "operands of None and 3"),
    "between": (between, "is not multiplied by at once"),
    "two types": (lambda model: model.graph.node.append(_cast(TensorProto.FLOAT16, "Mul")), "Mul of types"),
    "code of -128": (
        lambda model: set_constant(model, of_weight(model).input[0], lambda codes: np.full_like(codes, -128)),
        "a code beyond 127",
    ),
}


def _cast(to: int, kind: str = "Cast") -> onnx.NodeProto:
    if kind == "Cast":
        return helper.make_node("Cast", ["logits"], ["wide"], name="wide", to=to)
    return helper.make_node(kind, ["logits", "input_ids"], ["mixed"], name="mixed")


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_rule_is_found_out(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tamper, message = BROKEN[name]
    model = onnx.load(written(tmp_path, SHAPES["plain"], Precision.INT8))
    assert broken(model) == []
    tamper(model)
    monkeypatch.setattr("tests.support.tensorrt_rules.shape_inference.infer_shapes", _without_strictness)
    assert any(message in text for text in broken(model)), broken(model)


def _without_strictness(model: onnx.ModelProto, **_: object) -> onnx.ModelProto:
    """Types of a file that a strict reading refuses, as far as they can be told."""
    return INFER(model)


INFER = onnx.shape_inference.infer_shapes


def test_every_rule_is_broken_above() -> None:
    assert len(RULES) == 8

"""One decoder layer before and after, as readable text: a change of what is written shows up as a diff.

After a change on purpose, write the files anew and read the diff:

    SPQ_WRITE_GOLDEN=1 python -m pytest tests/golden
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import onnx
import pytest

from spq_graph.passes.base.marks import PREFIX
from spq_graph.terms.precision import Precision
from spq_graph.terms.site import Role, Site
from spq_graph.terms.targets import PROFILES
from tests.support.decoder_graphs import Decoder, decoder, token_feeds
from tests.support.graphs import Glu
from tests.support.inserting import applied, plan_for
from tests.support.tables import Ends, plan_of

HERE = Path(__file__).parent
KINDS = {kind: name.lower() for name, kind in onnx.TensorProto.DataType.items()}


def listing(model: onnx.ModelProto) -> str:
    """Every node on a line: outputs, operator, inputs; constants by their type and shape, sites by their precision.

    Model-local functions follow.
    """
    constants = {t.name: f"{KINDS[t.data_type]}{list(t.dims)}" for t in model.graph.initializer}
    lines = lines_of(model.graph.node, constants)
    for function in model.functions:
        defaults = [f"{a.name}={onnx.helper.get_attribute_value(a)}" for a in function.attribute_proto]
        opsets = ", ".join(f"{o.domain or 'onnx'} {o.version}" for o in function.opset_import)
        called = f"{function.domain}::{function.name}({', '.join(function.input)})"
        lines += ["", f"{called} {' '.join([*function.attribute, *defaults])}  # {opsets}"]
        lines += [f"  {line}" for line in lines_of(function.node, {})]
    return "\n".join(lines) + "\n"


def value_of(attribute: onnx.AttributeProto) -> object:
    """An attribute's value; @ marks one that is given by the caller of a function."""
    return f"@{attribute.ref_attr_name}" if attribute.ref_attr_name else onnx.helper.get_attribute_value(attribute)


def lines_of(nodes: Iterable[onnx.NodeProto], constants: Mapping[str, str]) -> list[str]:
    lines = []
    for node in nodes:
        reads = ", ".join(constants.get(name, name or "-") for name in node.input)
        attributes = "".join(f" {a.name}={value_of(a)}" for a in sorted(node.attribute, key=lambda a: a.name))
        kept = {p.key: p.value for p in node.metadata_props}
        noted = [kept[f"{PREFIX}{key}"] for key in ("role", "precision", "reason") if f"{PREFIX}{key}" in kept]
        note = f"  # {', '.join(noted)}" if noted else ""
        lines.append(f"{', '.join(node.output)} = {node.op_type}({reads}){attributes}{note}")
    return lines


def choose(site: Site) -> Precision:
    return {Role.GLU_DOWN: Precision.FP32, Role.ATTN_O: Precision.W8A8_BLOCK, Role.LM_HEAD: Precision.FP32}.get(
        site.role, Precision.INT8
    )


def fp8(site: Site) -> Precision:
    chosen = {Role.GLU_DOWN: Precision.FP8_E5M2, Role.GLU_UP: Precision.FP8_E4M3, Role.ATTN_O: Precision.W8FP8A16}
    return chosen.get(site.role, choose(site))


def by_token(site: Site) -> Precision:
    chosen = {Role.GLU_DOWN: Precision.W8A8_TOKEN, Role.ATTN_O: Precision.W8A8_TOKEN}
    return chosen.get(site.role, choose(site))


def typical(target: str) -> Callable[[Site], Precision]:
    """One site in every precision that the target has a form of its own for."""
    profile = PROFILES[target]

    def choose(site: Site) -> Precision:
        wanted = {
            Role.GLU_DOWN: Precision.FP8_E4M3,
            Role.GLU_UP: Precision.W8FP8A16,
            Role.ATTN_O: Precision.W8A8_BLOCK,
            Role.ATTN_Q: Precision.BF16,
            Role.ATTN_K: Precision.FP16,
            Role.LM_HEAD: Precision.FP32,
            Role.GLU_GATE: Precision.INT6_IN_8,
        }
        return profile.settle(wanted.get(site.role, Precision.INT8))[0]

    return choose


CASES = {
    "plain": (Decoder(layers=1, rope=False), None),
    "int8_keeping_down": (Decoder(layers=1, rope=False), choose),
    "int6_everywhere": (Decoder(layers=1, rope=False), Precision.INT6_IN_8),
    "fp8_beside_int8": (Decoder(layers=1, rope=False), fp8),
    "by_token_beside_int8": (Decoder(layers=1, rope=False), by_token),
    "packed_with_bias": (
        Decoder(layers=1, rope=False, attention="packed", glu=Glu(packing="split", bias=True, form="transpose")),
        Precision.INT8,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_graph(tmp_path: Path, name: str) -> None:
    shape, precision = CASES[name]
    path = tmp_path / "model.onnx"
    onnx.save(decoder(shape, naming="dynamo"), path)
    made = path if precision is None else applied(path, plan_for(path, token_feeds(), precision))
    same(listing(onnx.load(made)), name)


@pytest.mark.parametrize("target", PROFILES)
def test_one_layer_on_each_target(tmp_path: Path, target: str) -> None:
    """Before is plain.txt: the same layer, as an exporter writes it, with the shapes of all values."""
    path = tmp_path / "model.onnx"
    model = decoder(Decoder(layers=1, rope=False), naming="dynamo")
    onnx.save(onnx.shape_inference.infer_shapes(model, data_prop=True), path)
    made = applied(path, plan_for(path, token_feeds(), typical(target), target=target))
    same(listing(onnx.load(made)), f"target_{target}")


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_outlier_branches(tmp_path: Path, target: str) -> None:
    """Siblings share Gather, Clip and Sub; a kept site has none."""
    path = tmp_path / "model.onnx"
    onnx.save(decoder(Decoder(layers=1, rope=False, glu=Glu(bias=True)), naming="dynamo"), path)
    made = applied(path, plan_for(path, token_feeds(), lambda s: settled(choose(s), target), target=target, peeled=2))
    same(listing(onnx.load(made)), f"outlier_branches_{target}")


def settled(precision: Precision, target: str) -> Precision:
    return PROFILES[target].settle(precision)[0]


def same(text: str, name: str) -> None:
    golden = HERE / f"{name}.txt"
    if os.environ.get("SPQ_WRITE_GOLDEN"):
        golden.write_text(text, encoding="utf-8")
    assert text == golden.read_text(encoding="utf-8")


def test_an_embedding_reads_the_panels_of_its_head(tmp_path: Path) -> None:
    path = Ends(channels=96, scale=8.0, capped=True).write(tmp_path / "model.onnx")
    made = applied(path, plan_of(path, {Role.EMBEDDING: Precision.W8A16, Role.LM_HEAD: Precision.W8A8_TOKEN}))
    same(listing(onnx.load(made)), "ends_by_token")


@pytest.mark.parametrize("target", ["cpu", "portable"])
def test_ends_that_are_tied_share_a_table(tmp_path: Path, target: str) -> None:
    ends = Ends(channels=96, scale=8.0, capped=True)
    path = ends.write(tmp_path / "model.onnx")
    head = {Role.LM_HEAD: Precision.W8A8_BLOCK} if target == "cpu" else {}
    made = applied(path, plan_of(path, {Role.EMBEDDING: Precision.W8A16, **head}, target=target))
    same(listing(onnx.load(made)), f"ends_{target}")

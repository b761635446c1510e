"""What the file says of itself: read back by plain onnx, from the fields that Netron shows."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

pytest.importorskip("onnxruntime")

import spq_graph
from spq_graph.documents.plan import Plan
from spq_graph.passes.annotate import Annotate
from spq_graph.terms.site import Role
from tests.support.command import Case
from tests.support.samples import sample_plan

OURS = "spq_graph."


def notes_of(node: onnx.NodeProto) -> dict[str, str]:
    return {p.key.removeprefix(OURS): p.value for p in node.metadata_props if p.key.startswith(OURS)}


def saved_by_onnx(path: Path, out: Path) -> Path:
    onnx.save(onnx.load(path), out, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert (out.parent / "weights.bin").stat().st_size > 0
    return out


def saved_by_onnx_ir(path: Path, out: Path) -> Path:
    ir.save(ir.load(path), out, external_data="weights.bin")
    return out


def as_it_is(path: Path, out: Path) -> Path:
    assert path.with_name("model.onnx.data").is_file()  # weights lie beside it from the beginning
    return path


@pytest.mark.parametrize("again", [as_it_is, saved_by_onnx, saved_by_onnx_ir])
def test_notes_are_read_back_from_the_saved_file(case: Case, tmp_path: Path, again: object) -> None:
    assert callable(again)
    model = onnx.load(again(case.out / "model.onnx", tmp_path / "again.onnx"), load_external_data=False)
    plan = Plan.load(case.out / "plan.json")
    of_model = {p.key: p.value for p in model.metadata_props}
    assert of_model[f"{OURS}plan"] == plan.digest
    assert of_model[f"{OURS}version"] == spq_graph.__version__
    notes = {node.name: notes_of(node) for node in model.graph.node}
    for site in plan.sites:
        seen = site.evidence
        spikes = {"ratio": f"{seen.ratio or 0:g}", "token": f"#{seen.token}", "position": str(seen.position)}
        assert notes[site.node] == {
            "site": site.key,
            "role": site.role.value,
            "precision": site.precision.value,
            "reason": site.reason.value,
            **({} if site.role is Role.EMBEDDING else spikes),  # ids have no activations
        }
        assert (seen.ratio is None) is (site.role is Role.EMBEDDING)
    inserted = {node.name: notes[node.name]["added"] for node in model.graph.node if "added" in notes[node.name]}
    assert set(inserted.values()) <= {site.node for site in plan.sites}
    quantizers = [node.name for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert quantizers
    assert set(quantizers) <= set(inserted)


def test_hostile_tokens_survive_as_text(tmp_path: Path) -> None:
    plan = sample_plan(1)
    del plan.sites[1:]
    (site,) = plan.sites
    site.evidence.token_text = "\u202e\x00<b>\n"
    node = ir.node("MatMul", [ir.Value(name="a"), ir.Value(name="b")], name=site.node)
    graph = ir.Graph(list(node.inputs), node.outputs, nodes=[node], name="g", opset_imports={"": 21})
    model = ir.Model(graph, ir_version=10)
    Annotate(plan)(model)
    ir.save(model, tmp_path / "model.onnx")
    (found,) = onnx.load(tmp_path / "model.onnx").graph.node
    assert notes_of(found)["token"] == "'\\u202e\\x00<b>\\n'"

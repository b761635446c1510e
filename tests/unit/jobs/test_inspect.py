"""Inspection of a file with FP8 sites: they are listed like any other, and the file is known to be quantized."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from rich.console import Console

from spq_graph.documents.findings import InspectedSite, Inspection
from spq_graph.documents.plan import Reason
from spq_graph.jobs.compare import compare
from spq_graph.jobs.inspect import inspect
from spq_graph.passes.base.marks import ADDED, PREFIX
from spq_graph.passes.files.read import load_graph
from spq_graph.passes.find.quantized import refuse_quantized
from spq_graph.terms.errors import CheckError, GraphError
from spq_graph.terms.precision import Precision
from spq_graph.terms.site import Role, Site
from spq_graph.views.inspected import show_difference, show_inspection
from tests.support.decoder_graphs import Decoder, decoder, token_feeds
from tests.support.graphs import Glu
from tests.support.inserting import applied, plan_for

CHOSEN = {
    Role.GLU_DOWN: Precision.FP8_E5M2,
    Role.ATTN_O: Precision.W8FP8A16,
    Role.GLU_UP: Precision.FP8_E4M3,
    Role.LM_HEAD: Precision.FP32,
}


def choose(site: Site) -> Precision:
    return CHOSEN.get(site.role, Precision.INT8)


def products(found: Inspection) -> list[InspectedSite]:
    """Its sites but the embedding, of which these plans say nothing."""
    return [site for site in found.sites if site.role is not Role.EMBEDDING]


def without_notes(path: Path) -> Path:
    """The same file without the view of its plan, so that the graph alone must tell."""
    model = onnx.load(path)
    for node in model.graph.node:
        kept = [p for p in node.metadata_props if not p.key.startswith(PREFIX) or p.key == ADDED]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
    onnx.save(model, path.with_name("bare.onnx"))
    return path.with_name("bare.onnx")


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
@pytest.mark.parametrize("noted", [True, False])
@pytest.mark.parametrize("opset", [17, 21])
def test_every_site_is_listed(tmp_path: Path, dtype: type[np.generic], noted: bool, opset: int) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(decoder(Decoder(glu=Glu(width=32, inner=33, bias=True)), dtype=dtype, opset=opset), path)
    plan = plan_for(path, token_feeds(), choose)
    made = applied(path, plan)
    found = inspect(made if noted else without_notes(made))
    assert found.glu_blocks == 2
    assert {one.node for one in found.unmatched} == ({"Gather_0"} if dtype is np.float64 else set())
    listed = [(s.key, s.role, s.site.layer, s.shape, s.precision) for s in products(found)]
    # Without notes a head that is to be computed in fp32 shows what it is stored in.
    head = "fp16" if dtype is np.float16 and not noted else "fp32"
    assert listed == [
        (s.key, s.role, s.layer, s.shape, head if s.role is Role.LM_HEAD else s.precision) for s in plan.sites
    ]


def test_words_that_we_do_not_know_are_told_as_the_file_has_them(tmp_path: Path) -> None:
    """A later version, or another program, may note what it likes: it is shown, and explained as far as we can."""
    path = tmp_path / "model.onnx"
    onnx.save(decoder(Decoder(layers=1)), path)
    made = applied(path, plan_for(path, token_feeds(), Precision.INT8))
    model = onnx.load(made)
    odd = {"reason": "full\x1b moon", "precision": "w3[b]a5", "role": "glu_sideways"}
    for note in (note for node in model.graph.node for note in node.metadata_props):
        note.value = odd.get(note.key.removeprefix(PREFIX), note.value)
    onnx.save(model, made)
    found = inspect(made)
    assert {(site.precision, site.reason) for site in products(found)} == {("w3[b]a5", "full\x1b moon")}
    assert {site.role for site in found.sites} == {site.role for site in inspect(path).sites}
    told = json.loads(json.dumps(found.to_dict()))["sites"]
    assert all(site["reason"] == "full\x1b moon" for site in told if site["role"] != "embedding")
    for why in (False, True):
        console = Console(file=io.StringIO(), width=200)
        show_inspection(found, console, why=why)
        assert isinstance(console.file, io.StringIO)
        text = console.file.getvalue()
        assert "w3[b]a5" in text
        assert ("moon: a reason that this version does not know" in text) == why
        assert "\x1b" not in text
    console = Console(file=io.StringIO(), width=200)
    show_difference(compare(made, path), console)


def test_a_reason_of_ours_is_one(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(decoder(Decoder(layers=1)), path)
    made = applied(path, plan_for(path, token_feeds(), Precision.INT8))
    assert {type(site.reason) for site in products(inspect(made))} == {Reason}
    assert {type(s["reason"]) for s in inspect(made).to_dict()["sites"] if s["role"] != "embedding"} == {str}
    assert {type(site.reason) for site in inspect(path).sites} == {type(None)}


def test_the_file_is_read_once_and_measured_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    path, ids = tmp_path / "model.onnx", tmp_path / "ids.npz"
    onnx.save(decoder(Decoder(layers=1)), path)
    np.savez(ids, input_ids=np.random.default_rng(0).integers(0, 16, (4, 8)))
    read: list[Path] = []

    def counting(file: Path) -> ir.Model:
        read.append(file)
        return load_graph(file)

    for module in ("spq_graph.jobs.inspect", "spq_graph.passes.adapt.prepared"):
        monkeypatch.setattr(f"{module}.load_graph", counting)
    found = inspect(path, calibration=ids)
    assert read == [path]
    assert found.measured is not None
    assert found.measured.tokens == 32


def test_a_pass_out_of_order_is_a_failed_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Early(ir.passes.InPlacePass):
        def requires(self, model: ir.Model) -> None:
            raise ir.passes.PreconditionError("too early")

        def call(self, model: ir.Model) -> ir.passes.PassResult:
            return ir.passes.PassResult(model, modified=False)

    path = tmp_path / "model.onnx"
    onnx.save(decoder(Decoder(layers=1)), path)
    monkeypatch.setattr("spq_graph.jobs.inspect.Canonicalize", Early)
    with pytest.raises(CheckError, match="Early: too early"):
        inspect(path)


def test_is_not_taken_for_a_source(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(decoder(Decoder(layers=1)), path)
    made = applied(path, plan_for(path, token_feeds(), Precision.W8FP8A16))
    with pytest.raises(GraphError, match=r"quantized already \(8 Fp8MatMul\)"):
        refuse_quantized(load_graph(made), made)


@pytest.mark.parametrize(
    ("bits", "level", "told"),
    [
        (8, 4, "w8a8_block"),
        (8, 1, "w8a16"),
        (8, None, "w8a16"),
        (4, 4, "w4a8"),
        (4, 0, "w4a16"),
        (None, None, "w4a16"),  # 4 is ONNX Runtime's default
        (2, 4, "w2a8"),
    ],
)
def test_blocks_of_others_are_told_by_bits_and_level(
    tmp_path: Path, bits: int | None, level: int | None, told: str
) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(decoder(Decoder(layers=1, glu=Glu(width=32, inner=32))), path)
    model = onnx.load(without_notes(applied(path, plan_for(path, token_feeds(), Precision.W8A8_BLOCK))))
    blocks = [node for node in model.graph.node if node.op_type == "MatMulNBits"]
    wanted = {"bits": bits, "accuracy_level": level}
    for node in blocks:
        kept = [a for a in node.attribute if a.name not in wanted]
        del node.attribute[:]
        node.attribute.extend(kept)
        node.attribute.extend(
            onnx.helper.make_attribute(name, value) for name, value in wanted.items() if value is not None
        )
    onnx.save(model, path)
    assert {site.precision for site in products(inspect(path))} == {told}


def test_a_grid_that_the_first_edition_noted_has_the_name_of_today(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(decoder(Decoder(layers=1, glu=Glu(width=32, inner=32))), path)
    made = applied(path, plan_for(path, token_feeds(), Precision.INT6_IN_8))
    model = onnx.load(made)
    for note in (note for node in model.graph.node for note in node.metadata_props):
        note.value = "int6" if note.key == f"{PREFIX}precision" else note.value
    onnx.save(model, made)
    assert {site.precision for site in products(inspect(made))} == {"int6_in_8"}

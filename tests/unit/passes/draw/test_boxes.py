"""One layer drawn from the graph itself: what is shown one by one, what together, and what each reads."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest

from spq_graph.documents.drawing import Box
from spq_graph.documents.plan import Plan
from spq_graph.passes.canon.canonicalize import Canonicalize
from spq_graph.passes.draw.boxes import draw_layer, layer_to_draw
from spq_graph.passes.files.read import load_graph
from spq_graph.terms.precision import Precision
from spq_graph.terms.site import Role, Site
from spq_graph.terms.targets import Target
from tests.support.decoder_graphs import Decoder, decoder, token_feeds
from tests.support.graphs import Glu
from tests.support.inserting import applied, plan_for

GLU = Glu(width=32, inner=33)


def choose(site: Site) -> Precision:
    return {Role.GLU_DOWN: Precision.FP8_E4M3, Role.LM_HEAD: Precision.FP32}.get(site.role, Precision.INT8)


def drawn(path: Path, plan: Plan, layer: int) -> list[Box]:
    graph = load_graph(path)
    Canonicalize()(graph)
    return draw_layer(graph, plan.sites, layer)


def made(folder: Path, shape: Decoder, dtype: type[np.generic] = np.float32) -> tuple[Path, Path, Plan]:
    path = folder / "model.onnx"
    onnx.save(decoder(shape, dtype=dtype), path)
    plan = plan_for(path, token_feeds(), choose)
    return path, applied(path, plan), plan


def lines(boxes: list[Box]) -> list[str]:
    return [f"{box.kind} {box.title} {box.reads}" for box in boxes]


def test_a_layer_before_and_after(tmp_path: Path) -> None:
    source, artifact, plan = made(tmp_path, Decoder(glu=GLU, layers=3))
    before, after = drawn(source, plan, 1), drawn(artifact, plan, 1)
    assert not [box for box in before if box.kind == "quantizer"]
    assert [box.title for box in before if box.kind in ("site", "kept")] == [
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    ]
    assert before[0].kind == "stream"
    assert (before[1].title, before[1].reads) == ("normalization", [0])
    assert (before[-1].title, len(before[-1].reads)) == ("residual", 2)
    quantizers = [box for box in after if box.kind == "quantizer"]
    assert [box.title for box in quantizers] == ["QuantizeLinear → DequantizeLinear"] * 3
    assert all("zero point" in box.detail for box in quantizers)
    readers = [[box.title for box in after if after.index(one) in box.reads] for one in quantizers]
    assert readers == [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"]]
    (kept,) = [box for box in after if box.kind == "kept"]
    assert (kept.title, kept.detail) == ("down_proj", "Fp8MatMul 33 × 32\nfp8_e4m3")
    without = [box.title for box in after if box.kind != "quantizer"]
    assert without == [box.title for box in before]


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_every_layer_looks_alike_and_boxes_hold_each_node_once(tmp_path: Path, layer: int) -> None:
    source, artifact, plan = made(tmp_path, Decoder(glu=GLU, layers=3))
    shapes = {tuple(lines(drawn(path, plan, layer))) for path in (artifact,)} | {tuple(lines(drawn(artifact, plan, 1)))}
    assert len(shapes) == 1
    names = {node.name for node in onnx.load(artifact, load_external_data=False).graph.node}
    nodes = [name for box in drawn(artifact, plan, layer) for name in box.nodes]
    assert len(nodes) == len(set(nodes))
    assert set(nodes) <= names
    assert all(box.count == len(box.nodes) for box in drawn(source, plan, layer))
    for number, box in enumerate(drawn(artifact, plan, layer)):
        assert all(above < number for above in box.reads)


def test_half_precision_shows_its_casts(tmp_path: Path) -> None:
    _, artifact, plan = made(tmp_path, Decoder(glu=GLU), np.float16)
    titles = [box.title for box in drawn(artifact, plan, 1) if box.kind == "quantizer"]
    assert any("Cast → QuantizeLinear → DequantizeLinear" in title for title in titles)


@pytest.mark.parametrize(
    ("target", "high", "codes", "product", "kept"),
    [
        ("cpu", Precision.W8A16, r"uint8, scale [\d.]+, zero point \d+", "MatMul 32 × 33\nint8 weight → DQ", "w8a16"),
        ("cuda", Precision.W8A16, r"int8, scale [\d.]+, zero point 0", "MatMulInteger 32 × 33\nint8 weight", "w8a16"),
        ("tensorrt", Precision.FP16, r"int8, scale [\d.]+, zero point 0", "MatMul 32 × 33\nint8 weight → DQ", "fp16"),
    ],
)
def test_numbers_are_those_of_the_target(
    tmp_path: Path, target: Target, high: Precision, codes: str, product: str, kept: str
) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(decoder(Decoder(glu=GLU)), path)
    plan = plan_for(path, token_feeds(), lambda s: high if s.role is Role.GLU_DOWN else choose(s), target=target)
    boxes = drawn(applied(path, plan), plan, 1)
    quantizers = [box.detail for box in boxes if "QuantizeLinear" in box.title]
    assert len(quantizers) == 3
    assert [detail for detail in quantizers if not re.fullmatch(codes, detail)] == []
    assert {box.title: box.detail for box in boxes}["gate_proj"] == product
    assert {box.title: box.detail for box in boxes}["down_proj"].endswith(f"\n{kept}")


def test_codes_in_fp8_have_no_zero_point(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(decoder(Decoder(glu=GLU)), path)
    plan = plan_for(path, token_feeds(), choose, target="tensorrt")
    boxes = drawn(applied(path, plan), plan, 1)
    assert [box for box in boxes if re.fullmatch(r"float8e4m3fn, scale [\d.e-]+", box.detail)]


def test_of_several_experts_one_is_drawn_and_the_others_are_counted(tmp_path: Path) -> None:
    _, artifact, plan = made(tmp_path, Decoder(glu=GLU, experts=4))
    boxes = drawn(artifact, plan, 1)
    assert len([box for box in boxes if box.title == "gate_proj"]) == 1
    assert any(box.title == "9 products of other experts" for box in boxes)
    assert len(boxes) < 30


def test_the_layer_with_the_largest_kept_spike_is_chosen(tmp_path: Path) -> None:
    _, _, plan = made(tmp_path, Decoder(glu=GLU, layers=3))
    for site in plan.sites:
        site.evidence.ratio = 500.0 if site.precision is Precision.INT8 and site.layer == 2 else 3.0
        if site.precision is Precision.FP8_E4M3 and site.layer == 1:
            site.evidence.ratio = 40.0
    assert layer_to_draw(plan.sites) == 1
    assert layer_to_draw([]) is None
    assert drawn(tmp_path / "model.onnx", plan, 7) == []

"""Embeddings and heads in 8 bits by block compute what their definition says, and what is tied is stored once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from spq_graph.passes.adapt.prepared import prepared
from spq_graph.passes.apply import apply_plan, check_applied
from spq_graph.passes.files.read import load_graph
from spq_graph.passes.files.save import save_model
from spq_graph.terms.errors import UsageError
from spq_graph.terms.precision import Precision
from spq_graph.terms.site import Role
from spq_graph.terms.targets import PROFILES
from tests.support.inserting import run
from tests.support.tables import Ends, by_block, plan_of, size_of_constants

TABLE = {Role.EMBEDDING: Precision.W8A16}
BOTH = {**TABLE, Role.LM_HEAD: Precision.W8A8_BLOCK}
TARGETS = [name for name, profile in PROFILES.items() if profile.lookup is not None]
KINDS = {
    "plain": Ends(),
    "untied": Ends(head="own"),
    "one block and a part": Ends(channels=50),
    "many blocks": Ends(channels=192, tokens=70),
    "fewer channels than a block": Ends(channels=20),
    "scaled": Ends(scale=8.0),
    "three lookups": Ends(lookups=3),
    "ids in a row": Ends(axes=1),
    "ids with three axes": Ends(axes=3),
    "float16": Ends(half=ir.DataType.FLOAT16),
    "float16, part of a block": Ends(half=ir.DataType.FLOAT16, channels=50),
    "bfloat16": Ends(half=ir.DataType.BFLOAT16),
}
HEADS = {
    "transposed": Ends(),
    "gemm": Ends(head="gemm", axes=1),
    "gemm with bias": Ends(head="gemm", axes=1, bias=True),
    "bias": Ends(bias=True),
    "capped": Ends(capped=True, scale=8.0),
    "own": Ends(head="own"),
    "wide": Ends(channels=192, tokens=70),
    "part of a block": Ends(channels=50),
    "float16": Ends(half=ir.DataType.FLOAT16),
    "bfloat16": Ends(half=ir.DataType.BFLOAT16),
}


def block_of(channels: int) -> int:
    return next((block for block in (128, 64, 32) if channels % block == 0), 32)


def made(folder: Path, ends: Ends, precisions: dict[Role, Precision], target: str = "cpu") -> Path:
    """What a plan makes of such a graph, with what stands for the target on this machine; verified where it is one."""
    path = ends.write(folder / "model.onnx")
    plan = plan_of(path, precisions, target=target)
    profile, source = PROFILES[target], prepared(path)
    save_model(apply_plan(source, plan, profile.emulation), folder / "made.onnx")
    save_model(apply_plan(source, plan), folder / "delivered.onnx")
    check_applied(load_graph(folder / "delivered.onnx"), source, plan)
    return folder / "made.onnx"


def rounded(array: np.ndarray, ends: Ends) -> np.ndarray:
    """As the graph holds it."""
    return array.astype(ends.half.numpy()).astype(np.float32)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_lookup_gives_the_rows_that_the_definition_gives(tmp_path: Path, kind: str, target: str) -> None:
    ends = KINDS[kind]
    path = made(tmp_path, ends, TABLE, target)
    (hidden,) = run(path, ends.feeds(), ["hidden"])
    table = rounded(by_block(ends.table.astype(np.float32), block_of(ends.channels)), ends)
    expected, _ = ends.reference(table, ends.weight)
    tolerance = 2e-6 if ends.half is not ir.DataType.FLOAT16 else 2e-3
    assert np.abs(hidden.astype(np.float64) - expected).max() < tolerance
    as_it_was, _ = ends.reference(ends.table.astype(np.float32), ends.weight)
    assert np.abs(hidden - as_it_was).max() > 1e-4  # it is rounded


def test_both_forms_give_the_same_rows_to_the_bit(tmp_path: Path) -> None:
    rows = []
    for target in TARGETS:
        (tmp_path / target).mkdir()
        path = made(tmp_path / target, Ends(channels=192), TABLE, target)
        rows.append(run(path, Ends(channels=192).feeds(), ["hidden"])[0])
    assert all(np.array_equal(rows[0], other) for other in rows[1:])


@pytest.mark.parametrize("precision", [Precision.W8A8_BLOCK, Precision.W8A8_BLOCK32, Precision.W8A16])
@pytest.mark.parametrize("kind", HEADS)
def test_a_head_gives_what_its_codes_give(tmp_path: Path, kind: str, precision: Precision) -> None:
    ends = HEADS[kind]
    path = made(tmp_path, ends, {**TABLE, Role.LM_HEAD: precision})
    hidden, logits = run(path, ends.feeds(), ["hidden", "logits"])
    block = precision.row.block or block_of(ends.channels)
    weight = by_block(ends.weight.T.astype(np.float32), block).T
    read = hidden.astype(np.float32)
    if precision is not Precision.W8A16:
        flat = read.reshape(-1, ends.channels)
        read = by_block(flat, block).reshape(read.shape)
    expected = read.astype(np.float64) @ weight.astype(np.float64) + (
        ends.offset.astype(np.float64) if ends.bias else 0
    )
    expected = 30 * np.tanh(expected / 30) if ends.capped else expected
    tolerance = 1e-5 if ends.half is not ir.DataType.FLOAT16 else 2e-3
    off, exact = np.abs(logits - expected), tolerance * max(1.0, float(np.abs(expected).max()))
    # Where an activation lies halfway between two codes, the kernel may take the other one.
    assert (off.max(axis=-1) > exact).mean() < 0.02
    assert off.max() <= exact + float(np.abs(weight).max()) / 127


@pytest.mark.parametrize("precision", [Precision.W8A8_BLOCK, Precision.W8A8_BLOCK32])
@pytest.mark.parametrize("half", [ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16])
@pytest.mark.parametrize("head", ["transposed", "gemm", "own"])
def test_what_is_tied_is_stored_once(tmp_path: Path, head: str, half: ir.DataType, precision: Precision) -> None:
    ends = Ends(tokens=500, channels=192, head=head, axes=1, half=half, lookups=2)  # type: ignore[arg-type]
    path = made(tmp_path, ends, {**TABLE, Role.LM_HEAD: precision})
    blocks = 192 // (precision.row.block or 64)
    once = 500 * 192 + 500 * blocks * 4
    apart = 0 if precision.row.block is None else 500 * 192 + 500 * 3 * 4
    stored = size_of_constants(path)
    small = 200  # shapes and bounds
    if head == "own":
        assert once + (apart or once) <= stored <= once + (apart or once) + small
    else:
        assert once <= stored <= once + small
    matrices = [t for t in onnx.load(path).graph.initializer if t.data_type == onnx.TensorProto.UINT8]
    assert len(matrices) == (2 if head == "own" else 1)


def by_row(table: np.ndarray) -> np.ndarray:
    """What 8-bit codes with a scale for each row make of a table [tokens, channels], float32: from the definition."""
    wide = table.astype(np.float32)
    scales = np.abs(wide).max(axis=1, keepdims=True) / np.float32(127)
    codes = np.rint(np.divide(wide, scales, out=np.zeros_like(wide), where=scales > 0))
    return np.asarray(codes * scales)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "untied"])
def test_a_table_that_is_tied_to_a_head_by_token_is_read_from_its_panels(tmp_path: Path, kind: str) -> None:
    ends = KINDS[kind]
    path = made(tmp_path, ends, {**TABLE, Role.LM_HEAD: Precision.W8A8_TOKEN})
    (hidden,) = run(path, ends.feeds(), ["hidden"])
    expected, _ = ends.reference(rounded(by_row(ends.table), ends), ends.weight)
    tolerance = 2e-6 if ends.half is not ir.DataType.FLOAT16 else 2e-3
    assert np.abs(hidden.astype(np.float64) - expected).max() < tolerance
    panels = -(-ends.tokens // 32) * -(-ends.channels // 64) * 2048
    assert panels + 4 * ends.tokens <= size_of_constants(path) <= panels + 4 * ends.tokens + 200
    operators = [node.op_type for node in onnx.load(path).graph.node if node.domain == "spq"]
    assert operators == [*["Int8Gather"] * ends.lookups, "Int8MatMulByToken"]


def test_a_table_that_another_reads_as_it_is_stays_beside_the_codes(tmp_path: Path) -> None:
    path = made(tmp_path, Ends(), TABLE)
    kinds = sorted(t.data_type for t in onnx.load(path).graph.initializer if len(t.dims) > 1)
    assert kinds == [onnx.TensorProto.FLOAT, onnx.TensorProto.UINT8]


@pytest.mark.parametrize("precision", [Precision.INT8, Precision.FP8_E4M3])
def test_what_a_table_cannot_be_is_refused(tmp_path: Path, precision: Precision) -> None:
    path = Ends().write(tmp_path / "model.onnx")
    with pytest.raises(UsageError, match="an embedding is w8a16 or stays as it is"):
        apply_plan(path, plan_of(path, {Role.EMBEDDING: precision}))


def test_tensorrt_has_no_lookup_in_codes(tmp_path: Path) -> None:
    path = Ends().write(tmp_path / "model.onnx")
    with pytest.raises(UsageError, match="TensorRT, strongly typed has no lookup in 8-bit codes"):
        apply_plan(path, plan_of(path, TABLE, target="tensorrt"))

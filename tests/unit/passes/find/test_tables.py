from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto

from spq_graph.passes.find.identify import identify
from spq_graph.terms.held import Held
from spq_graph.terms.precision import Precision
from spq_graph.terms.site import Role
from tests.support.decoder_graphs import Decoder, decoder
from tests.support.graphs import Builder
from tests.support.tables import Ends, found_in


def test_a_lookup_is_a_site_with_tokens_and_channels(tmp_path: Path) -> None:
    found = found_in(Ends().write(tmp_path / "model.onnx"))
    (table,) = found.tables
    assert (table.key, table.role, table.shape) == ("model.embed_tokens", Role.EMBEDDING, (40, 64))
    assert (table.input, table.layer) == ("input_ids", None)
    assert table not in found.sites
    assert found.every == [*found.sites, table]
    assert found.stored[table.key] is Precision.FP32


def test_tied_ends_are_held_in_one_tensor(tmp_path: Path) -> None:
    for head in ("transposed", "gemm"):
        ends = Ends(head=head, axes=1)  # type: ignore[arg-type]
        found = found_in(ends.write(tmp_path / "model.onnx"))
        assert found.held["model.embed_tokens"] == Held("const_0", 40 * 64 * 4, 40 * (64 + 4))
        assert found.held["lm_head"] == found.held["model.embed_tokens"]
    found = found_in(Ends(head="own").write(tmp_path / "model.onnx"))
    assert found.held["lm_head"].table != found.held["model.embed_tokens"].table


@pytest.mark.parametrize(("half", "precision"), [("FLOAT16", Precision.FP16), ("BFLOAT16", Precision.BF16)])
def test_half_precision(tmp_path: Path, half: str, precision: Precision) -> None:
    found = found_in(Ends(half=ir.DataType[half]).write(tmp_path / "model.onnx"))
    assert found.stored["model.embed_tokens"] is precision
    assert found.held["model.embed_tokens"] == found.held["lm_head"] == Held("const_0", 40 * 64 * 2, 40 * (64 + 4))


def test_every_lookup_has_a_key_of_its_own(tmp_path: Path) -> None:
    tables = found_in(Ends(lookups=3).write(tmp_path / "model.onnx")).tables
    assert len({site.key for site in tables}) == 3
    assert all(site.key.startswith("model.embed_tokens") for site in tables)


def test_what_others_read_stays(tmp_path: Path) -> None:
    path = Ends(head="own").write(tmp_path / "model.onnx")
    model = onnx.load(path)
    model.graph.node.append(onnx.helper.make_node("ReduceMax", ["const_0"], ["largest"], keepdims=0))
    model.graph.output.append(onnx.helper.make_tensor_value_info("largest", TensorProto.FLOAT, []))
    onnx.save(model, path)
    held = found_in(path).held
    assert held["model.embed_tokens"].by_others
    assert not held["lm_head"].by_others


def test_tables_that_no_token_is_looked_up_in_are_none() -> None:
    shape = Decoder(layers=1)  # whose rotary embedding is looked up by position
    found = identify(_prepared(decoder(shape)))
    assert [site.key for site in found.tables] == ["model.embed_tokens"]


@pytest.mark.parametrize(
    ("dtype", "ids", "reason"),
    [
        (TensorProto.DOUBLE, ["b", "s"], "its table holds float64"),
        (TensorProto.FLOAT, None, "it is not known how many axes its ids have"),
    ],
)
def test_why_a_lookup_is_none(dtype: int, ids: list[str] | None, reason: str) -> None:
    b = Builder()
    table = b.const(b.random(40, 32), onnx.helper.tensor_dtype_to_np_dtype(dtype))
    b.op("Gather", table, "input_ids", outputs=["y"])
    model = b.model({"input_ids": (TensorProto.INT64, ["b", "s"])}, {"y": (dtype, ["b", "s", 32])})
    if ids is None:
        model.graph.input[0].type.tensor_type.ClearField("shape")
    found = identify(_prepared(model))
    assert not found.tables
    assert any(reason in entry.reason for entry in found.unmatched)


@pytest.mark.parametrize("axis", [1, -1])
def test_columns_of_a_table_are_no_rows(axis: int) -> None:
    b = Builder()
    b.op("Gather", b.const(b.random(40, 32)), "input_ids", outputs=["y"], axis=axis)
    model = b.model({"input_ids": (TensorProto.INT64, ["s"])}, {"y": (TensorProto.FLOAT, [40, "s"])})
    assert not identify(_prepared(model)).tables


def _prepared(model: onnx.ModelProto) -> ir.Model:
    from spq_graph.passes.canon.canonicalize import Canonicalize

    graph = ir.from_proto(model)
    Canonicalize()(graph)
    return graph

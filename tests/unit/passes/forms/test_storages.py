"""Nothing is written that does not stand for the weight that it was made of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from spq_graph.passes.apply import apply_plan
from spq_graph.passes.base.operand import Operand
from spq_graph.passes.base.values import Weight
from spq_graph.passes.files.save import save_model
from spq_graph.passes.forms import storages
from spq_graph.terms.errors import CheckError
from spq_graph.terms.precision import Precision
from tests.support.codes import flip_one
from tests.support.decoder_graphs import Decoder, decoder, token_feeds
from tests.support.inserting import plan_for


@pytest.mark.parametrize("precision", [Precision.INT8, Precision.W8A8_BLOCK, Precision.FP8_E4M3])
def test_an_encoder_that_errs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Precision) -> None:
    """What is written is compared while it is made: then nobody has to read it again."""
    path = tmp_path / "model.onnx"
    onnx.save(decoder(Decoder(layers=1)), path)
    model = apply_plan(path, plan_for(path, token_feeds(), precision))
    for name in ("weight_codes", "blocked_codes", "fp8_weight_codes"):
        right = getattr(storages, name)
        monkeypatch.setattr(storages, name, lambda *given, right=right: flip_one(right(*given)))
    with pytest.raises(CheckError, match="what was made of a weight does not stand for it") as caught:
        save_model(model, tmp_path / "out.onnx")
    assert caught.value.where


@pytest.mark.parametrize("rows", [33, 64])
def test_what_fills_the_last_block_is_zero(rows: int) -> None:
    weight = np.random.default_rng(0).standard_normal((rows, 3)).astype(np.float32)
    blocks = storages.Blocks(Operand(Weight(ir.Value(name="W", const_value=ir.tensor(weight)), ()), flipped=False))
    stored = blocks.tensor("W.codes", "site").numpy()
    assert stored.shape == blocks.shape == (3, -(-rows // blocks.block), blocks.block)
    flat = stored.reshape(3, -1)
    assert (flat[:, rows:] == 128).all()
    assert (blocks.unpack(stored) == flat[:, :rows].T).all()

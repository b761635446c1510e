"""Outliers of planted models: what is found is what was planted, and at zero the file computes what is said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

pytest.importorskip("onnxruntime")

from spq_graph.documents.outliers import Outliers
from spq_graph.jobs.inspect import inspect
from spq_graph.terms.errors import ActivationError
from spq_graph.terms.precision import Precision
from tests.support.command import contents
from tests.support.decoder_graphs import Decoder, decoder
from tests.support.decoders import write_decoder
from tests.support.graphs import Glu
from tests.support.inserting import applied, plan_for
from tests.support.super_weights import (
    COLUMN,
    DOWN,
    FORMS,
    IDS,
    LAYER,
    PROMPT,
    ROW,
    WEIGHT,
    Form,
    given,
    write_super_weight,
)


def outliers(path: Path, prompt: str = PROMPT, only: str | None = None) -> Outliers:
    found = inspect(path, only, outliers=prompt).outliers
    assert found is not None
    return found


@pytest.mark.parametrize("form", FORMS)
def test_a_planted_super_weight_is_found_where_it_is(form: Form, tmp_path: Path) -> None:
    path = write_super_weight(tmp_path / "model.onnx", form)
    before = contents(tmp_path)
    found = outliers(path)
    (one,) = found.super_weights
    assert (one.key, one.layer, one.row, one.column) == (DOWN, LAYER, ROW, COLUMN)
    assert one.weight == WEIGHT
    result = "rows" if form == "gemm" else f"{DOWN}.out"
    planted = given(path, value=result)
    assert one.position == 0
    assert one.spike == pytest.approx(planted[0, ROW], rel=1e-5)
    assert one.share == pytest.approx(given(path, value="layers.1.mlp.product.out")[0, COLUMN] * WEIGHT / one.spike)
    without = given(write_super_weight(tmp_path / "without.onnx", form, weight=0.0), value=result)
    assert abs(one.after) == pytest.approx(np.abs(without).max(), rel=1e-4)
    assert one.kl is not None
    assert one.kl > 0.05
    assert (found.runs, found.complete, found.unexplained) == (2, True, [])
    assert {name: digest for name, digest in contents(tmp_path).items() if name in before} == before


def test_what_is_extreme_is_what_the_file_computes(tmp_path: Path) -> None:
    path = write_super_weight(tmp_path / "model.onnx")
    down = next(one for one in outliers(path).downs if one.key == DOWN)
    for seen, value in ((down.input, "layers.1.mlp.product.out"), (down.output, f"{DOWN}.out")):
        expected = given(path, value=value)
        assert seen is not None
        assert abs(seen.value) == pytest.approx(np.abs(expected).max(), rel=1e-5)
        assert seen.to_mean == pytest.approx(np.abs(expected).max() / np.abs(expected).mean(), rel=1e-4)
        assert seen.to_median == pytest.approx(np.abs(expected).max() / np.median(np.abs(expected)), rel=1e-4)
    assert down.input is not None
    assert (down.input.channel, down.input.systematic) == (COLUMN, True)
    stream = given(path, value="layers.1.after_mlp.out")
    assert down.residual is not None
    assert down.residual.channel == ROW
    assert down.residual.massive
    assert down.residual.value == pytest.approx(stream[0, ROW], rel=1e-5)


def test_a_spike_that_nothing_reads_has_no_super_weight(tmp_path: Path) -> None:
    found = outliers(write_super_weight(tmp_path / "model.onnx", weight=0.0))
    assert (found.super_weights, found.unexplained, found.runs) == ([], [], 1)
    down = next(one for one in found.downs if one.key == DOWN)
    assert down.input is not None
    assert down.output is not None
    assert down.residual is not None
    assert (down.input.systematic, down.output.systematic, down.residual.massive) == (True, False, False)


def test_a_spike_that_many_weights_make_is_put_down_to_none(tmp_path: Path) -> None:
    """A whole column of the embedding's channel times a row of equal weights: each makes less than a tenth."""
    path = write_super_weight(tmp_path / "model.onnx", weight=0.0)
    model = onnx.load(path)
    held = {one.name: one for one in model.graph.initializer}
    down = onnx.numpy_helper.to_array(held[f"{DOWN}.weight"]).copy()
    reads = given(path, value="layers.1.mlp.product.out")[0]
    down[:, ROW] = np.where(np.arange(COLUMN + 1) == COLUMN, 0.0, 1000.0 * np.sign(reads))
    held[f"{DOWN}.weight"].CopyFrom(onnx.numpy_helper.from_array(down, f"{DOWN}.weight"))
    onnx.save(model, path)
    found = outliers(path, only=DOWN)
    (one,) = found.unexplained
    assert (one.key, one.channel, found.super_weights) == (DOWN, ROW, [])
    assert "of its largest input makes" in one.why


def test_only_the_named_site_is_looked_at(tmp_path: Path) -> None:
    path = write_super_weight(tmp_path / "model.onnx")
    assert [one.key for one in outliers(path, only="layers.0.*").downs] == ["layers.0.mlp.down_proj"]
    assert outliers(path, only="*q_proj").downs == []


def test_a_graph_that_insists_on_its_shape(tmp_path: Path) -> None:
    """Rows below and padding behind the prompt are not counted, and what the length has no room for is left out."""
    path = write_decoder(tmp_path / "model.onnx", layers=1, fixed=(2, 16))
    free = write_decoder(tmp_path / "free.onnx", layers=1)
    short = outliers(path, "1 2 3 4")
    assert (len(short.tokens), short.left_out) == (4, 0)
    (seen,), (expected,) = short.downs, outliers(free, "1 2 3 4").downs
    for one, other in ((seen.input, expected.input), (seen.output, expected.output)):
        assert one is not None
        assert other is not None
        assert (one.position, one.channel) == (other.position, other.channel)
        assert one.to_mean == pytest.approx(other.to_mean, rel=1e-4)
    assert (len(outliers(path).tokens), outliers(path).left_out) == (16, len(IDS) - 16)


@pytest.mark.parametrize(
    ("precision", "peeled"),
    [
        (Precision.INT8, 0),
        (Precision.INT8, 2),
        (Precision.W8A8_TOKEN, 0),
        (Precision.W8A16, 0),
        (Precision.FP8_E4M3, 0),
        (Precision.FP16, 0),
    ],
)
def test_of_what_is_quantized_it_is_said_where_the_weight_cannot_be_read(
    precision: Precision, peeled: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What goes in and comes out is seen in any form, an outlier branch with it."""
    monkeypatch.chdir(tmp_path)
    path = write_super_weight(tmp_path / "model.onnx")
    ids = np.array([IDS])
    plan = plan_for(path, {"input_ids": ids, "attention_mask": np.ones_like(ids)}, precision, peeled=peeled)
    made = applied(path, plan)
    before = contents(tmp_path)
    found = outliers(made)
    assert contents(tmp_path) == before
    assert len(found.downs) == 3
    down = next(one for one in found.downs if one.key == DOWN)
    assert down.output is not None
    assert down.output.channel == ROW
    assert abs(down.output.value) == pytest.approx(np.abs(given(path)).max(), rel=0.1)
    assert down.residual is not None
    if precision is Precision.FP16:
        assert [(one.row, one.column, one.weight) for one in found.super_weights][:1] == [(ROW, COLUMN, WEIGHT)]
    else:
        assert down.unread is not None
        assert down.unread.startswith("its weight is quantized (")
        assert down.column is None
        assert [one.key for one in found.unexplained][:1] == [DOWN]


MADE: dict[str, Callable[[], Decoder]] = {
    "experts": lambda: Decoder(experts=3),
    "routed experts": lambda: Decoder(experts=3, routed=True),  # ONNX Runtime adds no float16 at places
    "biases": lambda: Decoder(glu=Glu(bias=True, form="transpose")),
    "with a cache": lambda: Decoder(cache=True),
    "grouped query attention": lambda: Decoder(attention="GroupQueryAttention", glu=Glu(width=16)),
}


@pytest.mark.parametrize(
    ("shape", "dtype"), [*((shape, np.float32) for shape in MADE), ("biases", np.float16), ("experts", np.float16)]
)
def test_other_decoders(shape: str, dtype: type[np.generic], tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(decoder(MADE[shape](), dtype=dtype), path)
    found = outliers(path, "1 2 3 4 5")
    assert len(found.downs) == (6 if "experts" in shape else 2)
    assert all(one.unread is None and one.column is not None for one in found.downs)
    seen = [one for one in found.downs if one.input is not None]
    assert len(seen) == (4 if shape == "routed experts" else len(found.downs)), "one expert gets no token"
    assert all(one.output is not None for one in seen)
    positions = {one.input.position for one in seen if one.input is not None}
    assert "experts" in shape or None not in positions
    assert all((one.residual is None) == ("experts" in shape) for one in found.downs)


def test_what_is_not_finite_is_named(tmp_path: Path) -> None:
    path = write_decoder(tmp_path / "model.onnx", layers=2, broken_layer=1)
    with pytest.raises(ActivationError, match=r"layers\.1"):
        outliers(path, "1 2 3")

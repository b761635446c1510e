"""Quantizers: what must hold for any range and any weight."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spq_graph.passes.numbers.scales import (
    ActivationQuantizer,
    absmax_of,
    block_size_for,
    blocked_codes,
    blocked_scales,
    near,
    scales_to,
    top_code,
    weight_codes,
)
from spq_graph.terms.errors import ActivationError, GraphError

BITS = st.integers(4, 8)
SCHEMES: st.SearchStrategy[Literal["asymmetric", "symmetric"]] = st.sampled_from(["asymmetric", "symmetric"])
FINITE = st.floats(-(2.0**120), 2.0**120, width=32)
ENDS = st.tuples(FINITE, FINITE).map(sorted)
ANY_ENDS = st.tuples(
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
).map(sorted)
Array = np.ndarray[tuple[int, ...], np.dtype[np.float32]]


@st.composite
def weights(draw: st.DrawFn) -> Array:
    """Weights [K, N] of any magnitude from subnormal to huge, some columns of them zero."""
    rows, columns = draw(st.integers(1, 70)), draw(st.integers(1, 5))
    magnitudes = np.array([draw(st.sampled_from([0.0, 1e-42, 1e-38, 1e-20, 1.0, 1e20, 3e38])) for _ in range(columns)])
    unit = np.random.default_rng(draw(st.integers(0, 1000))).uniform(-1, 1, (rows, columns))
    return np.asarray(unit * magnitudes, dtype=np.float32)


def weight_scales(weight: Array, bits: int, granularity: Literal["per_channel", "per_tensor"] = "per_channel") -> Array:
    return scales_to(absmax_of([weight]), top_code(bits), granularity)


def round_trip(quantizer: ActivationQuantizer, values: Array) -> tuple[Array, Array]:
    """Codes and restored values as ONNX defines QuantizeLinear, behind a Clip where there are fewer than 8 bits."""
    if quantizer.bits < 8:
        values = np.clip(values, quantizer.low, quantizer.high)
    with np.errstate(over="ignore"):
        codes = np.clip(np.rint(values / quantizer.scale) + float(quantizer.zero_point), 0, 255)
        return codes, np.asarray((codes - float(quantizer.zero_point)) * float(quantizer.scale))


@given(ends=ANY_ENDS, bits=BITS, scheme=SCHEMES)
def test_zero_is_exact_and_codes_stay_in_range(
    ends: list[float], bits: int, scheme: Literal["asymmetric", "symmetric"]
) -> None:
    quantizer = ActivationQuantizer.fit(ends[0], ends[1], bits, scheme)
    assert np.isfinite([quantizer.scale, quantizer.low, quantizer.high]).all()
    assert quantizer.scale >= np.finfo(np.float32).tiny
    assert quantizer.low <= 0 <= quantizer.high
    codes, restored = round_trip(quantizer, np.array([0.0, *ends, -3e38, 3e38], dtype=np.float32))
    assert restored[0] == 0.0
    smallest, largest = (0, 2**bits - 1) if scheme == "asymmetric" else (129 - 2 ** (bits - 1), 127 + 2 ** (bits - 1))
    assert codes.max() <= largest
    assert codes.min() >= (smallest if bits < 8 else 0)


@given(ends=ENDS, bits=BITS, scheme=SCHEMES, seed=st.integers(0, 99))
def test_within_half_a_step(
    ends: list[float], bits: int, scheme: Literal["asymmetric", "symmetric"], seed: int
) -> None:
    low, high = min(ends[0], 0.0), max(ends[1], 0.0)
    quantizer = ActivationQuantizer.fit(low, high, bits, scheme)
    values = np.random.default_rng(seed).uniform(low, high, 200).astype(np.float32)
    values = np.append(values, np.array([low, high], dtype=np.float32))
    _, restored = round_trip(quantizer, values)
    assert np.all(np.abs(restored - values.astype(np.float64)) <= float(quantizer.scale) * (0.5 + 1e-4))


@pytest.mark.parametrize("bits", range(4, 9))
def test_uses_every_code(bits: int) -> None:
    codes, _ = round_trip(ActivationQuantizer.fit(-1.0, 3.0, bits), np.linspace(-1, 3, 5000, dtype=np.float32))
    assert set(codes) == set(range(2**bits))


@pytest.mark.parametrize(("ends", "zero_point"), [((0, 5), 0), ((2, 5), 0), ((-5, -1), 255), ((-5, 0), 255)])
def test_one_sided(ends: tuple[float, float], zero_point: int) -> None:
    quantizer = ActivationQuantizer.fit(*ends, 8)
    assert int(quantizer.zero_point) == zero_point
    assert float(quantizer.scale) == pytest.approx(5 / 255)


@pytest.mark.parametrize("scheme", ["asymmetric", "symmetric"])
def test_constant_zero(scheme: Literal["asymmetric", "symmetric"]) -> None:
    _, restored = round_trip(ActivationQuantizer.fit(0.0, 0.0, 8, scheme), np.zeros(3, np.float32))
    assert restored.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("ends", [(np.nan, 1.0), (0.0, np.nan), (-np.inf, 0.0), (0.0, np.inf)])
def test_no_range(ends: tuple[float, float]) -> None:
    with pytest.raises(ActivationError, match="no quantizer covers the range"):
        ActivationQuantizer.fit(*ends, 8)


@given(weight=weights(), bits=BITS, granularity=st.sampled_from(["per_channel", "per_tensor"]))
def test_weight_codes(weight: Array, bits: int, granularity: Literal["per_channel", "per_tensor"]) -> None:
    scales = weight_scales(weight, bits, granularity)
    assert scales.dtype == np.float32
    assert scales.shape == ((weight.shape[1],) if granularity == "per_channel" else ())
    assert np.all(np.isfinite(scales) & (scales > 0))
    codes = weight_codes(weight, scales, bits)
    assert codes.dtype == np.int8
    assert np.abs(codes.astype(int)).max() <= 2 ** (bits - 1) - 1
    assert not codes[weight == 0].any()
    restored = codes.astype(np.float64) * scales
    assert np.all(np.abs(restored - weight) <= scales.astype(np.float64) * (0.5 + 1e-4))
    assert near(weight, codes, scales)


@given(weight=weights(), bits=BITS, place=st.integers(0, 10_000), steps=st.sampled_from([-3, -2, 2, 3]))
def test_a_code_that_is_off_by_two_steps_is_far(weight: Array, bits: int, place: int, steps: int) -> None:
    scales = weight_scales(weight, bits)
    codes = weight_codes(weight, scales, bits).astype(np.int16)
    codes.reshape(-1)[place % codes.size] += steps
    assert not near(weight, codes, scales)


@given(weight=weights())
def test_a_scale_that_is_halved_is_far(weight: Array) -> None:
    scales = weight_scales(weight, 8)
    assert near(weight, weight_codes(weight, scales, 8), scales * np.float32(0.5)) is not bool(
        (np.abs(weight) > 1e-30).any()
    )


@given(weight=weights())
def test_blocks(weight: Array) -> None:
    rows, columns = weight.shape
    block = block_size_for(rows)
    by_block = blocked_scales(weight, block)
    assert by_block.shape == (columns, -(-rows // block))
    codes = blocked_codes(weight, by_block, block)
    assert codes.shape == weight.shape
    assert codes.min() >= 1
    scales = np.repeat(by_block.T, block, axis=0)[:rows]
    assert near(weight, codes, scales, zero=128)
    assert not near(weight, codes, scales, zero=126)
    restored = (codes.astype(np.float64) - 128) * scales
    assert np.all(np.abs(restored - weight) <= scales.astype(np.float64) * (0.5 + 1e-4))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weight_that_is_not_finite(value: float) -> None:
    weight = np.ones((4, 3), np.float32)
    weight[2, 1] = value
    for attempt in (
        lambda: weight_scales(weight, 8),
        lambda: weight_scales(weight, 8, "per_tensor"),
        lambda: blocked_scales(weight, 32),
    ):
        with pytest.raises(GraphError, match="NaN or infinity"):
            attempt()


@pytest.mark.parametrize(("rows", "block"), [(256, 128), (192, 64), (96, 32), (33, 32), (1, 32)])
def test_block_size(rows: int, block: int) -> None:
    assert block_size_for(rows) == block

"""FP8 numerics against their definition: every code, every tie, and what must hold for any weight and range."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from spq_graph.passes.numbers.fp8 import (
    E4M3,
    E5M2,
    WEIGHTS,
    Fp8Format,
    activation_scale,
    decode,
    fp8_matmul_reference,
    fp8_near,
    fp8_weight_codes,
    pack_panels,
    panel_shape,
    rounded,
    unpack_panels,
)
from spq_graph.passes.numbers.scales import absmax_of, scales_to
from spq_graph.terms.errors import ActivationError, GraphError
from tests.support.eight_bits import BY_NAME, Array

FORMATS = pytest.mark.parametrize("form", [E4M3, E5M2], ids=["e4m3", "e5m2"])
EITHER = st.sampled_from([E4M3, E5M2])
ONE = np.float32(1.0)


@st.composite
def any_codes(draw: st.DrawFn) -> Array:
    """Codes [K, N] of any size; K odd and N no multiple of 32 as often as not."""
    rows, columns = draw(st.integers(1, 9)), draw(st.integers(1, 70))
    return np.random.default_rng(draw(st.integers(0, 1000))).integers(0, 256, (rows, columns), dtype=np.uint8)


@st.composite
def weights(draw: st.DrawFn) -> Array:
    """Weights [K, N] whose columns have any magnitude from subnormal to huge; some are zero."""
    rows, columns = draw(st.integers(1, 20)), draw(st.integers(1, 5))
    magnitudes = np.array([draw(st.sampled_from([0.0, 1e-44, 1e-38, 4e-36, 1.0, 1e20, 3e38])) for _ in range(columns)])
    unit = np.random.default_rng(draw(st.integers(0, 1000))).uniform(-1, 1, (rows, columns))
    return np.asarray(unit * magnitudes, dtype=np.float32)


class TestPanels:
    @given(codes=any_codes())
    def test_round_trip(self, codes: Array) -> None:
        shape = (codes.shape[0], codes.shape[1])
        panels = pack_panels(codes)
        assert panels.shape == panel_shape(shape)
        assert panels.dtype == np.uint8
        assert panels.flags.c_contiguous
        np.testing.assert_array_equal(unpack_panels(panels, shape), codes)

    @given(codes=any_codes())
    def test_every_byte_is_where_the_contract_says(self, codes: Array) -> None:
        rows, columns = codes.shape
        for (panel, pair, byte), code in np.ndenumerate(pack_panels(codes)):
            l, h, j, p = byte // 16, byte // 8 % 2, byte // 2 % 4, byte % 2  # noqa: E741
            row, column = 2 * pair + p, 32 * panel + 16 * h + 4 * l + j
            assert code == (codes[row, column] if row < rows and column < columns else 0)

    def test_the_formula_of_the_contract(self) -> None:
        codes = np.random.default_rng(0).integers(0, 256, (6, 64), dtype=np.uint8)
        formula = codes.reshape(3, 2, 2, 2, 4, 4).transpose(2, 0, 4, 3, 5, 1).reshape(2, 3, 64)
        np.testing.assert_array_equal(pack_panels(codes), formula)


@FORMATS
class TestFormats:
    def test_all_codes(self, form: Fp8Format) -> None:
        codes = np.arange(256, dtype=np.uint8)
        expected = np.array([BY_NAME[form.name].value(code) for code in range(256)])
        np.testing.assert_array_equal(decode(codes, form), expected)
        assert form.largest == np.nanmax(expected[np.isfinite(expected)])

    def test_every_finite_code_comes_back(self, form: Fp8Format) -> None:
        codes = np.arange(256, dtype=np.uint8)[:, None]
        codes = codes[np.isfinite(decode(codes, form)).ravel()]
        np.testing.assert_array_equal(fp8_weight_codes(decode(codes, form), np.float32([1.0]), form), codes)

    def test_rounding(self, form: Fp8Format) -> None:
        values = BY_NAME[form.name].telling
        assert len(values) > 1000
        expected = BY_NAME[form.name].rounded(values)
        np.testing.assert_array_equal(rounded(values, ONE, form), expected)
        codes = fp8_weight_codes(values[:, None], np.float32([1.0]), form)
        np.testing.assert_array_equal(decode(codes, form).ravel(), expected)

    def test_the_quotient_decides(self, form: Fp8Format) -> None:
        """Ties fall as float32 division makes them, not as multiplication by a reciprocal would."""
        scale = np.float32(3.7)
        values = BY_NAME[form.name].telling
        values = values[np.abs(values) < 1e30] * scale
        expected = BY_NAME[form.name].rounded(values / scale)
        np.testing.assert_array_equal(rounded(values, scale, form), expected)
        assert (BY_NAME[form.name].rounded(values * (ONE / scale)) != expected).any()

    def test_what_is_not_finite_stays(self, form: Fp8Format) -> None:
        values = np.float32([np.inf, -np.inf, np.nan, 1e38])
        found = rounded(values, np.float32(1e-30), form)  # the last one's quotient is beyond float32, itself it is not
        np.testing.assert_array_equal(found, np.float32([np.inf, -np.inf, np.nan, form.largest]))


class TestScales:
    @FORMATS
    def test_covers_the_range(self, form: Fp8Format) -> None:
        assert activation_scale(-3.0, 2.0, form) == np.float32(3.0 / form.largest)
        assert activation_scale(-1.0, 2.0, form) == np.float32(2.0 / form.largest)

    @given(ends=st.tuples(*[st.floats(width=32, allow_nan=False, allow_infinity=False)] * 2), form=EITHER)
    def test_can_be_divided_by(self, ends: tuple[float, float], form: Fp8Format) -> None:
        scale = activation_scale(*ends, form)
        assert scale.dtype == np.float32
        assert np.isfinite(scale)
        assert np.isfinite(np.float32(1.0) / scale)
        largest = np.float32(max(map(abs, ends)))
        restored = rounded(np.atleast_1d(largest), scale, form).astype(np.float64) * float(scale)
        tiny = float(np.finfo(np.float32).tiny)
        if (
            largest >= form.largest * tiny
        ):  # the end of the range is the format's largest number, but for the scale's ulp
            assert abs(restored[0] - float(largest)) <= 2.0**-23 * float(largest)
        else:  # the scale is the smallest there is, and the end any number: half a step off
            step = float(largest) * 2.0 ** -BY_NAME[form.name].mantissa
            assert abs(restored[0] - float(largest)) <= max(step, BY_NAME[form.name].positive[1] * tiny) / 2

    @pytest.mark.parametrize("ends", [(np.nan, 1.0), (0.0, np.inf), (-np.inf, 0.0)])
    def test_range_that_is_not_finite(self, ends: tuple[float, float]) -> None:
        with pytest.raises(ActivationError, match="no FP8 scale covers the range"):
            activation_scale(*ends, E4M3)

    @given(weight=weights(), granularity=st.sampled_from(["per_channel", "per_tensor"]), form=EITHER)
    def test_weights(self, weight: Array, granularity: str, form: Fp8Format) -> None:
        scales = scales_to(absmax_of([weight]), form.largest, granularity)
        assert scales.dtype == np.float32
        assert scales.shape == (() if granularity == "per_tensor" else weight.shape[1:])
        assert np.isfinite(np.float32(1.0) / scales).all()
        codes = fp8_weight_codes(weight, scales, form)
        exact = weight.astype(np.float64) / scales
        restored = decode(codes, form).astype(np.float64)
        # Half a step of the mantissa, or of the smallest number; the quotient is rounded to float32 before.
        mantissa = BY_NAME[form.name].mantissa
        bound = np.maximum(np.abs(exact) * 2.0 ** -(mantissa + 1), BY_NAME[form.name].positive[1] / 2)
        assert (np.abs(restored - exact) <= bound * (1 + 2.0**-20)).all()
        assert fp8_near(weight, codes, scales, form)

    @given(code=st.integers(0, 255), form=EITHER, share=st.floats(-2.0, 2.0))
    def test_near_is_within_half_of_the_gap(self, code: int, form: Fp8Format, share: float) -> None:
        """Between the midpoints to the neighbours, and nowhere else; a code of NaN stands for nothing."""
        values = decode(np.arange(256, dtype=np.uint8), form)
        numbers = np.unique(values[np.isfinite(values)]).astype(np.float64)
        value = float(values[code])
        one = np.ones(1, np.float32)
        if not np.isfinite(value):
            assert not fp8_near(one[None], np.uint8([[code]]), one, form)
            return
        place = int(np.searchsorted(numbers, value))
        gap = abs(numbers[min(max(place + int(np.sign(share)), 0), len(numbers) - 1)] - value)
        weight = np.float32(value + share * gap)
        assume(abs(abs(share) - 0.5) > 1e-3)
        expected = bool(abs(share) < 0.5 or gap == 0)
        assert fp8_near(weight.reshape(1, 1), np.uint8([[code]]), one, form) is expected

    @pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
    def test_the_largest_weight_has_the_largest_code(self, granularity: str) -> None:
        weight = np.random.default_rng(1).standard_normal((30, 7)).astype(np.float32)
        scales = scales_to(absmax_of([weight]), WEIGHTS.largest, granularity)
        restored = np.abs(decode(fp8_weight_codes(weight, scales)))
        assert (restored.max(axis=0) == 448).all() if granularity == "per_channel" else restored.max() == 448

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_weight_that_is_not_finite(self, value: float) -> None:
        weight = np.ones((3, 2), dtype=np.float32)
        weight[1, 1] = value
        with pytest.raises(GraphError, match="holds NaN or infinity"):
            scales_to(absmax_of([weight]), WEIGHTS.largest, "per_channel")
        with pytest.raises(GraphError, match="holds NaN or infinity"):
            fp8_weight_codes(weight, np.float32([1.0, 1.0]))


class TestReference:
    """Against products written out term by term."""

    @pytest.mark.parametrize("form", [E4M3, E5M2, None])
    @pytest.mark.parametrize("dtype", [np.float32, np.float16])
    def test_product(self, form: Fp8Format | None, dtype: type[np.generic]) -> None:
        draw = np.random.default_rng(2)
        codes = draw.integers(0, 120, (5, 33), dtype=np.uint8)
        a = draw.standard_normal((2, 3, 5)).astype(dtype)
        b_scale = draw.uniform(0.001, 0.01, 33).astype(np.float32)
        a_scale = np.float32(0.25)
        found = fp8_matmul_reference(a, pack_panels(codes), b_scale, a_scale, (5, 33), activations=form)
        weight = np.array([[BY_NAME["fp8_e4m3"].value(int(code)) for code in row] for row in codes]) * b_scale
        x = a.astype(np.float64) if form is None else BY_NAME[form.name].rounded(a.astype(np.float64) / 0.25) * 0.25
        assert found.dtype == dtype
        assert found.shape == (2, 3, 33)
        # W is rounded to float32 by the definition, and the sum once; to half, eleven bits.
        tolerance = 2.0**-10 if dtype is np.float16 else 2.0**-22
        bound = tolerance * (np.abs(x) @ np.abs(weight)) + (2.0**-24 if dtype is np.float16 else 0)
        assert (np.abs(found - x @ weight) <= bound).all()

    def test_a_scale_is_not_used_for_activations_as_they_are(self) -> None:
        panels = pack_panels(np.full((2, 1), 0x38, dtype=np.uint8))  # 1.0
        a, one = np.float32([3.3, 4.4]), np.float32([1.0])
        found = fp8_matmul_reference(a, panels, one, np.float32(7.0), (2, 1), activations=None)
        np.testing.assert_array_equal(found, np.float32([np.float64(a[0]) + a[1]]))

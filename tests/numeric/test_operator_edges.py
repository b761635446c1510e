"""Library and function at the edges of what numbers can be: both compute what the operator is defined to be.

The definition, in numpy and in float64: weights are codes times their scale in float32, activations are divided by
theirs in float32 and rounded to the nearest number of the format, which finite ones never pass; the sum of products
times the activation's scale is rounded to float32 once.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spq_graph.passes.numbers.fp8 import E4M3, E5M2, Fp8Format
from tests.support.graphs import Array
from tests.support.operator_files import NEEDS_LIBRARY, SETS, Product, computed, instruction_set, random_codes

pytestmark = NEEDS_LIBRARY
LARGEST = float(np.finfo(np.float32).max)
TINY = 2.0**-126  # float32 below it may be taken for zero
TYPES: dict[str, tuple[Any, float]] = {
    "fp8_e4m3": (ml_dtypes.float8_e4m3fn, 448.0),
    "fp8_e5m2": (ml_dtypes.float8_e5m2, 57344.0),
}
SIZES = st.sampled_from([0.0, 1e-45, 1e-40, 1.2e-38, 1e-20, 1e-3, 1.0, 7.0, 1e6, 1e20, 1e36, 3e37, 3e38, 3.4028235e38])
A_SCALES = st.sampled_from([1e-45, 1e-40, 1.2e-38, 1e-30, 0.02, 1.0, 1e30, 3e35])
B_SCALES = st.sampled_from([0.0, 1e-45, 1e-40, 1.2e-38, 1e-30, 1e-3, 1.0, 1e20, 5e33])


def defined(product: Product, x: Array) -> tuple[Array, Array, Array]:
    """The result in float64, not rounded yet, and two sums of magnitudes: of the products, and of what may be lost."""
    kind, _ = TYPES[product.weights.name]
    codes = product.codes.view(kind).astype(np.float32)
    weight = (codes * np.asarray(product.b_scale, np.float32)).astype(np.float64)
    a_scale, entering = 1.0, x.astype(np.float64)
    if product.activations is not None:
        a_type, largest = TYPES[product.activations.name]
        scale = np.float32(product.a_scale)
        with np.errstate(over="ignore"):
            units = np.clip(x / scale, -largest, largest)
        a_scale, entering = float(scale), units.astype(a_type).astype(np.float64)
    scales = np.abs(np.broadcast_to(np.asarray(product.b_scale, np.float64), (x.shape[1], codes.shape[1])))
    lost = (np.abs(entering) @ np.full(codes.shape, TINY) + TINY * (np.abs(codes) * scales).sum(axis=0)) * a_scale
    return entering @ weight * a_scale, np.abs(entering) @ np.abs(weight), lost + TINY * (1 + a_scale)


@st.composite
def products(draw: st.DrawFn) -> tuple[Product, Array]:
    rows, columns = draw(st.integers(1, 40)), draw(st.integers(1, 70))
    weights: Fp8Format = draw(st.sampled_from([E4M3, E5M2]))
    generator = np.random.default_rng(draw(st.integers(0, 999)))
    b_scale = generator.choice(draw(st.lists(B_SCALES, min_size=1, max_size=3)), columns)
    product = Product(
        random_codes(rows, columns, weights, draw(st.integers(0, 999))),
        b_scale.astype(np.float32) if draw(st.booleans()) else np.float32(b_scale[0]),
        draw(st.sampled_from([None, E4M3, E5M2])),
        weights=weights,
    )
    if product.activations is not None:
        product.a_scale = np.float32(draw(A_SCALES))
    sizes = generator.choice(draw(st.lists(SIZES, min_size=1, max_size=4)), (draw(st.integers(1, 20)), rows))
    return product, (sizes * generator.uniform(-1, 1, sizes.shape)).astype(np.float32)


def check(y: Array, product: Product, x: Array, *, fits: bool) -> None:
    """Where `fits`, only numbers whose sums cannot pass float32 on the way are looked at."""
    wanted, magnitude, lost = defined(product, x)
    a_scale = float(product.a_scale or 1) if product.activations is not None else 1.0
    bound = 1e-5 * magnitude * a_scale + 4 * lost
    with np.errstate(over="ignore"):
        over = np.abs(wanted) > LARGEST + bound
    under = np.abs(wanted) < LARGEST - bound
    if fits:
        some = magnitude * max(1.0, a_scale) < LARGEST / 2
        over, under = over & some, under & some
    assert np.isinf(y[over]).all()
    assert (np.sign(y[over]) == np.sign(wanted[over])).all()
    off = np.abs(y[under].astype(np.float64) - wanted[under])
    assert (off <= bound[under]).all(), f"off by {off.max()}, where {bound[under][off.argmax()]} is allowed"


@pytest.mark.parametrize("isa", SETS)
@settings(max_examples=60)
@given(case=products())
def test_the_library(isa: str, case: tuple[Product, Array]) -> None:
    """Whatever its sums pass on the way."""
    product, x = case
    with instruction_set(isa):
        check(computed(product, x), product, x, fits=False)


@settings(max_examples=60)
@given(case=products())
def test_the_function(case: tuple[Product, Array]) -> None:
    """Its sums are those of ONNX Runtime's float32 product, in whatever order."""
    product, x = case
    check(computed(product, x, library=False), product, x, fits=True)


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("rows", [1, 9])
def test_activations_near_the_largest_number(isa: str, rows: int) -> None:
    """Times codes of 100 they pass float32, times weights of 0.1 they do not."""
    codes = np.full((2, 33), 0x6C, np.uint8)  # 96 in E4M3
    product = Product(codes, np.float32(1e-3))
    x = np.tile(np.float32([[3e38, -2e38]]), (rows, 1))
    wanted = np.full((rows, 33), (3e38 - 2e38) * 96e-3)
    with instruction_set(isa):
        np.testing.assert_allclose(computed(product, x), wanted, rtol=1e-6)
    np.testing.assert_allclose(computed(product, x, library=False), wanted, rtol=1e-6)


@pytest.mark.parametrize("isa", SETS)
def test_weights_that_are_not_finite(isa: str) -> None:
    """Refused in every file that comes by us; other programs get the same from both."""
    codes = random_codes(6, 40)
    codes[0, ::3] = 0
    scale = np.linspace(0.1, 1, 40, dtype=np.float32)
    scale[::2], scale[1::4] = np.inf, np.nan
    product, x = Product(codes, scale), np.random.default_rng(0).standard_normal((9, 6)).astype(np.float32)
    with instruction_set(isa):
        np.testing.assert_allclose(computed(product, x), computed(product, x, library=False), rtol=1e-4)

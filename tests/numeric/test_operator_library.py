"""The numbers of the operator library, through ONNX Runtime, with every instruction set of this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spq_graph.passes.numbers.fp8 import E4M3, E5M2, Fp8Format, decode, rounded
from tests.support.eight_bits import BY_NAME
from tests.support.graphs import Array
from tests.support.operator_files import (
    NEEDS_LIBRARY,
    ONE,
    SETS,
    Product,
    computed,
    instruction_set,
    random_codes,
    session,
)

pytestmark = NEEDS_LIBRARY
EACH_SET = pytest.mark.parametrize("isa", SETS)
FORMATS = pytest.mark.parametrize("form", [E4M3, E5M2], ids=["e4m3", "e5m2"])
ACTIVATIONS = pytest.mark.parametrize("activations", [None, E4M3, E5M2], ids=["as_they_are", "e4m3", "e5m2"])
# One row goes straight through the codes; many are packed and multiplied in blocks.
ROWS = pytest.mark.parametrize("rows", [1, 9], ids=["one_row", "blocks"])
ONE_CODE = {E4M3: 0x38, E5M2: 0x3C}  # of 1.0


def normal(*shape: int, seed: int = 0, dtype: Any = np.float32) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def scales(columns: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).uniform(1e-4, 1e-2, columns).astype(np.float32)


def error(y: Array, wanted: Array) -> float:
    """Relative to the norm of what is wanted."""
    return float(np.linalg.norm(y.astype(np.float64) - wanted) / np.linalg.norm(wanted))


class TestProducts:
    @EACH_SET
    @ACTIVATIONS
    @pytest.mark.parametrize("tokens", [1, 4, 64])
    def test_precision(self, isa: str, activations: Fp8Format | None, tokens: int) -> None:
        """Float32 sums of 512 products are off by a few 1e-7 of the norm; 1e-6 is less than one lost product of 1e6."""
        x = normal(tokens, 512)
        exact = Product(random_codes(512, 200), scales(200), activations, np.float32(0.01))
        fast = Product(random_codes(512, 200), scales(200), activations, np.float32(0.01), fast=True)
        with instruction_set(isa):
            of_exact, of_fast = computed(exact, x), computed(fast, x)
        assert error(of_exact, exact.expected(x)) < 1e-6
        if activations is None:
            # Bfloat16 is off by 2^-8 at most in every activation, the more so in their norm.
            assert error(of_fast, exact.expected(x)) < 2.0**-8
        else:
            # An FP8 number is a bfloat16, so there is nothing left to be fast with.
            np.testing.assert_array_equal(of_fast, of_exact)

    @EACH_SET
    @settings(max_examples=40)
    @given(data=st.data())
    def test_any_product(self, isa: str, data: st.DataObject) -> None:
        draw = data.draw
        tokens, rows, columns = draw(st.integers(1, 40)), draw(st.integers(1, 300)), draw(st.integers(1, 100))
        weights, seed = draw(st.sampled_from([E4M3, E5M2])), draw(st.integers(0, 1000))
        product = Product(
            random_codes(rows, columns, weights, seed),
            scales(columns, seed) * np.float32(1e-2) if draw(st.booleans()) else np.float32(2e-5),
            draw(st.sampled_from([None, E4M3, E5M2])),
            np.float32(draw(st.sampled_from([1e-3, 0.02, 1.0]))),
            weights=weights,
            fast=draw(st.booleans()),
            dtype=draw(st.sampled_from([np.float32, np.float16])),
        )
        x = normal(tokens, rows, seed=seed, dtype=product.dtype)
        with instruction_set(isa):
            product.check(x, computed(product, x))

    @EACH_SET
    @pytest.mark.parametrize("leading", [(), (3,), (2, 3), (1, 2, 3), (2, 1, 3, 2), (0,), (2, 0), (0, 3)])
    def test_ranks_and_nothing_at_all(self, isa: str, leading: tuple[int, ...]) -> None:
        product = Product(random_codes(5, 33), scales(33), E4M3, np.float32(0.1), leading=leading)
        x = normal(*leading, 5)
        with instruction_set(isa):
            y = computed(product, x)
        assert y.shape == (*leading, 33)
        product.check(x, y)


class TestCodes:
    @EACH_SET
    @FORMATS
    @ROWS
    def test_every_code_of_a_weight(self, isa: str, form: Fp8Format, rows: int) -> None:
        codes = np.arange(256, dtype=np.uint8).reshape(1, 256)
        with instruction_set(isa):
            y = computed(Product(codes, weights=form), np.ones((rows, 1), np.float32))
        np.testing.assert_array_equal(y, np.tile(decode(codes, form), (rows, 1)))

    @EACH_SET
    @FORMATS
    @pytest.mark.parametrize("scale", [1.0, 3.7, 2.0**-40])
    def test_every_rounding_of_an_activation(self, isa: str, form: Fp8Format, scale: float) -> None:
        """Every number, every tie and their neighbours, once in a row of their own and once all in one."""
        a_scale = np.float32(scale)
        x = BY_NAME[form.name].telling
        x = x[np.abs(x) < 1e30] * a_scale
        wanted = rounded(x, a_scale, form) * a_scale
        oracle = BY_NAME[form.name].rounded(x / a_scale).astype(np.float32) * a_scale
        np.testing.assert_array_equal(wanted, oracle)
        column = Product(np.full((1, 1), ONE_CODE[E4M3], np.uint8), activations=form, a_scale=a_scale)
        identity = Product(np.eye(len(x), dtype=np.uint8) * np.uint8(ONE_CODE[E4M3]), ONE, form, a_scale)
        with instruction_set(isa):
            np.testing.assert_array_equal(computed(column, x[:, None])[:, 0], wanted)
            np.testing.assert_array_equal(computed(identity, x[None])[0], wanted)

    @EACH_SET
    @ACTIVATIONS
    def test_every_float16(self, isa: str, activations: Fp8Format | None) -> None:
        """Read, rounded where it is to be, and written; in blocks and one at a time."""
        x = np.arange(65536, dtype=np.uint16).view(np.float16)
        codes = np.full((1, 1), ONE_CODE[E4M3], np.uint8)
        with instruction_set(isa), np.errstate(invalid="ignore"):
            product = Product(codes, activations=activations, dtype=np.float16)
            y = computed(product, x[:, None])
            np.testing.assert_array_equal(y, product.expected(x[:, None]))
            some = x[:: 65536 // 256 + 1]
            alone = session(product.model())
            single = np.concatenate([alone.run(None, {"A": value.reshape(1, 1)})[0] for value in some])
            np.testing.assert_array_equal(single, product.expected(some[:, None]))

    @EACH_SET
    @FORMATS
    @ACTIVATIONS
    @ROWS
    @pytest.mark.parametrize("fast", [False, True])
    def test_what_is_not_finite(
        self, isa: str, form: Fp8Format, activations: Fp8Format | None, rows: int, fast: bool
    ) -> None:
        """NaN and infinities on either side end where IEEE 754 says, and nowhere else."""
        codes = random_codes(6, 70, form)
        odd = [code for code in range(256) if not np.isfinite(decode(np.uint8([code]), form))[0]]
        codes[np.arange(40) % 6, np.arange(40)] = np.resize(odd, 40)
        product = Product(codes, scales(70), activations, np.float32(0.1), weights=form, fast=fast)
        x = normal(8 * rows, 6)
        for row, value in enumerate([np.nan, np.inf, -np.inf, 0.0, -0.0]):
            x[row::8, row % 6] = value
        with np.errstate(invalid="ignore"):
            wanted = product.expected(x)
        assert np.isnan(wanted).any()
        assert np.isposinf(wanted).any()
        with instruction_set(isa):
            of = session(product.model())
            y = np.concatenate([of.run(None, {"A": piece})[0] for piece in np.split(x, len(x) // rows)])
        np.testing.assert_array_equal(np.where(np.isfinite(y), 0, y), np.where(np.isfinite(wanted), 0, wanted))
        finite = np.isfinite(wanted)
        assert finite.any()
        # Six products: what matters here is that nothing of the rest went astray.
        largest = np.abs(wanted[finite]).max()
        np.testing.assert_allclose(y[finite], wanted[finite], atol=largest * (2.0**-7 if fast else 2.0**-20))

    @EACH_SET
    def test_a_huge_activation_saturates(self, isa: str) -> None:
        """Over a small scale it passes float32, and is the largest number of the format all the same."""
        x = np.float32([[3e38], [-3e38], [np.inf], [-np.inf]])
        a_scale = np.float32(1e-30)
        for form in (E4M3, E5M2):
            product = Product(np.full((1, 1), ONE_CODE[E4M3], np.uint8), activations=form, a_scale=a_scale)
            wanted = np.float32([[form.largest], [-form.largest], [np.inf], [-np.inf]]) * a_scale
            with instruction_set(isa):
                np.testing.assert_array_equal(computed(product, x), wanted)
                np.testing.assert_array_equal(np.concatenate([computed(product, row[None]) for row in x]), wanted)


class TestScales:
    @EACH_SET
    @ROWS
    @pytest.mark.parametrize("shape", [(), (1,), (1, 1), (33,)])
    def test_every_form_of_a_weight_scale(self, isa: str, rows: int, shape: tuple[int, ...]) -> None:
        product = Product(random_codes(8, 33), np.asarray(scales(int(np.prod(shape))).reshape(shape)))
        x = normal(rows, 8)
        with instruction_set(isa):
            product.check(x, computed(product, x))

    @EACH_SET
    @ROWS
    def test_zero(self, isa: str, rows: int) -> None:
        b_scale = scales(33)
        b_scale[::2] = 0
        product = Product(random_codes(8, 33), b_scale)
        x = normal(rows, 8)
        with instruction_set(isa):
            y = computed(product, x)
            assert not y[:, ::2].any()
            assert y[:, 1::2].all()
            product.check(x, y)
            x[:, 0] = np.inf  # zero times infinity
            assert np.isnan(computed(product, x)[:, ::2]).all()

    @pytest.mark.parametrize("given_as", ["three inputs", "an empty name"])
    def test_no_activation_scale(self, given_as: str) -> None:
        """Files of ours always hold it, for the function's sake; the library does without."""
        product = Product(random_codes(8, 33), scales(33), a_scale=None, function=False)
        model, x = product.model(), normal(3, 8)
        if given_as == "an empty name":
            model.graph.node[0].input.append("")
        product.check(x, session(model).run(None, {"A": x})[0])

    def test_an_activation_scale_without_rounding_is_not_looked_at(self) -> None:
        x, codes = normal(3, 8), random_codes(8, 33)
        one, other = (Product(codes, a_scale=np.float32(scale)) for scale in (1.0, np.nan))
        np.testing.assert_array_equal(computed(other, x), computed(one, x))


class TestWhichSet:
    @pytest.mark.parametrize("isa", [*SETS, "of tomorrow"])
    def test_the_variable_names_it(self, isa: str) -> None:
        script = "from spq_graph.runtime.sessions.library import library_info; print(library_info()['isa'])"
        environment = {**os.environ, "SPQ_GRAPH_ISA": isa}
        found = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
        assert found.stdout.strip() == (isa if isa in SETS else SETS[-1]), found.stderr

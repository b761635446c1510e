"""spq::Fp8MatMul on a CUDA device, against its definition in numpy; skipped where there is none.

One case of these is worth all others for finding a wrong index: small integers, whose sums are exact on every way that
the operator has, so that results must be equal to the bit.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest

from spq_graph.passes.numbers.fp8 import E4M3, E5M2, Fp8Format, pack_panels
from spq_graph.runtime.sessions.library import library_info
from tests.support.products import PROVIDER, Array, Kind, Product

if PROVIDER in ort.get_available_providers() and hasattr(ort, "preload_dlls"):
    ort.preload_dlls()  # CUDA's own wheels are not where the loader looks


def missing() -> str | None:
    """Why there is nothing to test here."""
    if PROVIDER not in ort.get_available_providers():
        return f"onnxruntime has no {PROVIDER}"
    cuda = (library_info() or {}).get("cuda")
    if cuda is None:
        return "the operator library is absent or has no CUDA kernels"
    return None if cuda["usable"] else "no CUDA device, or its driver is older than the kernels' CUDA"


if (REASON := missing()) is not None:
    pytest.skip(REASON, allow_module_level=True)

# M on both sides of every border: empty, the tiles of the kernel for few rows, and what cuBLASLt takes over.
ROWS = (0, 1, 2, 3, 8, 16, 17, 32, 33, 128, 512)
# K and N odd, below and beyond a panel, and of the sizes that cuBLASLt takes without a detour.
SHAPES = ((1, 1), (2, 32), (7, 33), (48, 80), (129, 97), (512, 64), (515, 161), (1040, 48))
DTYPES = (np.float32, np.float16)
SHAPE = pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s[0]}x{s[1]}")
DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=["f32", "f16"])
WEIGHT = pytest.mark.parametrize("weights", [E4M3, E5M2], ids=["w-e4m3", "w-e5m2"])


KINDS = [Kind(None, 0), Kind(None, 1), Kind(E4M3, 0), Kind(E4M3, 1), Kind(E5M2, 0), Kind(E5M2, 1)]
KIND = pytest.mark.parametrize("kind", KINDS, ids=str)


def run(session: ort.InferenceSession, x: Array) -> Array:
    return np.asarray(session.run(None, {"X": x})[0])


def check(product: Product, session: ort.InferenceSession, x: Array) -> None:
    found, wanted = run(session, x), product.expected(x)
    assert found.dtype == x.dtype
    assert found.shape == wanted.shape
    finite = np.isfinite(wanted)
    np.testing.assert_array_equal(found[~finite], wanted[~finite])
    error = np.abs(found[finite].astype(np.float64) - wanted[finite])
    with np.errstate(invalid="ignore"):  # columns of a weight that are not finite are not looked at
        tolerance = product.tolerance(np.where(np.isfinite(x), x, 0).astype(x.dtype), wanted)
    assert (error <= tolerance[finite]).all()


def random_codes(shape: tuple[int, int], weights: Fp8Format, seed: int = 0) -> Array:
    values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return np.asarray(values.astype(weights.dtype).view(np.uint8))


def random_product(shape: tuple[int, int], weights: Fp8Format, kind: Kind, **more: Any) -> Product:
    scales = np.random.default_rng(1).uniform(0.01, 0.1, shape[1]).astype(np.float32)
    a_scale = 1.0 if kind.form is None else 3.0 / kind.form.largest
    return Product(random_codes(shape, weights), scales, kind, a_scale, weights, **more)


def activations(rows: int, depth: int, dtype: npt.DTypeLike) -> Array:
    return np.random.default_rng(rows).standard_normal((rows, depth)).astype(dtype)


class TestExact:
    """Integers of -1, 0 and 1 and scales that are powers of two: every way of the operator is exact."""

    @SHAPE
    @DTYPE
    @WEIGHT
    @KIND
    def test_integers(self, shape: tuple[int, int], dtype: npt.DTypeLike, weights: Fp8Format, kind: Kind) -> None:
        rng = np.random.default_rng(shape[0])
        codes = rng.integers(-1, 2, shape).astype(np.float32).astype(weights.dtype).view(np.uint8)
        for b_scale in (2.0 ** -(np.arange(shape[1]) % 5), np.array(0.5), np.array([0.25])):
            product = Product(codes, b_scale.astype(np.float32), kind, weights=weights)
            session = product.session(dtype)
            for rows in ROWS:
                x = rng.integers(-1, 2, (rows, shape[0])).astype(dtype)
                np.testing.assert_array_equal(run(session, x), product.expected(x), err_msg=f"M = {rows}")

    @pytest.mark.parametrize("shape", [(5,), (2, 3, 5), (0, 3, 5), (4, 0, 5), (1, 2, 20, 5)], ids=str)
    def test_every_rank(self, shape: tuple[int, ...]) -> None:
        product = Product(random_codes((5, 40), E4M3) & 0xF8, np.float32([1.0]), Kind(E4M3, 1))
        x = np.random.default_rng(0).integers(-2, 3, shape).astype(np.float32)
        found = run(product.session(np.float32), x)
        np.testing.assert_allclose(found, product.expected(x), rtol=1e-3, atol=1e-2)
        assert found.shape == (*shape[:-1], 40)


class TestRandom:
    @SHAPE
    @DTYPE
    @WEIGHT
    @KIND
    def test_close(self, shape: tuple[int, int], dtype: npt.DTypeLike, weights: Fp8Format, kind: Kind) -> None:
        product = random_product(shape, weights, kind)
        session = product.session(dtype)
        for rows in ROWS:
            check(product, session, 1.5 * activations(rows, shape[0], dtype))  # some beyond the range: they saturate

    @KIND
    @pytest.mark.parametrize("rows", [1, 16, 40])
    def test_a_weight_that_is_no_constant(self, kind: Kind, rows: int) -> None:
        product = random_product((130, 70), E4M3, kind, constant=False)
        session, x = product.session(np.float32), activations(rows, 130, np.float32)
        for seed in (0, 5):  # another weight at the second call, maybe in the same place
            codes = random_codes((130, 70), E4M3, seed)
            this = Product(codes, product.b_scale, kind, product.a_scale)
            b = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(pack_panels(codes), E4M3.element_type)
            feeds = {"X": ort.OrtValue.ortvalue_from_numpy(x), "B": b}
            found, wanted = session.run_with_ort_values(None, feeds)[0].numpy(), this.expected(x)
            assert (np.abs(found - wanted) <= this.tolerance(x, wanted)).all()

    @pytest.mark.parametrize("rows", [1, 3, 16])
    def test_the_same_every_time(self, rows: int) -> None:
        session = random_product((2050, 100), E4M3, Kind(E4M3, 1)).session(np.float32)
        x = activations(rows, 2050, np.float32)
        first = run(session, x)
        for _ in range(20):
            np.testing.assert_array_equal(run(session, x), first)


class TestSpecial:
    """NaN and infinity, in activations and in weights; finite activations that overflow."""

    @KIND
    @DTYPE
    @WEIGHT
    @pytest.mark.parametrize("rows", [4, 16, 17, 32, 150])
    def test_activations(self, kind: Kind, dtype: npt.DTypeLike, weights: Fp8Format, rows: int) -> None:
        product = random_product((67, 45), weights, kind)
        x = activations(rows, 67, dtype)
        x[0, 3], x[1, 66], x[2, 0], x[rows - 1, 5] = np.nan, np.inf, -np.inf, np.inf
        x[rows - 1, 60] = -np.inf
        check(product, product.session(dtype), x)

    @KIND
    @WEIGHT
    @pytest.mark.parametrize("rows", [1, 16, 17, 32, 150])
    def test_codes(self, kind: Kind, weights: Fp8Format, rows: int) -> None:
        codes = random_codes((50, 40), weights)
        special = {E4M3: (0x7F, 0xFF), E5M2: (0x7C, 0xFC, 0x7D, 0xFF)}[weights]
        for column, code in enumerate(special):
            codes[column, 9 * column] = code
        product = Product(codes, np.full(40, 0.5, dtype=np.float32), kind, weights=weights)
        check(product, product.session(np.float32), activations(rows, 50, np.float32))

    @pytest.mark.parametrize("kind", [k for k in KINDS if k.form is not None], ids=str)
    @pytest.mark.parametrize("rows", [1, 40])
    def test_a_quotient_beyond_float32_saturates(self, kind: Kind, rows: int) -> None:
        product = Product(random_codes((20, 33), E4M3), np.float32([1.0]), kind, 1e-3)
        x = activations(rows, 20, np.float32)
        x[0, 0], x[-1, 1] = 3e38, -3e38
        check(product, product.session(np.float32), x)


class TestTogether:
    @KIND
    def test_two_threads_in_one_session(self, kind: Kind) -> None:
        """Both kinds of kernels at once, each with working memory of its own; the first calls race for the weight."""
        product = random_product((640, 320), E4M3, kind)
        inputs = [activations(rows, 640, np.float32) for rows in (16, 300)]
        alone = product.session(np.float32)
        wanted = [run(alone, x) for x in inputs]
        session = product.session(np.float32)
        wrong: list[str] = []

        def work(index: int) -> Callable[[], None]:
            def body() -> None:
                for turn in range(30):
                    which = (index + turn) % 2
                    if not np.array_equal(run(session, inputs[which]), wanted[which]):
                        wrong.append(f"thread {index}, turn {turn}")

            return body

        threads = [threading.Thread(target=work(index)) for index in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong


@pytest.mark.skipif("SPQ_GRAPH_CUBLASLT" in os.environ, reason="this is the run that the test below starts")
def test_without_cublaslt() -> None:
    """Our own kernel serves any number of rows."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "129x97 or Special"]
    done = subprocess.run(command, env={**os.environ, "SPQ_GRAPH_CUBLASLT": ""}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout

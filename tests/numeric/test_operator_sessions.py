"""The operator library as ONNX Runtime meets it: shapes, versions, wrong input, threads and memory."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from spq_graph.passes.numbers.fp8 import E4M3, E5M2, Fp8Format
from tests.support.graphs import Array
from tests.support.operator_files import (
    LIBRARY,
    NEEDS_LIBRARY,
    SETS,
    Product,
    computed,
    instruction_set,
    ran,
    random_codes,
)
from tests.support.operator_files import session as opened

pytestmark = NEEDS_LIBRARY
K, N = 7, 35
CALL = {"product": "Fp8MatMul"}


def small(**changes: Any) -> Product:
    return Product(random_codes(K, N), np.full(N, 0.01, np.float32), **changes)


def tokens(count: int = 5, width: int = K, dtype: Any = np.float32) -> Array:
    return np.random.default_rng(count).standard_normal((count, width)).astype(dtype)


class TestInsteadOfTheFunction:
    @pytest.mark.parametrize("opset", [19, 20, 21, 22, 23, 24])
    @pytest.mark.parametrize("dtype", [np.float32, np.float16])
    @pytest.mark.parametrize("activations", [None, E4M3, E5M2], ids=["as_they_are", "e4m3", "e5m2"])
    def test_both_compute_the_same(self, opset: int, dtype: Any, activations: Fp8Format | None) -> None:
        """Each is within the bound of float32 sums in any order, so they differ by twice that at most."""
        scale = np.float32(0.02)
        product = Product(
            random_codes(40, 70), np.full(70, 1e-3, np.float32), activations, scale, dtype=dtype, opset=opset
        )
        x = tokens(9, 40, dtype)
        kernel, function = computed(product, x), computed(product, x, library=False)
        product.check(x, kernel)
        product.check(x, function)
        assert kernel.dtype == function.dtype == dtype

    @pytest.mark.parametrize("level", ["ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL"])
    def test_which_of_them_runs(self, tmp_path: Path, level: str) -> None:
        how = {"level": getattr(ort.GraphOptimizationLevel, level)}
        assert ran(small(), tmp_path, tokens(), **how) == CALL
        without = ran(small(), tmp_path, tokens(), library=False, **how)
        assert "Fp8MatMul" not in without.values()
        assert "MatMul" in without.values()
        small().check(tokens(), computed(small(), tokens(), **how))

    def test_with_the_library_no_function_is_needed(self) -> None:
        product = small(function=False)
        product.check(tokens(), computed(product, tokens()))
        with pytest.raises(Exception, match=r"spq:Fp8MatMul.*is not a registered function"):
            opened(product.model(), library=False)

    def test_a_later_version_of_the_domain_is_the_same_operator(self, tmp_path: Path) -> None:
        """ONNX Runtime takes the kernel of version 1 and cannot be told not to: see operator.hpp."""
        assert ran(small(version=2), tmp_path, tokens()) == CALL

    def test_an_operator_of_another_name_runs_as_its_function(self, tmp_path: Path) -> None:
        """What a later operator with another meaning does where this library is all there is."""
        product = small()
        model = product.model()
        model.functions[0].name = model.graph.node[0].op_type = "Fp8MatMul2"
        product.check(tokens(), opened(model).run(None, {"A": tokens()})[0])

    @pytest.mark.parametrize("leading", [(), ("tokens",), ("batch", "tokens"), (2, "tokens")])
    def test_shapes_keep_their_names(self, leading: tuple[int | str, ...]) -> None:
        for library in (True, False):
            of = opened(small(leading=leading).model(), library=library)
            assert of.get_outputs()[0].shape == [*leading, N]

    def test_axes_without_name_or_size(self) -> None:
        """TorchScript exports have them; what is computed from the shape must not see sizes of -1."""
        model = small().model()
        axes = model.graph.input[0].type.tensor_type.shape.dim
        del axes[:]
        axes.extend(
            onnx.TensorShapeProto.Dimension(dim_value=size) if size else onnx.TensorShapeProto.Dimension()
            for size in (0, 0, K)
        )
        held = {"both": np.array([0, 1]), "rest": np.array([5, -1])}
        model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in held.items())
        model.graph.node.extend(
            [
                helper.make_node("Shape", ["Y"], ["shape"]),
                helper.make_node("Gather", ["shape", "both"], ["leading"]),
                helper.make_node("Concat", ["leading", "rest"], ["goal"], axis=0),
                helper.make_node("Reshape", ["Y", "goal"], ["Z"]),
            ]
        )
        del model.graph.output[:]
        model.graph.output.append(helper.make_tensor_value_info("Z", TensorProto.FLOAT, None))
        x = tokens(6).reshape(2, 3, K)
        kernel, function = (opened(model, library=library).run(None, {"A": x})[0] for library in (True, False))
        assert kernel.shape == (2, 3, 5, 7)
        np.testing.assert_allclose(kernel, function, rtol=1e-5, atol=1e-6)

    def test_an_input_of_unknown_rank(self) -> None:
        model = small().model()
        model.graph.input[0].type.tensor_type.ClearField("shape")
        of = opened(model)
        small().check(tokens(), of.run(None, {"A": tokens()})[0])
        three = tokens(6).reshape(2, 3, K)
        small(leading=(2, 3)).check(three, of.run(None, {"A": three})[0])
        with pytest.raises(Exception, match=r"spq::Fp8MatMul: A is \[5, 6\], but the weight has K = 7 rows"):
            of.run(None, {"A": tokens(width=6)})
        with pytest.raises(Exception, match=r"spq::Fp8MatMul: A is \[\], but the weight has K = 7 rows"):
            of.run(None, {"A": np.array(1.0, np.float32)})


def tensor(name: str, *shape: int, kind: int = TensorProto.FLOAT) -> Mapping[str, onnx.TensorProto]:
    """In place of an input of the same name: ones of another shape or type."""
    if kind in (TensorProto.FLOAT, TensorProto.DOUBLE):
        return {name: numpy_helper.from_array(np.ones(shape, helper.tensor_dtype_to_np_dtype(kind)), name)}
    return {name: helper.make_tensor(name, kind, shape, bytes(int(np.prod(shape))), raw=True)}


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "K": ({"attributes": {"K": 9}}, r"A is \[5, 7\], but the weight has K = 9 rows"),
    "N": ({"attributes": {"N": 70}}, r"B is \[2, 4, 64\], but K = 7 and N = 70 want panels \[3, 4, 64\]"),
    "no K": ({"attributes": {"K": None}}, r"both positive; found K = 0, N = 35"),
    "no N": ({"attributes": {"N": None}}, r"both positive; found K = 7, N = 0"),
    "K zero": ({"attributes": {"K": 0}}, r"both positive; found K = 0, N = 35"),
    "N negative": ({"attributes": {"N": -1}}, r"both positive; found K = 7, N = -1"),
    "N huge": ({"attributes": {"N": 2**40}}, r"found K = 7, N = 1099511627776"),
    "a_type": ({"attributes": {"a_type": 10}}, r"a_type must be 1 .*, 17 .* or 19 .*; found 10"),
    "rank of B": ({"tensors": tensor("B", 2, 256, kind=17)}, r"B is \[2, 256\], .* want panels \[2, 4, 64\]"),
    "shape of B": ({"tensors": tensor("B", 2, 3, 64, kind=17)}, r"B is \[2, 3, 64\], .* want panels \[2, 4, 64\]"),
    "b_scale": ({"tensors": tensor("b_scale", 3)}, r"b_scale is \[3\]; it must hold one number or N = 35"),
    "rank of b_scale": ({"tensors": tensor("b_scale", 35, 1)}, r"b_scale is \[35, 1\]; it must hold one number or N"),
    "no b_scale": ({"tensors": tensor("b_scale", 0)}, r"b_scale is \[0\]; it must hold one number or N = 35"),
    "a_scale missing": ({"activations": E4M3, "a_scale": None}, r"need a_scale, a single number; it is missing"),
    "shape of a_scale": ({"activations": E4M3, "tensors": tensor("a_scale", 2)}, r"a single number; it is \[2\]"),
    **{
        f"a_scale {value}": (
            {"activations": E5M2, "a_scale": np.float32(value)},
            rf"a_scale is {value}; it must be positive and finite",
        )
        for value in ("0", "-1e-30", "nan", "inf")
    },
}


class TestWrongInput:
    @pytest.mark.parametrize("what", WRONG)
    def test_the_error_names_operator_and_numbers(self, what: str) -> None:
        changes, message = WRONG[what]
        with pytest.raises(Exception, match=f"spq::Fp8MatMul: .*{message}"):
            computed(small(**changes, function=False), tokens())

    @pytest.mark.parametrize(
        "changes",
        [
            {"dtype": np.float64},
            {"tensors": tensor("B", 2, 4, 64, kind=TensorProto.UINT8)},
            {"tensors": tensor("b_scale", 35, kind=TensorProto.DOUBLE)},
            {"tensors": tensor("a_scale", kind=11)},
        ],
        ids=["A float64", "B uint8", "b_scale float64", "a_scale float64"],
    )
    def test_another_type_is_refused_by_onnx_runtime(self, changes: dict[str, Any]) -> None:
        with pytest.raises(Exception, match=r"Type Error: Type .* of operator \(Fp8MatMul\) in node \(product\)"):
            opened(small(**changes, function=False).model())


class TestThreads:
    @pytest.mark.parametrize("isa", SETS)
    @pytest.mark.parametrize("activations", [None, E4M3], ids=["as_they_are", "e4m3"])
    def test_any_number_of_them_computes_the_same_bytes(self, isa: str, activations: Fp8Format | None) -> None:
        """Within one product, and with eight callers at once in one session and in several."""
        product = Product(random_codes(300, 1300), np.full(1300, 0.01, np.float32), activations)
        model = product.model()
        inputs = [tokens(count, 300) for count in (1, 3, 40, 70)]
        with instruction_set(isa):
            one, two, other = (opened(model, threads=count) for count in (1, 2, 2))
        wanted = [one.run(None, {"A": x})[0].tobytes() for x in inputs]
        assert [two.run(None, {"A": x})[0].tobytes() for x in inputs] == wanted

        def call(turn: int) -> bool:
            x = turn % len(inputs)
            return bool((one, two, other)[turn % 3].run(None, {"A": inputs[x]})[0].tobytes() == wanted[x])

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(call, range(96)))


# Megabytes of FP8 weights in four products, and a script that says by how many bytes loading and running them grows.
MEGABYTES = 140
MEASURE = """
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort

def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon:", "RssFile:", "RssShmem:")))

def opened(model):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.register_custom_ops_library(sys.argv[1])
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])

def run(session):
    return session.run(None, {"A": np.ones((1, session.get_inputs()[0].shape[-1]), np.float32)})[0]

run(opened(sys.argv[2]))  # what any first session takes
before = resident()
session = opened(sys.argv[3])
y = run(session)
assert np.isfinite(y).all()
print(resident() - before)
"""


def chain(folder: Path, width: int, count: int) -> Path:
    """A file with products one after the other, whose weights lie beside it."""
    product = Product(random_codes(width, width) & 0xB7, np.float32(1 / width))  # below 1, so that sums stay finite
    model = product.model()
    [call], [b, *rest] = list(model.graph.node), list(model.graph.initializer)
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.initializer.extend(rest)
    for index in range(count):
        weight, node = onnx.TensorProto(), onnx.NodeProto()
        weight.CopyFrom(b)
        node.CopyFrom(call)
        weight.name = node.input[1] = f"B{index}"
        node.name = f"product{index}"
        node.input[0] = "A" if index == 0 else f"Y{index - 1}"
        node.output[0] = "Y" if index == count - 1 else f"Y{index}"
        model.graph.initializer.append(weight)
        model.graph.node.append(node)
    path = folder / f"{width}.onnx"
    onnx.save(model, path, save_as_external_data=True, location=f"{width}.bin", size_threshold=1024)
    return path


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs /proc to read resident memory")
def test_weights_are_in_memory_once(tmp_path: Path) -> None:
    """As bytes in the layout of the file: no copy, and nothing decoded that stays."""
    width = int((MEGABYTES * 1e6 / 4) ** 0.5) // 64 * 64
    small_one, large = chain(tmp_path, 64, 4), chain(tmp_path, width, 4)
    weights = (tmp_path / f"{width}.bin").stat().st_size
    assert weights > 0.98 * MEGABYTES * 1e6
    command = [sys.executable, "-c", MEASURE, str(LIBRARY), str(small_one), str(large)]
    found = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert 0.9 * weights < int(found.stdout) <= 1.1 * weights

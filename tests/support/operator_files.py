"""Files with one spq::Fp8MatMul, written down to the attribute, and sessions over them with and without the library."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from spq_graph.passes.forms.fp8_function import fp8_matmul_function
from spq_graph.passes.numbers.fp8 import E4M3, Fp8Format, decode, fp8_matmul_reference, pack_panels
from spq_graph.runtime.sessions.library import library_info, library_path
from spq_graph.runtime.sessions.sums import keep_exact
from tests.support.graphs import Array

LIBRARY = library_path()
NEEDS_LIBRARY = pytest.mark.skipif(LIBRARY is None, reason="the operator library is not built (no C++ compiler?)")
# Which instruction sets to test; parameters are collected before a fixture could say so.
SETS: list[str] = (library_info() or {}).get("available", [])
ONE = np.float32(1.0)


@dataclass(slots=True)
class Product:
    """One call of the operator.

    Attributes:
        codes: of the weight, uint8 [K, N].
        b_scale: float32 [N], [1] or [].
        activations: the format that A is rounded to; None leaves it as it is.
        a_scale: its scale; None leaves out the input.
        leading: the dimensions of A before the last.
        attributes, tensors: in place of what would be right; an attribute of None is left out.
    """

    codes: Array
    b_scale: Array | np.float32 = ONE
    activations: Fp8Format | None = None
    a_scale: np.float32 | None = ONE
    weights: Fp8Format = E4M3
    fast: bool = False
    dtype: Any = np.float32
    leading: Sequence[int | str] = ("tokens",)
    opset: int = 21
    version: int = 1
    function: bool = True
    attributes: Mapping[str, int | None] = field(default_factory=dict)
    tensors: Mapping[str, onnx.TensorProto] = field(default_factory=dict)

    def expected(self, x: Array) -> Array:
        """What the operator computes from x, by the reference: sums in float64, rounded once."""
        return fp8_matmul_reference(
            x,
            pack_panels(self.codes),
            np.asarray(self.b_scale),
            ONE if self.a_scale is None else self.a_scale,
            (self.codes.shape[0], self.codes.shape[1]),
            activations=self.activations,
            weights=self.weights,
        )

    def bound(self, x: Array) -> Array:
        """How far any order of float32 sums may be off, float64 [..., N]; for finite operands.

        K products, each in up to three terms, are summed with 3 K roundings at most, of half an ulp of the sum of the
        magnitudes; eight more are for scales and the end. Where A may be rounded to bfloat16 it keeps 8 bits. Rounding
        to FP8 makes a magnitude larger by a quarter at most, or by half of the smallest number there is.
        """
        rows = self.codes.shape[0]
        weight = np.abs(decode(self.codes, self.weights) * np.float32(self.b_scale)).astype(np.float64)
        entering = np.abs(x.astype(np.float64))
        if self.activations is not None:
            entering = entering * 1.25 + 2.0**-10 * float(self.a_scale or 1.0)
        relative = (3 * rows + 8) * 2.0**-24 + (2.0**-8 if self.fast and self.activations is None else 0.0)
        # A float16 result is rounded, and so is the reference; float32 below its normal numbers may be flushed.
        half = self.dtype == np.float16
        last = np.abs(self.expected(x).astype(np.float64)) * 2.0**-10 + 2.0**-24 if half else rows * 2.0**-110
        return np.asarray(entering @ weight * relative + last)

    def check(self, x: Array, y: Array) -> None:
        """Check that y is what the operator computes from x, in type, shape and value."""
        wanted = self.expected(x)
        assert (y.dtype, y.shape) == (wanted.dtype, wanted.shape)
        off = np.abs(y.astype(np.float64) - wanted.astype(np.float64))
        assert (off <= self.bound(x)).all(), f"off by {off.max()}"

    def model(self) -> onnx.ModelProto:
        """The file: A is its input and Y its output."""
        rows, columns = self.codes.shape
        attributes = {
            "K": rows,
            "N": columns,
            "a_type": self.activations.element_type if self.activations else 1,
            "fast": int(self.fast),
            **self.attributes,
        }
        panels = pack_panels(self.codes)
        held = {
            "B": helper.make_tensor("B", self.weights.element_type, panels.shape, panels.tobytes(), raw=True),
            "b_scale": numpy_helper.from_array(np.asarray(self.b_scale, dtype=np.float32), "b_scale"),
        }
        if self.a_scale is not None:
            held["a_scale"] = numpy_helper.from_array(np.asarray(self.a_scale, dtype=np.float32), "a_scale")
        held.update(self.tensors)
        given = {name: value for name, value in attributes.items() if value is not None}
        node = helper.make_node("Fp8MatMul", ["A", *held], ["Y"], name="product", domain="spq", **given)
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype))
        graph = helper.make_graph(
            [node],
            "graph",
            [helper.make_tensor_value_info("A", kind, [*self.leading, rows])],
            [helper.make_tensor_value_info("Y", kind, None)],
            list(held.values()),
        )
        functions = [ir.to_proto(fp8_matmul_function(self.opset))] if self.function else []
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid("spq", self.version)]
        return helper.make_model(graph, functions=functions, opset_imports=opsets, ir_version=10)


def session(
    model: onnx.ModelProto | Path,
    *,
    library: bool = True,
    threads: int = 1,
    profile: Path | None = None,
    level: ort.GraphOptimizationLevel = ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
) -> ort.InferenceSession:
    """A session on the CPU, with the operator library or without it."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level, options.graph_optimization_level = threads, 4, level
    if library:
        options.register_custom_ops_library(str(LIBRARY))
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    keep_exact(options, source)
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def computed(product: Product, x: Array, **how: Any) -> Array:
    """What ONNX Runtime computes from x."""
    [y] = session(product.model(), **how).run(None, {"A": x})
    return np.asarray(y)


def ran(product: Product, folder: Path, x: Array, **how: Any) -> dict[str, str]:
    """Operator type by node name of what ran, read from ONNX Runtime's profile."""
    of = session(product.model(), profile=folder / "profile", **how)
    of.run(None, {"A": x})
    events = json.loads(Path(of.end_profiling()).read_text(encoding="utf-8"))
    nodes = [event for event in events if event.get("cat") == "Node" and "op_name" in event.get("args", {})]
    return {event["name"].removesuffix("_kernel_time"): event["args"]["op_name"] for event in nodes}


@contextmanager
def instruction_set(name: str) -> Iterator[None]:
    """Kernels that are created in here use this instruction set."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPQ_GRAPH_ISA", name)
        yield


def random_codes(rows: int, columns: int, form: Fp8Format = E4M3, seed: int = 0) -> Array:
    """Finite codes [K, N] of every magnitude."""
    codes = np.random.default_rng(seed).integers(0, 256, (rows, columns), dtype=np.uint8)
    return np.where(np.isfinite(decode(codes, form)), codes, np.uint8(0x38))

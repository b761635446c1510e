"""One product by the operator, as a file and from its definition."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from spq_graph.passes.numbers.fp8 import WEIGHTS, Fp8Format, decode, fp8_matmul_reference, pack_panels, rounded
from spq_graph.runtime.sessions.library import register

PROVIDER = "CUDAExecutionProvider"
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Kind:
    """What happens to activations."""

    form: Fp8Format | None
    fast: int

    def __str__(self) -> str:
        return f"{self.form.name if self.form else 'as-is'}-{'fast' if self.fast else 'exact'}"


@dataclass(frozen=True)
class Product:
    """One product: a weight's codes [K, N], its scales, and the activations' scale."""

    codes: Array
    b_scale: Array
    kind: Kind
    a_scale: float = 1.0
    weights: Fp8Format = WEIGHTS
    constant: bool = True

    def session(self, dtype: npt.DTypeLike, provider: str = PROVIDER) -> ort.InferenceSession:
        a_type, panels = helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), pack_panels(self.codes)
        b_type = self.weights.element_type
        inputs = [helper.make_tensor_value_info("X", a_type, None)]
        scales = {"b_scale": self.b_scale, "a_scale": np.array(self.a_scale, dtype=np.float32)}
        tensors = [numpy_helper.from_array(array, name) for name, array in scales.items()]
        if self.constant:
            tensors.append(helper.make_tensor("B", b_type, panels.shape, panels.tobytes(), raw=True))
        else:
            inputs.append(helper.make_tensor_value_info("B", b_type, panels.shape))
        node = helper.make_node(
            "Fp8MatMul",
            ["X", "B", "b_scale", "a_scale"],
            ["Y"],
            domain="spq",
            K=self.codes.shape[0],
            N=self.codes.shape[1],
            fast=self.kind.fast,
            a_type=self.kind.form.element_type if self.kind.form else TensorProto.FLOAT,
        )
        graph = helper.make_graph([node], "g", inputs, [helper.make_tensor_value_info("Y", a_type, None)], tensors)
        imports = [helper.make_opsetid("", 21), helper.make_opsetid("spq", 1)]
        options = ort.SessionOptions()
        if provider == PROVIDER:
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")  # no other kernel may step in
        assert register(options)
        model = helper.make_model(graph, opset_imports=imports, ir_version=10)
        return ort.InferenceSession(model.SerializeToString(), options, providers=[provider])

    def expected(self, x: Array) -> Array:
        return fp8_matmul_reference(
            x,
            pack_panels(self.codes),
            self.b_scale,
            np.float32(self.a_scale),
            (self.codes.shape[0], self.codes.shape[1]),
            activations=self.kind.form,
            weights=self.weights,
        )

    def tolerance(self, x: Array, expected: Array) -> Array:
        """How far a result may be from the reference, which is exact but for one rounding at the end.

        All in parts of S, the sum of the magnitudes of the products. Float32 sums: a chain of length n errs by at most
        n * 2^-24 S, and twice that where tensor cores cut off instead of rounding; no way of ours has a chain longer
        than K / 16 and some. Activations rounded to bfloat16: 2^-8. FP8 tensor cores: Hopper's keep 13 bits of a
        product beside the largest of its group, which for random numbers comes to less than 2^-13 S; four times that.
        A product left out would show as S / K.
        """
        depth = self.codes.shape[0]
        wide = x.astype(np.float32)
        if self.kind.form is not None:
            wide = rounded(wide, np.float32(self.a_scale), self.kind.form) * np.float32(self.a_scale)
        s = np.abs(wide.astype(np.float64)) @ np.abs(decode(self.codes, self.weights) * self.b_scale.astype(np.float64))
        relative = (depth / 8 + 32) * 2.0**-24
        if self.kind.fast:
            relative += 2.0**-11 if self.kind.form is not None else 2.0**-8 if x.dtype == np.float32 else 0
        # Both are rounded to their type, maybe to either side of a tie; subnormal float16 lie 2^-24 apart.
        ulp = 2.0**-10 if x.dtype == np.float16 else 2.0**-23
        return np.asarray(relative * s + ulp * np.abs(expected.astype(np.float64)) + 2.0**-24)

"""Tiny ONNX graphs: GLU blocks in every way exporters write them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper

from spq_graph.passes.base.values import weight_of
from spq_graph.passes.canon.canonicalize import Canonicalize
from spq_graph.passes.find.identify import Identified

CONTRIB = "com.microsoft"
Array = npt.NDArray[Any]
Described = Mapping[str, tuple[int, Sequence[int | str]]]  # element type and shape by name
LinearForm = Literal["matmul", "gemm", "gemm_transposed", "transpose", "cast", "identity", "half"]
Packing = Literal["separate", "split", "slice", "gather"]
Naming = Literal["anonymous", "torchscript", "dynamo"]
LINEAR_FORMS: tuple[LinearForm, ...] = ("matmul", "gemm", "gemm_transposed", "transpose", "cast", "identity", "half")
PACKINGS: tuple[Packing, ...] = ("separate", "split", "slice", "gather")


@dataclass(slots=True)
class Builder:
    """Collects nodes and constants; every method returns the name of what it made."""

    opset: int = 21
    naming: Naming = "anonymous"
    dtype: type[np.generic] = np.float32
    seed: int = 0
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)
    module: str = ""
    constants_as_nodes: bool = False
    _count: int = 0

    def op(
        self,
        op_type: str,
        *inputs: str,
        domain: str = "",
        outputs: int | Sequence[str] = 1,
        name: str | None = None,
        **attributes: Any,
    ) -> Any:
        self._count += 1
        made = [f"v{self._count}_{n}" for n in range(outputs)] if isinstance(outputs, int) else list(outputs)
        path = self.module.replace("[", ".").replace("]", "")
        if name is None and self.naming == "torchscript":
            name = "/" + "/".join(path.replace("layers.", "layers\0").split(".")).replace("\0", ".") + f"/{op_type}"
        node = helper.make_node(op_type, inputs, made, name=name or "", domain=domain, **attributes)
        if self.naming == "dynamo":
            scopes = ["", *([self.module] if self.module else []), f"op_{self._count}"]
            entry = node.metadata_props.add()
            entry.key, entry.value = "pkg.torch.onnx.name_scopes", repr(scopes)
        self.nodes.append(node)
        return made[0] if len(made) == 1 else made

    def const(self, array: Any, dtype: Any = None) -> str:
        self._count += 1
        tensor = numpy_helper.from_array(np.asarray(array, dtype=dtype), f"c{self._count}")
        if self.constants_as_nodes:
            self.nodes.append(helper.make_node("Constant", [], [tensor.name], value=tensor))
        else:
            self.initializers.append(tensor)
        return tensor.name

    def number(self, value: float) -> str:
        return self.const(value, self.dtype)

    def random(self, *shape: int, scale: float = 0.3) -> Array:
        self.seed += 1
        return (np.random.default_rng(self.seed).standard_normal(shape) * scale).astype(self.dtype)

    def linear(self, value: str, rows: int, columns: int, *, form: LinearForm = "matmul", bias: bool = False) -> str:
        weight = self.random(rows, columns)
        offset = self.const(self.random(columns)) if bias else None
        own = helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype))
        if form in ("gemm", "gemm_transposed"):
            flipped = form == "gemm_transposed"
            operands = [value, self.const(weight.T if flipped else weight), *([offset] if offset else [])]
            attributes: dict[str, Any] = {"transB": 1} if flipped else {}
            return str(self.op("Gemm", *operands, **attributes))
        if form == "transpose":
            operand = self.op("Transpose", self.const(np.ascontiguousarray(weight.T)), perm=[1, 0])
        elif form == "cast":
            operand = self.op("Cast", self.const(weight.astype(np.float64)), to=own)
        elif form == "half":
            operand = self.op("Cast", self.const(weight.astype(np.float16)), to=own)
        elif form == "identity":
            operand = self.op("Identity", self.const(weight))
        else:
            operand = self.const(weight)
        product = self.op("MatMul", value, operand)
        return str(self.op("Add", product, offset) if offset else product)

    def model(self, inputs: Described, outputs: Described) -> onnx.ModelProto:
        def described(values: Described) -> list[onnx.ValueInfoProto]:
            return [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in values.items()]

        graph = helper.make_graph(self.nodes, "graph", described(inputs), described(outputs), self.initializers)
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid(CONTRIB, 1)]
        return helper.make_model(
            graph, opset_imports=opsets, ir_version=max(8, helper.find_min_ir_version_for(opsets, True))
        )


def _half_one(b: Builder) -> tuple[str, str]:
    return b.number(0.5), b.number(1.0)


def _erf_inner(b: Builder, gate: str) -> str:
    return str(b.op("Erf", b.op("Div", gate, b.number(2**0.5))))


def _tanh_inner(b: Builder, gate: str) -> str:
    cube = b.op("Mul", b.op("Pow", gate, b.number(3.0)), b.number(0.044715))
    return str(b.op("Tanh", b.op("Mul", b.op("Add", gate, cube), b.number((2 / np.pi) ** 0.5))))


def _half_gate(b: Builder, gate: str, squashed: str) -> str:
    half, one = _half_one(b)
    return str(b.op("Mul", b.op("Mul", gate, half), b.op("Add", squashed, one)))


def _half_last(b: Builder, gate: str, squashed: str) -> str:
    half, one = _half_one(b)
    return str(b.op("Mul", half, b.op("Mul", gate, b.op("Add", one, squashed))))


def _half_inside(b: Builder, gate: str, squashed: str) -> str:
    half, one = _half_one(b)
    return str(b.op("Mul", b.op("Mul", b.op("Add", squashed, one), half), gate))


@dataclass(frozen=True, slots=True)
class Activation:
    """How a gate activation is written: the kind of GLU it makes, the oldest opset, and the nodes."""

    kind: str
    write: Callable[[Builder, str], str]
    opset: int = 13


def _scaled(b: Builder, gate: str) -> str:
    return str(b.op("Mul", b.op("Sigmoid", b.op("Mul", b.number(1.702), gate)), gate))


def _exp(b: Builder, gate: str) -> str:
    return str(b.op("Div", gate, b.op("Add", b.number(1.0), b.op("Exp", b.op("Neg", gate)))))


def _cast(b: Builder, gate: str) -> str:
    own = helper.np_dtype_to_tensor_dtype(np.dtype(b.dtype))
    squashed = b.op("Sigmoid", b.op("Cast", gate, to=onnx.TensorProto.FLOAT))
    return str(b.op("Mul", gate, b.op("Cast", squashed, to=own)))


def _squared(b: Builder, gate: str) -> str:
    relu = b.op("Relu", gate)
    return str(b.op("Mul", relu, relu))


ACTIVATIONS: dict[str, Activation] = {
    "silu": Activation("swiglu", lambda b, g: b.op("Mul", g, b.op("Sigmoid", g))),
    "silu_commuted": Activation("swiglu", lambda b, g: b.op("Mul", b.op("Sigmoid", g), g)),
    "silu_scaled": Activation("swiglu", _scaled),
    "silu_cast": Activation("swiglu", _cast),
    "silu_exp": Activation("swiglu", _exp),
    "swish": Activation("swiglu", lambda b, g: b.op("Swish", g), 24),
    "quick_gelu": Activation("swiglu", lambda b, g: b.op("QuickGelu", g, domain=CONTRIB, alpha=1.0)),
    "gelu": Activation("geglu", lambda b, g: b.op("Gelu", g), 20),
    "gelu_tanh": Activation("geglu", lambda b, g: b.op("Gelu", g, approximate="tanh"), 20),
    "gelu_contrib": Activation("geglu", lambda b, g: b.op("Gelu", g, domain=CONTRIB)),
    "fast_gelu": Activation("geglu", lambda b, g: b.op("FastGelu", g, domain=CONTRIB)),
    "erf_half_gate": Activation("geglu", lambda b, g: _half_gate(b, g, _erf_inner(b, g))),
    "erf_half_last": Activation("geglu", lambda b, g: _half_last(b, g, _erf_inner(b, g))),
    "erf_half_inside": Activation("geglu", lambda b, g: _half_inside(b, g, _erf_inner(b, g))),
    "tanh_half_gate": Activation("geglu", lambda b, g: _half_gate(b, g, _tanh_inner(b, g))),
    "tanh_half_last": Activation("geglu", lambda b, g: _half_last(b, g, _tanh_inner(b, g))),
    "tanh_half_inside": Activation("geglu", lambda b, g: _half_inside(b, g, _tanh_inner(b, g))),
    "relu": Activation("reglu", lambda b, g: b.op("Relu", g)),
    "relu_squared": Activation("squared_reglu", _squared),
    "relu_power": Activation("squared_reglu", lambda b, g: b.op("Pow", b.op("Relu", g), b.number(2.0))),
    "sigmoid": Activation("glu", lambda b, g: b.op("Sigmoid", g)),
}


@dataclass(frozen=True, slots=True)
class Glu:
    """One way to write a GLU block.

    Attributes:
        activation: a key of ACTIVATIONS.
        form: how its projections are written.
        packing: gate and up apart, or one projection cut in two.
        gate_first: the order of the product's operands.
        bias: whether projections have one.
        between: operators between the activation and the product, and in front of down.
        width, inner: K and N of the gate.
    """

    activation: str = "silu"
    form: LinearForm = "matmul"
    packing: Packing = "separate"
    gate_first: bool = True
    bias: bool = False
    between: tuple[str, ...] = ()
    width: int = 8
    inner: int = 12


def write_glu(b: Builder, value: str, glu: Glu, prefix: str = "model.layers.0.mlp") -> str:
    """Write a GLU block that reads `value`; the result is the output of down."""
    gate, up = _gate_and_up(b, value, glu, prefix)
    b.module = prefix
    activated = ACTIVATIONS[glu.activation].write(b, gate)
    activated = _moved(b, activated, glu.between)
    product = b.op("Mul", *((activated, up) if glu.gate_first else (up, activated)))
    product = _moved(b, product, glu.between)
    b.module = f"{prefix}.down_proj"
    return b.linear(product, glu.inner, glu.width, form=glu.form, bias=glu.bias)


def _moved(b: Builder, value: str, between: Sequence[str]) -> str:
    own = helper.np_dtype_to_tensor_dtype(np.dtype(b.dtype))
    for op_type in between:
        value = b.op("Cast", value, to=own) if op_type == "Cast" else b.op(op_type, value)
    return value


def _gate_and_up(b: Builder, value: str, glu: Glu, prefix: str) -> tuple[str, str]:
    if glu.packing == "separate":
        b.module = f"{prefix}.gate_proj"
        gate = b.linear(value, glu.width, glu.inner, form=glu.form, bias=glu.bias)
        b.module = f"{prefix}.up_proj"
        return gate, b.linear(value, glu.width, glu.inner, form=glu.form, bias=glu.bias)
    b.module = f"{prefix}.gate_up_proj"
    both = b.linear(value, glu.width, 2 * glu.inner, form=glu.form, bias=glu.bias)
    b.module = prefix
    if glu.packing == "split":
        gate, up = b.op("Split", both, b.const([glu.inner] * 2, np.int64), outputs=2, axis=-1)
        return gate, up
    if glu.packing == "gather":
        pair = b.op("Reshape", both, b.const([-1, 2, glu.inner], np.int64))
        gate, up = (b.op("Gather", pair, b.const(n, np.int64), axis=1) for n in (0, 1))
        return gate, up
    edges = [(0, glu.inner), (glu.inner, 2 * glu.inner)]
    parts = [b.op("Slice", both, *(b.const([n], np.int64) for n in (low, high, -1))) for low, high in edges]
    return parts[0], parts[1]


def glu_model(
    *blocks: Glu,
    opset: int = 21,
    naming: Naming = "anonymous",
    dtype: type[np.generic] = np.float32,
    constants_as_nodes: bool = False,
) -> onnx.ModelProto:
    """Residual GLU blocks over x [tokens, width], y [tokens, width]."""
    b = Builder(opset, naming, dtype, constants_as_nodes=constants_as_nodes)
    value = "x"
    for layer, glu in enumerate(blocks):
        out = write_glu(b, value, glu, f"model.layers.{layer}.mlp")
        b.module = f"model.layers.{layer}"
        value = b.op("Add", value, out, outputs=["y"] if layer == len(blocks) - 1 else 1)
    kind, width = helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), blocks[0].width
    return b.model({"x": (kind, ["tokens", width])}, {"y": (kind, ["tokens", width])})


def after(one: ir.passes.PassBase, proto: onnx.ModelProto) -> tuple[onnx.ModelProto, bool]:
    """A model behind `Canonicalize` and a pass, checked by onnx itself; and whether the pass changed it."""
    graph = ir.from_proto(proto)
    Canonicalize()(graph)
    modified = one(graph).modified
    result = ir.to_proto(graph)
    onnx.checker.check_model(result, full_check=True)
    return result, modified


def weights_of(found: Identified, graph: ir.Model) -> set[str | None]:
    """Names of the initializers that hold the weights of a graph's sites."""
    nodes = {site.node for site in found.sites}
    weights = [weight_of(node.inputs[1]) for node in graph.graph if node.name in nodes]
    return {weight.initializer.name for weight in weights if weight is not None}

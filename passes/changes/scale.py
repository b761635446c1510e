"""Channels of activations by powers of two, folded into constants: the model computes to the bit what it did."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from spq_graph.documents.changes import Scale
from spq_graph.passes.base.conditions import NamedPass
from spq_graph.passes.base.operand import Operand, operand_of
from spq_graph.passes.base.stock import Stock
from spq_graph.passes.find.absorbers import find_absorbers
from spq_graph.terms.absorber import Absorber, Heads, gathered, shared_alike
from spq_graph.terms.errors import GraphError
from spq_graph.terms.site import Site

_ANEW = "make the plan again with `spq-graph plan`"


class ScaleChannels(NamedPass):
    """Divide channels of activations by powers of two in what makes them, and multiply the rows that read them.

    Only constants change. They are worked out when they are read, one at a time: a model need not fit the memory.

    Args:
        scales: what to do; each activation at most once.
        sites: products of the graph.
        stock: what was made of weights for other graphs of the same source; None for nothing.

    Calling it raises GraphError where the graph has nothing at that place that takes the factors, or not so many.
    Reading a constant raises it where its numbers do not take them exactly.
    """

    def __init__(self, scales: Sequence[Scale], sites: Sequence[Site], stock: Stock | None = None) -> None:
        super().__init__()
        self.scales = scales
        self.sites = sites
        self.stock = stock or Stock()

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        if not self.scales:
            return ir.passes.PassResult(model, modified=False)
        absorbers, others = find_absorbers(model.graph, self.sites)
        there, why = {a.value: a for a in absorbers}, {o.value: o.why for o in others}
        nodes = {node.name: node for node in model.graph}
        operands = {site.key: operand for site in self.sites if (operand := _operand_at(nodes.get(site.node)))}
        for scale in self.scales:
            absorber = there.get(scale.value)
            if absorber is None or _place(absorber) != _place(scale):
                there_is = f"{absorber.tensor} does, {_counted(absorber.heads)}" if absorber else "no site reads it"
                what = why.get(scale.value) or there_is
                raise GraphError(
                    f"'{scale.tensor}' does not take the factors of this activation: {what}",
                    where=scale.value,
                    remedy=_ANEW,
                )
            reading = [operands[key] for key in absorber.sites]
            has = reading[0].shape[0]
            if len(scale.exponents) != has:
                raise GraphError(
                    f"the plan has factors for {len(scale.exponents)} channels, and the activation has {has}",
                    where=scale.value,
                    remedy=_ANEW,
                )
            exponents = np.asarray(scale.exponents, dtype=np.int32)
            if not shared_alike(exponents, absorber.heads):
                raise GraphError(
                    "the plan has different factors for heads of the query that share one of the values",
                    where=scale.value,
                    remedy=_ANEW,
                )
            once = -gathered(exponents, absorber.heads)
            self._multiply(model.graph.initializers[scale.tensor], scale.axis, once)
            if absorber.bias is not None:
                bias = model.graph.initializers[absorber.bias]
                self._multiply(bias, len(_held(bias).shape) - 1, once)
            for initializer, axis in {(o.weight.initializer, o.axes[0]) for o in reading}:
                self._multiply(initializer, axis, exponents)
        return ir.passes.PassResult(model, modified=True)

    def _multiply(self, constant: ir.Value, axis: int, exponents: npt.NDArray[np.int32]) -> None:
        held = _held(constant)
        scaled = Scaled(held, axis, exponents)
        # What is scaled is held by it, so that nothing else gets its identity.
        constant.const_value = self.stock.tensors.setdefault((id(held), axis, exponents.tobytes()), scaled)


def _counted(heads: Heads | None) -> str:
    return "channel by channel" if heads is None else "of {} heads of the query and {} of the values".format(*heads)


def _place(at: Absorber | Scale) -> tuple[object, ...]:
    """What takes the factors, and how."""
    return at.tensor, at.axis, at.heads


def _operand_at(node: ir.Node | None) -> Operand | None:
    return operand_of(node) if node is not None else None


def _held(constant: ir.Value) -> ir.TensorProtocol:
    held = constant.const_value
    assert held is not None
    return held


class Scaled(ir.LazyTensor):
    """A tensor times powers of two along one axis, worked out when it is read.

    Reading it raises GraphError where the product would be rounded, or too large. That is looked for once: candidates
    that are measured read the same tensor dozens of times.
    """

    __slots__ = ("axis", "exact", "exponents", "tensor")

    def __init__(self, tensor: ir.TensorProtocol, axis: int, exponents: npt.NDArray[np.int32]) -> None:
        super().__init__(self._made, dtype=tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=tensor.name)
        self.tensor, self.axis, self.exponents, self.exact = tensor, axis, exponents, False

    def __repr__(self) -> str:
        return f"{self._repr_base()}(powers of two times {self.tensor.name!r})"

    def _made(self) -> ir.TensorProtocol:
        array = np.asarray(self.tensor.numpy())
        along = [1] * array.ndim
        along[self.axis] = -1
        exponents = self.exponents.reshape(along)
        scaled = _times(array, exponents)
        self.exact = self.exact or np.array_equal(_times(scaled, -exponents), array, equal_nan=True)
        if not self.exact:
            raise GraphError(
                f"a number of '{self.tensor.name}' is too small or too large to be scaled exactly",
                where="smoothing",
                remedy="leave the remedy out with --no-remedy smooth",
            )
        return ir.Tensor(scaled, dtype=self.dtype)


def _times(array: npt.NDArray[Any], exponents: npt.NDArray[np.int32]) -> npt.NDArray[Any]:
    """An array times two to the exponents, in its own type; bfloat16 has the exponents of float32."""
    factors = np.ldexp(np.float32(1), exponents)  # of which none leaves the normal numbers: a product is rounded alike
    with np.errstate(over="ignore", under="ignore"):  # both are looked for
        return np.asarray((array.astype(np.float32, copy=False) * factors).astype(array.dtype, copy=False))

"""What every form says of itself, and what is asked of it at one site."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from spq_graph.documents.changes import Peel, Scale
from spq_graph.documents.plan import SitePlan
from spq_graph.documents.recipe import Recipe
from spq_graph.passes.base.editor import Editor
from spq_graph.passes.base.operand import Operand
from spq_graph.passes.forms.encode import Storage
from spq_graph.passes.forms.steps import MATMUL, Step, cast_to
from spq_graph.passes.numbers.scales import ActivationQuantizer, block_size_for
from spq_graph.terms.errors import GraphError
from spq_graph.terms.form import Form
from spq_graph.terms.precision import Precision
from spq_graph.terms.site import Role
from spq_graph.terms.targets import Profile

# The precision of a product in half precision that is left alone; any other counts as single.
HALF_PRECISIONS = {ir.DataType.FLOAT16: Precision.FP16, ir.DataType.BFLOAT16: Precision.BF16}


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a plan asks for at one site.

    Attributes:
        site: its plan.
        recipe: of the plan.
        profile: of what is to run it: the recipe's target, or its emulation.
        opset: of the graph, in ONNX's own domain.
        peels: of the plan, by activation value.
        scales: of the plan, by activation value; the graph has them.
        tied: of a lookup, the head that reads the same table in 8 bits; None where none does.
    """

    site: SitePlan
    recipe: Recipe
    profile: Profile
    opset: int
    peels: Mapping[str, Peel] = field(default_factory=dict, repr=False)
    scales: Mapping[str, Scale] = field(default_factory=dict, repr=False)
    tied: SitePlan | None = None

    @property
    def form(self) -> Form:
        """What its product becomes, or its lookup."""
        if self.tied is not None and self.tied.precision.row.by_token and self.site.precision.row.by_block:
            return Form.LOOKUP_PANELS
        return self.profile.form_at(self.site.role, self.site.precision, branch=self.peel is not None)

    @property
    def size(self) -> int | None:
        """Of the blocks of its weight, where that is not what `block_size_for` says."""
        block = (self.tied or self.site).precision.row.block
        channels = self.site.shape[1 if self.site.role is Role.EMBEDDING else 0]
        return None if block == block_size_for(channels) else block

    @property
    def head(self) -> Wanted:
        """What the plan asks for at the head that reads the same table; of a lookup that is tied to one."""
        assert self.tied is not None
        return replace(self, site=self.tied, tied=None)

    @property
    def range(self) -> tuple[float, float]:
        """Smallest and largest activation, once its channels are scaled where the plan does that.

        Raises:
            GraphError: the plan holds none.
        """
        if self.site.range is None:
            raise GraphError(
                "the plan holds no range for this site's activation",
                where=self.site.key,
                remedy="set the site to fp32 in the plan, or make the plan again with `spq-graph plan`",
            )
        scale = self.scales.get(self.site.input)
        return self.site.range if scale is None else (scale.low, scale.high)

    @property
    def quantizer(self) -> ActivationQuantizer:
        """The quantizer of its activation, where that becomes integers.

        Raises:
            GraphError: the plan holds no range for it.
        """
        bits = self.site.precision.bits
        assert bits is not None
        covered = self.range if self.peel is None else (self.peel.low, self.peel.high)
        return ActivationQuantizer.fit(*covered, bits, self.recipe.activations, signed=self.profile.signed)

    @property
    def peel(self) -> Peel | None:
        """Its outlier branch; None where it has none."""
        return self.peels.get(self.site.input) if self.site.precision.takes_branch else None

    def in_integers(self, operand: Operand) -> Operand:
        """What of a weight is multiplied in integers: all but the rows of outlier channels, which are zeros there."""
        return operand if self.peel is None else operand.leaving_out(self.peel.channels)

    def is_as_it_was(self, operand: Operand) -> bool:
        """Whether the graph computes in its precision already: then nothing is written."""
        if self.site.role is Role.EMBEDDING:
            return not self.site.precision.row.by_block
        return self.site.precision is HALF_PRECISIONS.get(operand.dtype, Precision.FP32)


Stored = TypeVar("Stored", bound=Storage)


@dataclass(slots=True)
class Place:
    """A site in a graph under edit.

    Attributes:
        editor: of the graph.
        node: its product.
        operand: the source's weight.
        wanted: what the plan asks for there.
    """

    editor: Editor
    node: ir.Node
    operand: Operand
    wanted: Wanted

    @property
    def site(self) -> SitePlan:
        """Its plan."""
        return self.wanted.site

    @property
    def activation(self) -> str:
        """What names of things that its siblings share begin with."""
        return f"{self.site.input}.{self.site.precision}"

    @property
    def weight(self) -> str:
        """What names of constants that stand for its weight begin with."""
        return f"{self.site.node}.weight.{self.site.precision}"

    def as_matmul(self) -> None:
        """Turn a Gemm into MatMul and Add; the weight is for the form to replace."""
        self.node = self.editor.as_matmul(self.node)

    def widen(self) -> None:
        """Compute in float32 where the graph is in another type."""
        self.editor.widen(self.node, self.operand.dtype)

    def known(self, storage: Stored) -> Stored:
        """The same, or the one that equals it and was asked for first: scales are worked out once for a matrix."""
        return cast(Stored, self.editor.stock.storages.setdefault(storage, storage))

    def stored(self, storage: Storage, name: str) -> ir.Value:
        """The weight as a constant of the graph; products that share a matrix and a form share it.

        Raises:
            GraphError: the weight is not finite.
        """
        if storage not in self.editor.stored:
            self.editor.stored[storage] = self.editor.constant(
                name, storage.tensor(name, self.site.key, self.editor.stock)
            )
        return self.editor.stored[storage]

    def beside(self, storage: Storage, name: str, array: npt.NDArray[Any]) -> ir.Value:
        """A constant that belongs to a stored weight, and is shared as that is: its scales, its zero points.

        Args:
            storage: of the weight.
            name: of the constant; what it is stands behind the last dot.
            array: what it holds.
        """
        key = (storage, name.rpartition(".")[2])
        if key not in self.editor.stored:
            self.editor.stored[key] = self.editor.constant(name, ir.Tensor(array))
        return self.editor.stored[key]


class Around(NamedTuple):
    """The nodes that a form inserts around a product, each list from the product outwards.

    Attributes:
        activation: between the product and what the site reads.
        weight: between the product and its constant.
        result: between the product and what the site gives, a bias apart.
    """

    activation: list[Step]
    weight: list[Step]
    result: list[Step]


class FormRules(ABC):
    """One form: how a product is written in it, and what must then be there.

    The two are told apart from each other on purpose: what checks a graph follows from plan and source alone.
    """

    @abstractmethod
    def insert(self, at: Place) -> None:
        """Write the product of a site in this form.

        Raises:
            GraphError: the plan holds no range that it needs, or the weight cannot be had in it.
        """

    @abstractmethod
    def storage(self, wanted: Wanted, operand: Operand) -> Storage:
        """How the weight is stored."""

    def differs(self, node: ir.Node, wanted: Wanted) -> str | None:
        """How a product in a file differs from what is wanted, in words; None where it does not."""
        return None

    def product(self, wanted: Wanted) -> Step:
        """The product itself."""
        return MATMUL

    def around(self, wanted: Wanted, operand: Operand) -> Around:
        """What is inserted around the product."""
        return self.widened(Around([], [], []), operand)

    def holder(self, node: ir.Node) -> ir.Node:
        """The node that reads the weight's constant, and its scales behind it: the product, or what dequantizes."""
        value = node.inputs[1] if len(node.inputs) > 1 else None
        maker = value.producer() if value is not None else None
        return node if maker is None else maker

    def scales(self, node: ir.Node) -> ir.Value | None:
        """The constant with the weight's scales."""
        holder = self.holder(node)
        place = 2 if holder is node else 1
        return holder.inputs[place] if len(holder.inputs) > place else None

    def expected_scales(self, storage: Storage, wanted: Wanted) -> npt.NDArray[np.float32] | None:
        """What that constant holds; None in forms without scales."""
        return storage.scales

    def differing_branch(
        self, node: ir.Node, activation: Sequence[ir.Node], result: Sequence[ir.Node], wanted: Wanted, operand: Operand
    ) -> str | None:
        """How the outlier branch of a product in a file differs from the plan's, in words; None where it does not.

        Args:
            node: the product.
            activation: what was inserted between the product and what the site reads, from the product on.
            result: what was inserted between the product and what the site gives.
            wanted: what its plan asks for.
            operand: the source's weight.
        """
        return None

    def computes_in(self, dtype: ir.DataType) -> bool:
        """Whether the product takes activations of this type without being widened."""
        return dtype is ir.DataType.FLOAT

    def widened(self, around: Around, operand: Operand) -> Around:
        """The same with the Casts that widen activation and narrow result, where the product is computed in float32."""
        if self.computes_in(operand.dtype):
            return around
        return Around(
            [*around.activation, cast_to(ir.DataType.FLOAT)], around.weight, [*around.result, cast_to(operand.dtype)]
        )


def producer_of(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """What makes a value, where it is this operator."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == op_type else None

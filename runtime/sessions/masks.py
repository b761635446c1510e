"""Masks over pairs of tokens: which of the usual meanings an input has, told by what reads it, and what it then takes.

A mask [batch, heads, queries, keys] may be added to the scores, be true where a token may look, or true where it may
not. Names and shapes say nothing of it; the operators that follow do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from spq_graph.terms.targets import CONTRIB

Bools = npt.NDArray[np.bool_]

_MOVES = frozenset({"Cast", "Identity", "Unsqueeze", "Squeeze", "Reshape", "Expand", "Slice", "Transpose", "And", "Or"})
# By domain and operator, the input that takes a mask which is added, or in ONNX's own Attention one of truth values.
_ATTENTION = {("", "Attention"): 3, (CONTRIB, "MultiHeadAttention"): 5, (CONTRIB, "GroupQueryAttention"): 10}
_MOST = 256  # nodes that are followed


class MaskForm(Enum):
    """What a mask over pairs of tokens means."""

    ADDED = "0 where a token may look, and as low as the type goes elsewhere"
    LOOKS = "1, or true, where a token may look"
    HIDES = "1, or true, where a token may not look"

    @property
    def opposite(self) -> MaskForm:
        """The form whose ones and zeros are the other way round."""
        return MaskForm.HIDES if self is MaskForm.LOOKS else MaskForm.LOOKS


def mask_forms(path: Path, names: Sequence[str]) -> dict[str, MaskForm]:
    """What inputs of a file mean as masks; those that nothing tells of are left out. External data is not touched."""
    graph = onnx.load(path, load_external_data=False).graph
    reader = _Reader(graph)
    found = {name: reader.form_of(name) for name in names}
    return {name: form for name, form in found.items() if form is not None}


def pair_mask(
    mask: npt.NDArray[np.int64], new: int, shape: Sequence[int | str | None], dtype: type[np.generic], form: MaskForm
) -> npt.NDArray[np.generic]:
    """A causal mask, [rows, heads, new, tokens] or [rows, new, tokens]; padding sees and is seen by itself alone.

    Args:
        mask: over all tokens, int64 [rows, tokens], 0 for padding.
        new: how many of them, the last ones, look.
        shape: as the graph declares it; a single query stands for all of them.
        dtype: element type.
        form: what the mask means.
    """
    columns = np.arange(mask.shape[1])
    looks: Bools = mask[:, None, :].astype(bool)
    if shape[-2] != 1 or new == 1:
        queries = columns[len(columns) - new :, None]
        looks = (looks & (columns <= queries)) | (columns == queries)
    if len(shape) == 4:
        heads = shape[1] if isinstance(shape[1], int) else 1
        looks = np.repeat(looks[:, None], heads, axis=1)
    if form is MaskForm.ADDED:
        return np.where(looks, 0, np.finfo(dtype).min).astype(dtype)  # type: ignore[type-var]
    return (looks if form is MaskForm.LOOKS else ~looks).astype(dtype)


class _Reader:
    """Questions about the nodes that read a mask.

    Args:
        graph: as it lies in the file.
    """

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._producers = {name: node for node in graph.node for name in node.output if name}
        self._users: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self._users.setdefault(name, []).append(node)
        self._tensors: Mapping[str, onnx.TensorProto] = {t.name: t for t in graph.initializer}
        self._logical = {v.name for v in graph.input if v.type.tensor_type.elem_type == onnx.TensorProto.BOOL}

    def form_of(self, name: str) -> MaskForm | None:
        """What a mask means, by the first operator that tells; None where none does."""
        pending, seen = [(name, MaskForm.LOOKS, name in self._logical)], {name}
        while pending and len(seen) < _MOST:
            value, ones, logical = pending.pop(0)
            for node in self._users.get(value, []):
                told = self._told_by(node, value, ones, logical)
                if told is not None:
                    return told
                step = self._step(node, value, ones, logical)
                if step is not None and node.output[0] not in seen:
                    seen.add(node.output[0])
                    pending.append((node.output[0], *step))
        return None

    def _told_by(self, node: onnx.NodeProto, value: str, ones: MaskForm, logical: bool) -> MaskForm | None:
        """The mask's form, where this node tells; `ones` is what ones here would mean if they let a token look.

        `ones` is flipped at each negation on the way: where ones let a token look here, it is the form of the mask.
        """
        place = list(node.input).index(value)
        if _ATTENTION.get((node.domain.replace("ai.onnx", ""), node.op_type)) == place:
            return ones if logical else MaskForm.ADDED
        if node.op_type == "Where" and place == 0 and len(node.input) == 3:
            low = [(number := self._number(name)) is not None and number < 0 for name in node.input[1:]]
            return None if low[0] == low[1] else ones if low[1] else ones.opposite
        if logical or len(node.input) != 2:
            return None
        if node.op_type == "Mul" and (factor := self._number(node.input[1 - place])) is not None and factor < -1:
            return ones.opposite  # what is one here is made low
        if node.op_type == "Sub" and place == 0 and self._number(node.input[1]) == 1:
            return ones  # mask - 1, which is then scaled
        other = self._number(node.input[1 - place]) if node.op_type == "Add" else 0.0
        return MaskForm.ADDED if other is None and ones is MaskForm.LOOKS else None

    def _step(self, node: onnx.NodeProto, value: str, ones: MaskForm, logical: bool) -> tuple[MaskForm, bool] | None:
        """What ones mean behind a node, and whether they are truth values there; None where it leads nowhere."""
        if node.op_type == "Cast":
            kind = next((a.i for a in node.attribute if a.name == "to"), 0)
            # A float that becomes a truth value, or a truth value a float, stays a mask of ones.
            return ones, kind == onnx.TensorProto.BOOL
        if node.op_type in _MOVES and (node.op_type in ("And", "Or") or node.input[0] == value):
            return ones, logical
        if node.op_type == "Not":
            return ones.opposite, True
        if node.op_type == "Equal" and 0 in map(self._number, node.input):
            return ones.opposite, True
        if node.op_type == "Sub" and list(node.input[1:]) == [value] and self._number(node.input[0]) == 1:
            return ones.opposite, logical
        return None

    def _number(self, name: str, depth: int = 6) -> float | None:
        """The one number that a constant holds, seen through moves; None for anything else."""
        tensor, node = self._tensors.get(name), self._producers.get(name)
        if node is not None and node.op_type in ("Constant", "ConstantOfShape"):
            tensor = next((a.t for a in node.attribute if a.name == "value"), None)
        elif node is not None and node.op_type in _MOVES and depth:
            return self._number(node.input[0], depth - 1)
        if tensor is None or tensor.data_location == onnx.TensorProto.EXTERNAL or int(np.prod(tensor.dims)) != 1:
            return None
        try:
            return float(numpy_helper.to_array(tensor).reshape(-1)[0])
        except (ValueError, TypeError):  # a tensor that is cut short, or holds text, tells nothing
            return None

"""The cache of a decoder, and the inputs that go with it: keys and values come in, and go out with those of new tokens.

What stands in between does not matter: an attention of any form is handed what comes in, and hands on what goes out.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from spq_graph.passes.base.values import FLOATS, sizes_of
from spq_graph.passes.find.tables import ids_of
from spq_graph.terms.cache import continued, is_past
from spq_graph.terms.errors import GraphError
from spq_graph.terms.targets import CONTRIB

_AXES, _LENGTH = 4, -2  # [batch, heads, length, width]
# Inputs of which a row of zeros, or a number, means the same whatever stands before the tokens.
_OF_NEW_TOKENS = ("token_type", "segment_ids", "logits_to_keep")
_EXPORT = "export the decoder with `spq-graph export`, or from its folder, which gives it a cache that grows"


@dataclass(frozen=True, slots=True)
class Caches:
    """What of a decoder follows from how many tokens came before.

    Attributes:
        ids: token ids, int64 or int32 [batch, new].
        pairs: what comes in, [batch, heads, past, width], and what goes out, [batch, heads, past + new, width]: keys
            and values of every layer.
        masks: over all tokens, [batch, past + new].
        positions: of the new ones.
    """

    ids: ir.Value
    pairs: list[tuple[ir.Value, ir.Value]]
    masks: list[ir.Value]
    positions: list[ir.Value]

    @property
    def lengths(self) -> set[str]:
        """Names of the dimensions that tokens before count in."""
        values = [*(value for pair in self.pairs for value in pair), *self.masks]
        axes = [_LENGTH] * (2 * len(self.pairs)) + [-1] * len(self.masks)
        sizes = (sizes_of(value)[axis] for value, axis in zip(values, axes, strict=True))
        names = {size.value for size in sizes if isinstance(size, ir.SymbolicDim)}
        of_ids = {size.value for size in sizes_of(self.ids) if isinstance(size, ir.SymbolicDim)}
        return {name for name in names - of_ids if name is not None}


def find_caches(graph: ir.Graph) -> Caches:
    """The cache of a decoder.

    Args:
        graph: canonical.

    Raises:
        GraphError: it has none, none that grows by concatenation, or an input that it is not known to go with.
    """
    ids = [value for value in ids_of(graph) if len(sizes_of(value)) == 2]
    if len(ids) != 1:
        raise GraphError("no input of token ids, [batch, length], was found", remedy=_EXPORT)
    _refuse_fused(graph)
    past = [v for v in graph.inputs if is_past(v.name or "") and len(sizes_of(v)) not in (1, 2)]
    if not past:
        raise GraphError(
            "the graph takes no keys and values of earlier tokens, which a prefix stands among", remedy=_EXPORT
        )
    given = {value.name or "": value for value in graph.outputs}
    after = continued([value.name or "" for value in past], given)
    pairs = [(value, given[after[value.name or ""]]) for value in past if value.name in after]
    for value in past:
        _refuse_other(value, given.get(after.get(value.name or "", "")))
    others = [value for value in graph.inputs if value not in past and value is not ids[0]]
    masks = [value for value in others if "mask" in (value.name or "")]
    positions = [value for value in others if "position" in (value.name or "")]
    for value in others:
        known = value in masks or value in positions or any(word in (value.name or "") for word in _OF_NEW_TOKENS)
        if not known or (value in masks and len(sizes_of(value)) != 2):
            raise GraphError(
                f"input '{value.name}' ({value.dtype}, {value.shape}) is not known to go with a cache: only masks over "
                "tokens, [batch, length], positions and token types are",
                where=value.name or "",
                remedy=_EXPORT,
            )
    return Caches(ids[0], pairs, masks, positions)


def _refuse_fused(graph: ir.Graph) -> None:
    """Refuse attention of ONNX Runtime's own, which counts what came before by itself."""
    for node in graph.all_nodes():
        if node.domain == CONTRIB and "Attention" in node.op_type:
            raise GraphError(
                f"{node.op_type} of ONNX Runtime takes several tokens behind others in one row only",
                where=node.name or "",
                remedy="export the decoder with attention written out, or as ONNX's own Attention: `spq-graph export`",
            )


def _refuse_other(past: ir.Value, present: ir.Value | None) -> None:
    """Refuse keys or values that do not grow as ours do: [batch, heads, length, width], the length free."""
    sizes = sizes_of(past)
    grows = len(sizes) == _AXES and not isinstance(sizes[_LENGTH], int) and past.dtype in FLOATS
    whole = grows and isinstance(sizes[1], int) and isinstance(sizes[-1], int)
    if not whole or present is None or present.producer() is None or len(sizes_of(present)) != _AXES:
        told = "nothing that the graph gives continues it" if present is None else f"it is {past.dtype}, {past.shape}"
        raise GraphError(
            f"the cache '{past.name}' is not one that grows along [batch, heads, length, width]: {told}",
            where=past.name or "",
            remedy=_EXPORT,
        )

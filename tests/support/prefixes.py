"""Prefixes for tiny decoders, by ONNX Runtime alone: what their source computes behind the tokens of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx

from spq_graph.documents.changes import Prefix
from tests.support.graphs import Array
from tests.support.inserting import run


class Cached:
    """A decoder with a cache, fed as any client feeds one.

    Args:
        model: with the names of the contract.
    """

    def __init__(self, model: Path | onnx.ModelProto) -> None:
        self.model = model
        graph = (onnx.load(model) if isinstance(model, Path) else model).graph
        self.pasts = {
            value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
            for value in graph.input
            if value.name.startswith("past")
        }
        self.takes = [value.name for value in graph.input]
        self.gives = [value.name for value in graph.output]

    def step(self, ids: Array, past: Mapping[str, Array] | None = None, mask: Array | None = None) -> dict[str, Array]:
        """All outputs for some tokens behind others, by name.

        Args:
            ids: int64 [batch, new].
            past: what the cache holds, by input; None for nothing.
            mask: int64 [batch, past + new]; None for ones.
        """
        batch, new = ids.shape
        if past is None:
            past = {name: np.zeros((batch, sizes[1], 0, sizes[3]), np.float32) for name, sizes in self.pasts.items()}
        length = next(iter(past.values())).shape[2]
        mask = np.ones((batch, length + new), np.int64) if mask is None else mask
        positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)[:, length:]
        feeds = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, **past}
        fed = {name: feeds[name] for name in self.takes}
        return dict(zip(self.gives, run(self.model, fed, self.gives), strict=True))

    def after(self, given: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs that continue the cache, as its inputs."""
        return {name: given[name.replace("past_key_values", "present")] for name in self.pasts}


def prefix_for(model: Path | onnx.ModelProto, tokens: Sequence[int]) -> Prefix:
    """A prefix of these tokens."""
    source = Cached(model)
    return Prefix.of(tuple(tokens), source.after(source.step(np.array([tokens], np.int64))))

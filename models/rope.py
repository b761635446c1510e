"""Rotary positions whose frequencies depend on the length of the sequence, as operators of the graph.

transformers keeps such frequencies as state: a forward looks at the largest position, as data, and replaces a buffer.
No program can be traced from that. Here they are a function of the positions at hand, with the numbers that a fresh
model computes in one forward: the trained frequencies up to the trained length, and beyond it those of the rope type.

This module imports torch: import it where it is needed.
"""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS


def positions_as_data(model: nn.Module) -> None:
    """Have rotary embeddings of the types `dynamic` and `longrope` compute their frequencies anew, in place."""
    for module in model.modules():
        types = getattr(module, "rope_type", None)
        kinds = types.values() if isinstance(types, dict) else [types]
        if any(_follows_length(kind) for kind in kinds) and hasattr(type(module).forward, "__wrapped__"):
            module.__dict__["forward"] = partial(_forward, module)


def rope_types(config: Any) -> list[str]:
    """What a configuration calls its rotary positions, where it says so; one for each kind of layer that has its own.

    Args:
        config: of transformers, of either major version: the mapping is `rope_parameters` or `rope_scaling`.
    """
    given = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
    if not isinstance(given, dict):
        return []
    each = [given, *(value for value in given.values() if isinstance(value, dict))]
    named = [part.get("rope_type", part.get("type")) for part in each]
    return list(dict.fromkeys(str(name) for name in named if name is not None))


def _follows_length(rope_type: object) -> bool:
    """As transformers asks."""
    return isinstance(rope_type, str) and ("dynamic" in rope_type or rope_type == "longrope")


class _View:
    """A module with other frequencies; the module itself stays as it is, since a trace must not change state."""

    def __init__(self, module: nn.Module, **instead: Tensor) -> None:
        self._module = module
        self.__dict__.update(instead)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def _forward(module: Any, x: Tensor, position_ids: Tensor, layer_type: str | None = None) -> Any:
    """Takes the place of a rotary embedding's own: x of any shape, position_ids int64 [batch, length]."""
    extra = {} if layer_type is None else {"layer_type": layer_type}
    rope_type = module.rope_type if layer_type is None else module.rope_type[layer_type]
    prefix = "" if layer_type is None else f"{layer_type}_"
    view = module
    if _follows_length(rope_type):
        view = _View(module, **{f"{prefix}inv_freq": _frequencies(module, rope_type, position_ids, prefix, extra)})
    return inspect.unwrap(type(module).forward)(view, x, position_ids, **extra)


def _frequencies(module: Any, rope_type: str, position_ids: Tensor, prefix: str, extra: dict[str, str]) -> Tensor:
    """Inverse frequencies [head width / 2] for the longest sequence of a batch."""
    trained = getattr(module, f"{prefix}original_inv_freq")
    length = position_ids.max() + 1
    compute = ROPE_INIT_FUNCTIONS[rope_type]
    if rope_type != "longrope":
        longer, _ = compute(module.config, position_ids.device, seq_len=length, **extra)
        return torch.where(length > module.original_max_seq_len, longer, trained)
    scaling = getattr(module.config, "rope_parameters", None) or module.config.rope_scaling
    limit = (scaling[extra["layer_type"]] if extra else scaling).get("original_max_position_embeddings")
    limit = limit or getattr(module.config, "original_max_position_embeddings", module.config.max_position_embeddings)
    longer, _ = compute(module.config, position_ids.device, seq_len=limit + 1, **extra)
    return torch.where(length > limit, longer, trained)

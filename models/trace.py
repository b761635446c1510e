"""A causal language model as one program, with or without its keys and values as inputs and outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import DynamicCache, PreTrainedModel

INPUTS: Final = ("input_ids", "attention_mask", "position_ids")
OUTPUT: Final = "logits"

_BATCH: Final = "batch_size"
_NEW: Final = {0: _BATCH, 1: "sequence_length"}
# Named as optimum names it, so that what reads names of dimensions finds the sum that it is.
_ALL: Final = {0: _BATCH, 1: "past_sequence_length + sequence_length"}
_PAST: Final = {0: _BATCH, 2: "past_sequence_length"}

Pairs: TypeAlias = "list[list[Tensor]]"
"""Keys and values of every layer, each [batch, heads, length, width]."""


@dataclass(frozen=True, slots=True)
class Traced:
    """A traced model.

    Attributes:
        program: the torch.export.ExportedProgram.
        inputs, outputs: the names of the contract, in the order of the program's.
        axes: names of the dynamic dimensions, nested as the program's arguments are.
    """

    program: Any
    inputs: list[str]
    outputs: list[str]
    axes: Any


def trace(model: PreTrainedModel, *, cache: bool) -> Traced:
    """Traces a model with dynamic batch and lengths.

    Narrowing the model's own forward, instead of wrapping the model in another module, keeps every parameter and scope
    name as it is in the checkpoint.
    """
    from spq_graph.models.rope import positions_as_data

    _prepare_experts(model)
    positions_as_data(model)
    return _with_cache(model) if cache else _without(model)


def _prepare_experts(model: PreTrainedModel) -> None:
    """Has a mixture of experts take a form that can be traced.

    Which tokens an expert gets is data, so torch.export cannot follow the loops of transformers (`eager`), and ONNX has
    no grouped product (`grouped_mm`, the default). Experts that cannot be taken out of their stack have their weights
    gathered token by token (`batched_mm`). Done here and not while loading: a model that runs in torch need not pay.
    """
    from spq_graph.models.experts import separate_experts

    choose = getattr(model, "set_experts_implementation", None)
    if choose is not None:  # transformers 4 knows no choice
        choose("batched_mm")
    separate_experts(model)


def _without(model: PreTrainedModel) -> Traced:
    import torch

    forward = type(model).forward

    def logits_only(input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor) -> Any:
        return forward(
            model, input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
        ).logits

    model.__dict__["forward"] = logits_only
    ids = torch.ones(2, 8, dtype=torch.int64)
    arguments = (ids, torch.ones_like(ids), torch.arange(8).expand(2, 8))
    axes = (_NEW,) * 3
    return Traced(_export(model, arguments, axes), list(INPUTS), [OUTPUT], axes)


def _with_cache(model: PreTrainedModel) -> Traced:
    import torch

    shapes = _cache_shapes(model)
    forward = type(model).forward

    def step(input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, past: Pairs) -> tuple[Tensor, Pairs]:
        cache = _cache_of(past)
        logits = forward(
            model,
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
        ).logits
        return logits, [[layer.keys, layer.values] for layer in cache.layers]

    model.__dict__["forward"] = step
    # Sizes that differ from one another, so that nothing is taken for equal that only happens to be.
    batch, before, new = 2, 5, 3
    past = [[torch.zeros(batch, heads, before, width) for heads, width in pair] for pair in shapes]
    ids = torch.ones(batch, new, dtype=torch.int64)
    mask = torch.ones(batch, before + new, dtype=torch.int64)
    arguments = (ids, mask, torch.arange(before, before + new).expand(batch, new), past)
    axes = (_NEW, _ALL, _NEW, [[_PAST, _PAST] for _ in shapes])
    parts = [f"{layer}.{part}" for layer in range(len(shapes)) for part in ("key", "value")]
    inputs = [*INPUTS, *(f"past_key_values.{part}" for part in parts)]
    return Traced(_export(model, arguments, axes), inputs, [OUTPUT, *(f"present.{part}" for part in parts)], axes)


def _export(model: PreTrainedModel, arguments: tuple[Any, ...], axes: Any) -> Any:
    import torch
    from torch.export import Dim

    def dynamic(node: Any) -> Any:
        if isinstance(node, dict):
            return dict.fromkeys(node, Dim.DYNAMIC)
        return type(node)(dynamic(part) for part in node)

    with torch.no_grad():
        return torch.export.export(model, arguments, dynamic_shapes=dynamic(axes), strict=False)


def _cache_shapes(model: PreTrainedModel) -> list[list[tuple[int, int]]]:
    """Heads and width of every layer's keys and values, as one run of the model shows them: no config tells for sure.

    Raises:
        ValueError: some layer keeps another state than keys and values.
    """
    import torch

    with torch.no_grad():
        found = model(input_ids=torch.ones(1, 1, dtype=torch.int64), use_cache=True).past_key_values
    shapes = []
    for layer in getattr(found, "layers", []):
        pair = (getattr(layer, "keys", None), getattr(layer, "values", None))
        if any(part is None or part.dim() != 4 for part in pair):
            raise ValueError(f"its state is no cache of keys and values ({type(layer).__name__})")
        shapes.append([(part.shape[1], part.shape[3]) for part in pair if part is not None])
    if not shapes:
        raise ValueError(f"its state is no cache of keys and values ({type(found).__name__})")
    return shapes


def _cache_of(past: Pairs) -> DynamicCache:
    """The library's own cache, filled; every layer keeps all tokens, and the masks alone make windows slide.

    The layers are filled by hand: the cache's own `update` would trace a concatenation with nothing, and the signature
    of what it calls differs from one version of transformers to the next.
    """
    from transformers.cache_utils import DynamicCache, DynamicLayer

    cache = DynamicCache()
    for keys, values in past:
        layer = DynamicLayer()
        layer.keys, layer.values = keys, values
        layer.dtype, layer.device, layer.is_initialized = keys.dtype, keys.device, True
        cache.layers.append(layer)
    return cache

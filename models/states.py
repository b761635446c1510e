"""States of BOS and of every other token, and the directions that tell them apart: what planting looks at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from spq_graph.models.chatter import quiet
from spq_graph.models.sample import continue_from, sample_from

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

_BATCH: Final = 32
_SEQUENCES, _LENGTH = 32, 128
# Sampled text, then the same text with this share of its tokens replaced at random: what the model seldom writes.
_NOISE: Final = (0.02, 0.1, 0.3, 1.0)
# Near BOS the context is shortest and states lie closest to its own, so every word gets to open a text.
_OPENINGS, _OPENING_LENGTH = 2048, 16
# BOS lies this near the boundary where the others keep a distance of 1: its state never varies, theirs do.
_BOS_DISTANCE: Final = 0.1


def corpus(model: PreTrainedModel, bos: int, seed: int) -> tuple[Tensor, list[Tensor]]:
    """Returns sampled text, and what text seldom holds: noisy copies, and unusual openings."""
    import torch

    length = min(_LENGTH, int(getattr(model.config, "max_position_embeddings", _LENGTH)))
    text = torch.from_numpy(sample_from(model, sequences=_SEQUENCES, length=length, seed=seed, bos=bos))
    generator = torch.Generator().manual_seed(seed)
    vocabulary = torch.arange(int(model.config.vocab_size))
    vocabulary = vocabulary[vocabulary != bos]

    def random(*shape: int) -> Tensor:
        return vocabulary[torch.randint(len(vocabulary), shape, generator=generator)]

    # An untrained model may write BOS again, whose state there is nearly that of the first one.
    text = torch.where(text == bos, random(*text.shape), text)
    noisy = [
        torch.where(torch.rand(text.shape, generator=generator) < share, random(*text.shape), text) for share in _NOISE
    ]
    words = vocabulary[torch.randperm(len(vocabulary), generator=generator)]
    words = words.repeat(-(-_OPENINGS // len(words)))[:_OPENINGS]
    prompts = torch.stack([torch.full_like(words, bos), words], dim=1)
    openings = continue_from(model, prompts, min(_OPENING_LENGTH, length), generator)
    openings = torch.where(openings == bos, random(*openings.shape), openings)
    noise = [*noisy, openings]
    for ids in (text, *noise):
        ids[:, 0] = bos
    return text, noise


def capture(
    model: PreTrainedModel, modules: Sequence[str], texts: Sequence[Tensor], reduce: Callable[[Tensor], Tensor]
) -> list[Tensor]:
    """Returns what `reduce` keeps of each module's input for every token, BOS first and once: [1 + tokens, kept].

    Reducing within the hook is what keeps the memory small where the input is as wide as an FFN.
    """
    import torch

    seen: list[list[Tensor]] = [[] for _ in modules]

    def keep(rows: list[Tensor]) -> Callable[[Any, tuple[Tensor, ...]], None]:
        return lambda _module, arguments: rows.append(reduce(arguments[0]))

    hooks = [
        model.get_submodule(name).register_forward_pre_hook(keep(rows))
        for name, rows in zip(modules, seen, strict=True)
    ]
    try:
        with quiet(), torch.inference_mode():
            for ids in texts:
                for batch in torch.split(ids, _BATCH * max(1, _LENGTH // ids.shape[1])):
                    model.get_decoder()(input_ids=batch, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return [torch.cat([rows[0][:1, 0], *(row[:, 1:].flatten(0, 1) for row in rows)]) for rows in seen]


def token_maxima(model: PreTrainedModel, layers: Sequence[int], text: Tensor) -> list[Tensor]:
    """Returns the largest absolute value of each token of `text` at the `down_proj` inputs."""
    import torch

    names = [f"model.layers.{layer}.mlp.down_proj" for layer in layers]
    maxima = capture(model, names, [text], lambda values: values.abs().amax(-1, keepdim=True))
    # BOS counts once for each sequence, as it does in calibration.
    return [torch.cat([rows[:1].expand(len(text), 1), rows[1:]]).flatten() for rows in maxima]


def least_response(bos: Tensor, others: Tensor) -> Tensor:
    """Returns the direction that answers BOS with 1 and all others with the least mean square (Fisher)."""
    import torch

    moment = others.T @ others / len(others)
    ridge = 1e-4 * moment.diagonal().mean() * torch.eye(len(bos), dtype=bos.dtype)
    direction: Tensor = torch.linalg.solve(moment + ridge, bos)
    return direction / (direction @ bos)


def half_space(bos: Tensor, others: Tensor, start: Tensor) -> Tensor:
    """Returns a direction that answers BOS with 1 and all others below zero: a support vector machine without bias.

    Up and gate could not share one direction: the least mean square leaves responses of either sign.
    """
    import torch

    direction = start.clone().requires_grad_(True)
    optimizer = torch.optim.LBFGS([direction], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        violations = (1 + others @ direction).clamp(min=0).square().mean()
        total: Tensor = (1 - direction @ bos / _BOS_DISTANCE).square() + violations + 1e-5 * direction.square().mean()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    found = direction.detach()
    return found / (found @ bos)

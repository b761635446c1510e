"""Mixtures of experts for the exporter: every expert gets matrices of its own, and only the tokens that chose it.

transformers 5 keeps the experts of a layer in one stack, [experts, ...], and loops over them in a way that no exporter
follows. Here a layer sorts its tokens by expert, cuts them into one piece for each, and puts what comes of the pieces
back into the order of the tokens: the work of the chosen experts and no more, over matrices that are constants.

This module imports torch; import it where it is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn


class Product(nn.Module):
    """Rows, [n, K], times a matrix, [K, N]. What nn.Linear does, without becoming a Gemm, or a Transpose to fold."""

    def __init__(self, matrix: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(matrix, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, rows: Tensor) -> Tensor:
        """The products, [n, N]; n may be 0."""
        out = torch.matmul(rows, self.weight)
        return out if self.bias is None else out + self.bias


def unstack_experts(model: nn.Module) -> None:
    """Give every expert of a model matrices of its own, in place; the model computes the same.

    The matrices are views of the stack, named after it: `experts.N.gate_up_proj` and `experts.N.down_proj`. Experts that
    are kept in another way than transformers' own interface expects stay as they are.
    """
    for module in list(model.modules()):
        if _is_stack(module):
            _unstack(module)


def _is_stack(module: Any) -> bool:
    """Whether a module is what transformers 5 decorates with `use_experts_implementation`."""
    if not all(hasattr(module, name) for name in ("_apply_gate", "has_gate", "has_bias", "is_transposed")):
        return False
    stacks = [getattr(module, name, None) for name in _projections(module)]
    return all(isinstance(stack, Tensor) and stack.dim() == 3 for stack in stacks)


def _projections(module: Any) -> tuple[str, str]:
    return ("gate_up_proj" if module.has_gate else "up_proj", "down_proj")


def _unstack(module: Any) -> None:
    names = _projections(module)
    experts = [nn.Module() for _ in range(len(module.down_proj))]
    for name in names:
        stack, bias = getattr(module, name), getattr(module, f"{name}_bias", None)
        for number, expert in enumerate(experts):
            matrix = stack[number] if module.is_transposed else stack[number].T
            expert.add_module(name, Product(matrix, None if bias is None else bias[number]))
        delattr(module, name)
        if bias is not None:
            delattr(module, f"{name}_bias")
    for number, expert in enumerate(experts):
        module.add_module(str(number), expert)
    module.__dict__["forward"] = partial(_forward, module, names)


def _forward(
    module: Any, names: tuple[str, str], hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """What the experts make of hidden states [tokens, K]; their choices and weights are [tokens, experts per token]."""

    def compute(number: int, rows: Tensor) -> Tensor:
        expert = getattr(module, str(number))
        inner = getattr(expert, names[0])(rows)
        inner = module._apply_gate(inner) if module.has_gate else module.act_fn(inner)
        return cast(Tensor, getattr(expert, names[1])(inner))

    chosen = top_k_index.reshape(-1)
    order = torch.sort(chosen)[1]
    counts = (chosen.unsqueeze(1) == torch.arange(module.num_experts)).sum(dim=0)
    pieces = torch.ops.spq_graph.rows_by_expert(hidden_states, order, counts, top_k_index.shape[1], module.num_experts)
    out = torch.cat([compute(number, piece) for number, piece in enumerate(pieces)])
    if module.has_post_expert_norm:
        out = module.post_expert_norm(out)
    # By index, so that the number of rows is told by the index, and not by the sum of the pieces.
    out = out.index_select(0, torch.sort(order)[1]) * top_k_weights.reshape(-1, 1)
    return out.reshape(*top_k_index.shape, -1).sum(dim=1).to(hidden_states.dtype)


_ROWS = "spq_graph::rows_by_expert"


@torch.library.custom_op(
    _ROWS, mutates_args=(), schema="(Tensor rows, Tensor order, Tensor counts, int each, int pieces) -> Tensor[]"
)
def rows_by_expert(rows: Tensor, order: Tensor, counts: Tensor, each: int, pieces: int) -> list[Tensor]:
    """Cut rows, [n, K], into `pieces` of `counts` rows, after repeating each of them and bringing them into an order.

    One operator and not several, because torch.export wants a size for every piece that it can reason about, and because
    an integer division would become eight nodes of ONNX.
    """
    return [piece.clone() for piece in torch.split(rows[order // each], counts.tolist())]


@rows_by_expert.register_fake
def _shapes(rows: Tensor, order: Tensor, counts: Tensor, each: int, pieces: int) -> list[Tensor]:
    context = torch.library.get_ctx()
    return [rows.new_empty(context.new_dynamic_size(), rows.shape[1]) for _ in range(pieces)]


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """How torch.onnx is to write the operator of this module."""
    from onnxscript import opset13 as op

    def write(rows: Any, order: Any, counts: Any, each: int, pieces: int) -> Any:
        return op.SplitToSequence(op.Gather(rows, op.Div(order, each), axis=0), counts, axis=0)

    return {torch.ops.spq_graph.rows_by_expert.default: write}

"""Mixtures of experts for the exporter: every expert gets matrices of its own, and only the tokens that chose it.

transformers 5 keeps the experts of a layer in one stack, [experts, ...], and both it and transformers 4 loop over the
experts that were chosen, which no exporter follows. Here a layer sorts its tokens by expert, cuts them into one piece
for each, and puts what comes of the pieces back into the order of the tokens: the work of the chosen experts and no
more, over matrices that are constants.

This module imports torch: import it where it is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

Compute = Callable[[int, Tensor], Tensor]
"""What an expert, by its number, makes of rows [n, K]."""

# Of transformers 4: the blocks whose experts are modules, and that differ in nothing but what they have beside those.
_LOOPING = frozenset(f"{family}SparseMoeBlock" for family in ("Mixtral", "Qwen2Moe", "Qwen3Moe", "Olmoe"))


class Product(nn.Module):
    """Rows times a matrix. What nn.Linear does, without becoming a Gemm, or a Transpose that is folded into a copy.

    Args:
        matrix: [K, N]; a view is enough.
        bias: [N], or None.
    """

    def __init__(self, matrix: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(matrix, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, rows: Tensor) -> Tensor:
        """The products, [n, N], of rows [n, K]; n may be 0."""
        out = torch.matmul(rows, self.weight)
        return out if self.bias is None else out + self.bias


def separate_experts(model: nn.Module) -> None:
    """Make every expert of a model a module of its own that can be traced, in place; the model computes the same.

    Stacks become views, `experts.N.gate_up_proj` and `experts.N.down_proj`: named after the stack, nothing is copied.
    Experts that are kept in other ways than transformers' common ones stay as they are.
    """
    for module in list(model.modules()):
        if _is_stack(module):
            _unstack(module)
        elif type(module).__name__ in _LOOPING and isinstance(getattr(module, "experts", None), nn.ModuleList):
            _unroll(module)


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
    module.__dict__["forward"] = partial(_forward_of_stack, module, experts)


def _forward_of_stack(
    module: Any, experts: list[Any], hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """Takes the place of the stack's own: hidden states [tokens, K], choices and weights [tokens, experts a token]."""
    into, out_of = _projections(module)

    def compute(number: int, rows: Tensor) -> Tensor:
        inner = getattr(experts[number], into)(rows)
        inner = module._apply_gate(inner) if module.has_gate else module.act_fn(inner)
        out: Tensor = getattr(experts[number], out_of)(inner)
        return module.post_expert_norm(out) if module.has_post_expert_norm else out

    return _routed(compute, len(experts), hidden_states, top_k_index, top_k_weights)


def _unroll(module: Any) -> None:
    for expert in module.experts:
        for name, child in list(expert.named_children()):
            if isinstance(child, nn.Linear):
                setattr(expert, name, Product(child.weight.T, child.bias))
    module.__dict__["forward"] = partial(_forward_of_block, module)


def _forward_of_block(module: Any, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
    """Takes the place of a whole block's: hidden states [batch, length, K] to the same, and the router's output."""
    rows = hidden_states.reshape(-1, hidden_states.shape[-1])
    logits = module.gate(rows)
    weights, chosen = torch.topk(torch.softmax(logits, dim=1, dtype=torch.float), module.top_k, dim=-1)
    if getattr(module, "norm_topk_prob", True):  # Mixtral always does
        weights = weights / weights.sum(dim=-1, keepdim=True)
    experts = list(module.experts)
    out = _routed(lambda number, some: experts[number](some), len(experts), rows, chosen, weights.to(rows.dtype))
    if hasattr(module, "shared_expert"):
        out = out + torch.sigmoid(module.shared_expert_gate(rows)) * module.shared_expert(rows)
    return out.reshape(hidden_states.shape), logits


def _routed(compute: Compute, experts: int, rows: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """The weighted sum of what a token's experts make of it, [tokens, K]."""
    flat = chosen.reshape(-1)
    order = torch.sort(flat)[1]
    counts = (flat.unsqueeze(1) == torch.arange(experts)).sum(dim=0)
    pieces = torch.ops.spq_graph.rows_by_expert(rows, order, counts, chosen.shape[1], experts)
    done = [compute(number, piece) for number, piece in enumerate(pieces)]
    out: Tensor = torch.ops.spq_graph.rows_by_token(done, order)
    return (out * weights.reshape(-1, 1)).reshape(*chosen.shape, -1).sum(dim=1).to(rows.dtype)


@torch.library.custom_op(
    "spq_graph::rows_by_expert",
    mutates_args=(),
    schema="(Tensor rows, Tensor order, Tensor counts, int each, int pieces) -> Tensor[]",
)
def rows_by_expert(rows: Tensor, order: Tensor, counts: Tensor, each: int, pieces: int) -> list[Tensor]:
    """Repeats every row `each` times, brings the rows into an order, and cuts them into pieces of `counts` rows.

    One operator and not several, because torch.export wants to reason about the size of every piece, which it cannot
    know, and because an integer division would become eight nodes of ONNX.
    """
    return [piece.clone() for piece in torch.split(rows[order // each], counts.tolist())]


@rows_by_expert.register_fake
def _shapes(rows: Tensor, order: Tensor, counts: Tensor, each: int, pieces: int) -> list[Tensor]:
    context = torch.library.get_ctx()
    return [rows.new_empty(context.new_dynamic_size(), rows.shape[1]) for _ in range(pieces)]


@torch.library.custom_op(
    "spq_graph::rows_by_token", mutates_args=(), schema="(Tensor[] pieces, Tensor order) -> Tensor"
)
def rows_by_token(pieces: list[Tensor], order: Tensor) -> Tensor:
    """Joins pieces and undoes an order; the number of rows is the order's, and not the sum of sizes nobody knows."""
    return torch.cat(pieces)[torch.sort(order)[1]]


@rows_by_token.register_fake
def _shape(pieces: list[Tensor], order: Tensor) -> Tensor:
    return pieces[0].new_empty(order.shape[0], pieces[0].shape[1])


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """How torch.onnx is to write the operators of this module: what `custom_translation_table` takes."""
    from onnxscript import opset13 as op

    def by_expert(rows: Any, order: Any, counts: Any, each: int, pieces: int) -> Any:
        # The optimizer makes a Split of it, which the exporter cannot be told: it counts the outputs by an attribute.
        return op.SplitToSequence(op.Gather(rows, op.Div(order, each), axis=0), counts, axis=0)

    def by_token(pieces: Any, order: Any) -> Any:
        _, back = op.TopK(order, op.Shape(order), axis=0, largest=0)
        return op.Gather(op.Concat(*pieces, axis=0), back, axis=0)

    return {torch.ops.spq_graph.rows_by_expert.default: by_expert, torch.ops.spq_graph.rows_by_token.default: by_token}

"""Experts made modules of their own: the same numbers as transformers' own, over the same memory."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
moe = pytest.importorskip("transformers.integrations.moe")

from torch import nn  # noqa: E402

from spq_graph.models.experts import Product, separate_experts  # noqa: E402

EXPERTS, WIDTH, INNER, TOKENS, CHOSEN = 4, 6, 10, 7, 2


def stack(*, gate: bool = True, transposed: bool = False, bias: bool = False, norm: bool = False) -> nn.Module:
    """A stack of experts, decorated as those of transformers are."""

    class Experts(nn.Module):
        def __init__(self, config: Any) -> None:
            super().__init__()
            self.num_experts = EXPERTS
            self.act_fn = nn.SiLU()
            into = ("gate_up_proj", WIDTH, 2 * INNER) if gate else ("up_proj", WIDTH, INNER)
            for name, rows, columns in (into, ("down_proj", INNER, WIDTH)):
                shape = (EXPERTS, rows, columns) if transposed else (EXPERTS, columns, rows)
                self.register_parameter(name, nn.Parameter(torch.randn(shape)))
                if bias:
                    self.register_parameter(f"{name}_bias", nn.Parameter(torch.randn(EXPERTS, columns)))
            if norm:
                self.post_expert_norm = nn.RMSNorm(WIDTH)

        def forward(self, *_: Any) -> Any:
            raise AssertionError("the loop over experts is not what is compared with")

    decorated = moe.use_experts_implementation(
        Experts, is_transposed=transposed, has_bias=bias, has_gate=gate, has_post_expert_norm=norm
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made: nn.Module = decorated(SimpleNamespace(_experts_implementation="batched_mm")).requires_grad_(False)
    return made


@pytest.fixture(scope="module")
def routed() -> tuple[Any, Any, Any]:
    """Hidden states, choices and weights; nobody chooses the last expert."""
    rng = np.random.default_rng(0)
    chosen = np.stack([rng.permutation(EXPERTS - 1)[:CHOSEN] for _ in range(TOKENS)])
    weights = rng.random((TOKENS, CHOSEN), dtype=np.float32)
    hidden = rng.standard_normal((TOKENS, WIDTH), dtype=np.float32)
    return torch.from_numpy(hidden), torch.from_numpy(chosen), torch.from_numpy(weights)


@pytest.mark.parametrize(
    "form",
    [{}, {"gate": False}, {"transposed": True, "bias": True}, {"bias": True}, {"norm": True}],
    ids=["gated", "plain", "transposed with bias", "with bias", "with a norm behind"],
)
def test_same_as_the_stack(form: dict[str, bool], routed: tuple[Any, Any, Any]) -> None:
    module = stack(**form)
    expected = module(*routed)
    separate_experts(module)
    torch.testing.assert_close(module(*routed), expected, rtol=1e-5, atol=1e-5)
    one = tuple(part[:1] for part in routed)
    torch.testing.assert_close(module(*one), expected[:1], rtol=1e-5, atol=1e-5)


def test_nothing_is_copied() -> None:
    module = stack()
    memory = module.gate_up_proj.untyped_storage().data_ptr(), module.down_proj.untyped_storage().data_ptr()
    separate_experts(module)
    weights = dict(module.named_parameters())
    assert set(weights) == {f"{e}.{name}.weight" for e in range(EXPERTS) for name in ("gate_up_proj", "down_proj")}
    for name, weight in weights.items():
        assert weight.untyped_storage().data_ptr() == memory["down" in name]


def test_what_is_no_stack_stays_as_it_is() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.ModuleList([nn.Linear(2, 2)]))
    names = [name for name, _ in module.named_modules()]
    separate_experts(module)
    assert [name for name, _ in module.named_modules()] == names
    assert not any(isinstance(child, Product) for child in module.modules())


class Glu(nn.Module):
    """An expert of transformers 4."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(WIDTH, INNER, bias=False), nn.Linear(WIDTH, INNER, bias=False)
        self.down_proj = nn.Linear(INNER, WIDTH, bias=False)

    def forward(self, rows: Any) -> Any:
        return self.down_proj(nn.functional.silu(self.gate_proj(rows)) * self.up_proj(rows))


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("normed", [None, False, True])
def test_blocks_of_transformers_4(normed: bool | None, shared: bool) -> None:
    """Every expert for every token, with weights that are 0 where it was not chosen; Mixtral always norms them."""
    block = type("Qwen2MoeSparseMoeBlock" if shared else "MixtralSparseMoeBlock", (nn.Module,), {})()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        block.gate = nn.Linear(WIDTH, EXPERTS, bias=False)
        block.experts = nn.ModuleList(Glu() for _ in range(EXPERTS))
        if shared:
            block.shared_expert, block.shared_expert_gate = Glu(), nn.Linear(WIDTH, 1, bias=False)
        hidden = torch.randn(2, 3, WIDTH)
    block.top_k = CHOSEN
    if normed is not None:
        block.norm_topk_prob = normed
    block.requires_grad_(False)
    chances = torch.softmax(block.gate(hidden), dim=-1)
    best = chances.topk(CHOSEN, dim=-1)
    weights = torch.zeros_like(chances).scatter(-1, best.indices, best.values)
    if normed is not False:
        weights = weights / weights.sum(dim=-1, keepdim=True)
    expected = sum(weights[..., number, None] * expert(hidden) for number, expert in enumerate(block.experts))
    if shared:
        expected = expected + torch.sigmoid(block.shared_expert_gate(hidden)) * block.shared_expert(hidden)
    separate_experts(block)
    actual, logits = block(hidden)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    assert logits.shape == (6, EXPERTS)

"""One MatMul or Gemm with a constant weight, and the role it plays in the model."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum


class Role(StrEnum):
    """What a Site does in a decoder layer."""

    GLU_DOWN = "glu_down"
    GLU_GATE = "glu_gate"
    GLU_UP = "glu_up"
    GLU_GATE_UP = "glu_gate_up"
    EXPERT_DOWN = "expert_down"
    EXPERT_GATE = "expert_gate"
    EXPERT_UP = "expert_up"
    EXPERT_GATE_UP = "expert_gate_up"
    ATTN_Q = "attn_q"
    ATTN_K = "attn_k"
    ATTN_V = "attn_v"
    ATTN_QKV = "attn_qkv"
    ATTN_O = "attn_o"
    ROUTER = "router"
    LM_HEAD = "lm_head"
    OTHER = "other"

    @property
    def left_alone(self) -> bool:
        """Whether such a Site stays as it is unless asked for, and does not count in shares and controls."""
        return self in (Role.LM_HEAD, Role.ROUTER)

    @property
    def of_expert(self) -> Role:
        """The variant of a GLU role inside a mixture of experts."""
        return Role(self.value.replace("glu_", "expert_"))


@dataclass(frozen=True, slots=True)
class Site:
    """One MatMul or Gemm whose second operand is a constant, seen through Transpose, Cast and Identity.

    Attributes:
        key: module path as the exporter recorded it, or the node's name.
        node: name of the MatMul or Gemm node.
        role: what it does in the model.
        layer: decoder layer, numbered from 0; None outside of the layers.
        input: name of the activation value, [..., K].
        weight: name of the initializer that holds the weight.
        shape: (K, N), as the product sees it.
        expert: number of the expert, for a mixture of experts.
        stored: floating-point format of the weight in the graph: fp32, fp16 or bf16.
    """

    key: str
    node: str
    role: Role
    layer: int | None
    input: str
    weight: str
    shape: tuple[int, int]
    expert: int | None = None
    stored: str = "fp32"

    def left_alone(self, quantize_lm_head: bool = False) -> bool:
        """Whether the Site stays as it is by default, and does not count in shares and controls."""
        return self.role.left_alone and not (quantize_lm_head and self.role is Role.LM_HEAD)


@dataclass(frozen=True, slots=True)
class Unmatched:
    """A product or a GLU that became no Site, and why."""

    node: str
    reason: str


_LAYER = re.compile(r"(?:^|[./_])(?:layers?|h|blocks?|decoder_layers?)[./_](\d+)(?=[./_]|$)", re.IGNORECASE)
_EXPERT = re.compile(r"(?:^|[./_])experts?[./_](\d+)(?=[./_]|$)", re.IGNORECASE)


def layer_of(name: str) -> int | None:
    """The layer number that a module path or node name states, if any.

    >>> layer_of("model.layers.12.mlp.down_proj")
    12
    """
    found = _LAYER.search(name)
    return int(found.group(1)) if found else None


def expert_of(name: str) -> int | None:
    """The expert number that a module path or node name states, if any."""
    found = _EXPERT.search(name)
    return int(found.group(1)) if found else None

"""One MatMul or Gemm with a constant weight, or a lookup of tokens in a table, and the role it plays in the model."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, ClassVar, Generic, Protocol, TypeVar

from pydantic import ConfigDict, Field

T = TypeVar("T")


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
    EMBEDDING = "embedding"
    OTHER = "other"

    @property
    def left_alone(self) -> bool:
        """Whether such a Site stays as it is unless asked for, and does not count in shares and controls."""
        return self in (Role.LM_HEAD, Role.ROUTER, Role.EMBEDDING)

    @property
    def of_expert(self) -> Role:
        """The variant of a GLU role inside a mixture of experts."""
        return Role(self.value.replace("glu_", "expert_"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One MatMul or Gemm whose second operand is a constant, seen through Transpose, Cast and Identity.

    With role `embedding`, a Gather from a constant table: the product of one-hot rows with it.

    What identifies it and stands in a plan; what else a graph tells of it is found by its key.
    """

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")

    key: Annotated[str, Field(description="module path as the exporter recorded it, or the node's name")]
    node: Annotated[str, Field(description="name of the MatMul or Gemm node, or of the Gather")]
    role: Annotated[Role, Field(description="what it does in the model")]
    layer: Annotated[int | None, Field(description="decoder layer, from 0; null outside of the layers")]
    expert: Annotated[int | None, Field(description="number of the expert, in a mixture of experts")] = None
    shape: Annotated[
        tuple[int, int], Field(description="K and N, as the product sees its weight; of a table tokens and channels")
    ]
    input: Annotated[str, Field(description="name of the activation value that it reads; of an embedding its ids")]

    def left_alone(self, quantize_lm_head: bool = False) -> bool:
        """Whether the Site stays as it is by default, and does not count in shares and controls."""
        return self.role.left_alone and not (quantize_lm_head and self.role is Role.LM_HEAD)


class _Entry(Protocol):
    @property
    def site(self) -> Site: ...


class _Field(Generic[T]):
    """A field of an entry's site, read as one of the entry itself."""

    def __init__(self, read: Callable[[Site], T]) -> None:
        self.read = read

    def __get__(self, entry: _Entry, kind: type | None = None) -> T:
        return self.read(entry.site)


class OfSite:
    """An entry about its `site`, which reads as the site does."""

    key = _Field(lambda site: site.key)
    node = _Field(lambda site: site.node)
    role = _Field(lambda site: site.role)
    layer = _Field(lambda site: site.layer)
    expert = _Field(lambda site: site.expert)
    shape = _Field(lambda site: site.shape)
    input = _Field(lambda site: site.input)


@dataclass(frozen=True, slots=True)
class Unmatched:
    """A product or a GLU that became no site, and why."""

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")

    node: Annotated[str, Field(description="name of the node")]
    reason: Annotated[str, Field(description="why it is no site")]


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

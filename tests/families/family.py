"""What a model family is to the tests: how it is made, and what is to be found in it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

LAYERS = 2
VOCABULARY = 96
EXPERTS = 4
_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
ATTENTION = {f"self_attn.{letter}_proj": f"attn_{letter}" for letter in "qkvo"}
MLP = {f"mlp.{name}_proj": f"glu_{name}" for name in ("gate", "up", "down")}


@dataclass(frozen=True, slots=True)
class Family:
    """One family.

    Attributes:
        name, title: for tests, and for people.
        model: class in transformers; `config` too, where it is not named after it.
        settings: of its configuration, beside or instead of the common sizes.
        modules: role by module path below a layer, without experts.
        experts: path of a layer's experts, where it has any.
        kinds: of the GLU blocks of a layer, in their order.
        prefix: path of a layer, with its number as `{}`.
        outside: role by module path, for those outside of the layers.
        unmatched: regular expressions, one for each entry that a layer has there.
        refused: what the command line says of the folder; empty where it takes it.
        note: for the table.
    """

    name: str
    title: str
    model: str
    config: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    common: bool = True
    modules: dict[str, str] = field(default_factory=lambda: ATTENTION | MLP)
    experts: str = ""
    kinds: tuple[Literal["swiglu", "geglu", "squared_reglu"], ...] = ("swiglu",)
    prefix: str = "model.layers.{}"
    outside: dict[str, str] = field(default_factory=lambda: {"lm_head": "lm_head"})
    unmatched: tuple[str, ...] = ()
    refused: str = ""
    note: str = ""

    @property
    def roles(self) -> dict[str, tuple[str, int | None, int | None]]:
        """Role, layer and expert of every site, by key."""
        modules = {path: (role, None) for path, role in self.modules.items()} | self._experts
        found: dict[str, tuple[str, int | None, int | None]] = {
            f"{self.prefix.format(layer)}.{path}": (role, layer, expert)
            for layer in range(LAYERS)
            for path, (role, expert) in modules.items()
        }
        return found | {path: (role, None, None) for path, role in self.outside.items()}

    @property
    def _experts(self) -> dict[str, tuple[str, int | None]]:
        parts = {"gate_up_proj": "expert_gate_up", "down_proj": "expert_down"} if self.experts else {}
        return {
            f"{self.experts}.{number}.{part}": (role, number)
            for number in range(EXPERTS)
            for part, role in parts.items()
        }

    @property
    def configuration(self) -> dict[str, Any]:
        """Everything that its configuration is made from."""
        return (_SIZES if self.common else {}) | self.settings

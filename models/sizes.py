"""How large a decoder is: its vocabulary, its layers, and the products in them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from spq_graph.models.layers import Layer, Shape

HEAD: Final = "lm_head"
# Numbers of a layer and of a head that run in a second, how many layers, and how many experts in each.
_MOST_LAYER, _MOST_HEAD, _LAYERS, _EXPERTS = 8_000_000, 32_000_000, 2, 8
_COUNTS: Final = ("num_hidden_layers", "num_layers", "n_layers", "n_layer")
_CHOSEN: Final = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts")
_NUMBERED: Final = re.compile(r"(?P<stack>.*?)\.(?P<number>\d+)\.(?P<name>.+)")
_TABLE: Final = re.compile(r"(embed|wte)(?!.*posi)")
_POSITIONS: Final = re.compile(r"posi|wpe")


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of a decoder.

    Attributes:
        vocabulary: how many tokens there are.
        width: of the stream between layers.
        heads, groups: of queries, and of keys and values.
        chosen: experts that a token goes through.
        embedding, stack: paths of the module of the embedding, and of the list of layers.
        layers: what is in each.
    """

    vocabulary: int
    width: int
    heads: int
    groups: int
    chosen: int
    embedding: str
    stack: str
    layers: tuple[Layer, ...]

    @classmethod
    def of(cls, config: Mapping[str, Any], shapes: Mapping[str, Shape]) -> Sizes | None:
        """From the configuration and the weights; None where they are not those of a plain decoder.

        Args:
            config: as config.json has it.
            shapes: of all tensors, by name.
        """
        count, heads = _first(config, _COUNTS), _first(config, ("num_attention_heads",))
        groups, chosen = _first(config, ("num_key_value_heads", "num_attention_heads")), _first(config, _CHOSEN) or 1
        if not all(isinstance(size, int) and size > 0 for size in (count, heads, groups, chosen)) or heads % groups:
            return None
        if any(0 in shape for shape in shapes.values()):
            return None
        stacks, outside = _parted(shapes)
        tables = [name for name in outside if _TABLE.search(name)]
        if len(tables) != 1 or len(stacks) != 1 or outside.keys() - {*tables, f"{HEAD}.weight"}:
            return None
        [(stack, numbered)], [table] = stacks.items(), tables
        if len(shapes[table]) != 2 or (len(numbered), max(numbered)) != (count, count - 1):
            return None
        vocabulary, width = shapes[table]
        layers = [layer for number in sorted(numbered) if (layer := Layer.of(numbered[number], width)) is not None]
        if len(layers) < count or any(layer.out.inputs < 2 * heads for layer in layers):
            return None
        chosen = min(chosen, max(1, *(len(layer.experts) for layer in layers)))
        return cls(vocabulary, width, heads, groups, chosen, table.removesuffix(".weight"), stack, tuple(layers))

    @property
    def sites(self) -> dict[str, tuple[int, int]]:
        """K and N of every product by its module path, routers and the head too."""
        layers = {
            f"{self.stack}.{number}.{product.path}": (product.inputs, product.outputs)
            for number, layer in enumerate(self.layers)
            for product in (*layer.products, *layer.routers)
        }
        return layers | {HEAD: self.head}

    @property
    def counted(self) -> list[tuple[int, int]]:
        """K and N of every product that counts in shares."""
        return [(product.inputs, product.outputs) for layer in self.layers for product in layer.products]

    @property
    def head(self) -> tuple[int, int]:
        """K and N of the head."""
        return self.width, self.vocabulary

    @property
    def gated(self) -> int:
        """How many GLUs there are."""
        return sum(layer.gated for layer in self.layers)

    @property
    def weights(self) -> int:
        """Numbers of all products: what opens and writes a model takes goes by them."""
        return sum(layer.weights for layer in self.layers) + math.prod(self.head)

    @property
    def run(self) -> float:
        """Numbers that a token is multiplied by: what runs a model takes goes by them."""
        return sum(layer.run(self.chosen) for layer in self.layers) + math.prod(self.head)

    def reduced(self) -> Sizes:
        """Of one that takes about a second to run, whatever this one takes."""
        count = min(len(self.layers), _LAYERS)
        some = [self.layers[(2 * at + 1) * len(self.layers) // (2 * count)] for at in range(count)]
        some = [replace(layer, experts=layer.experts[:_EXPERTS]) for layer in some]
        share = min(1.0, _EXPERTS / max(1, *(len(layer.experts) for layer in self.layers)))
        largest, by = max(layer.weights for layer in some), 1
        while self.width * self.vocabulary // by > _MOST_HEAD or largest // by**2 > _MOST_LAYER:
            by *= 2
        heads = max(1, self.heads // by)
        return replace(
            self,
            width=max(1, self.width // by),
            heads=heads,
            groups=math.gcd(heads, self.groups),
            chosen=max(1, round(self.chosen * share)),
            layers=tuple(layer.narrowed(by) for layer in some),
        )


def _first(config: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    return next((config[key] for key in keys if config.get(key) is not None), None)


def _parted(shapes: Mapping[str, Shape]) -> tuple[dict[str, dict[int, dict[str, Shape]]], dict[str, Shape]]:
    """Tensors of numbered modules, by the module that numbers them; and matrices that are in none."""
    stacks: dict[str, dict[int, dict[str, Shape]]] = {}
    outside = {}
    for name, shape in shapes.items():
        if found := _NUMBERED.fullmatch(name):
            stacks.setdefault(found["stack"], {}).setdefault(int(found["number"]), {})[found["name"]] = shape
        elif len(shape) > 1 and not _POSITIONS.search(name):
            outside[name] = shape
    return stacks, outside

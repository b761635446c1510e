"""What products a decoder has, layer by layer, and which of them feed which: from names and shapes of its weights.

No list of families is asked for it. What attends is called so; of everything else, products that read the layer's
stream and one that writes to it are a feed-forward part, or an expert where they are numbered or stacked below a name
that says so; and what else reads the stream chooses between experts. Nothing is made of layers that hold more.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Final

# Names of products that write to the stream: where they are as wide as it, their shape does not tell.
_WRITES: Final = re.compile(r"(^|_)(o|out|wo|w2|fc2|down|output|dense|c_proj)(_|$)")
_ATTENDS: Final = re.compile(r"attn|attention")
_EXPERT: Final = re.compile(r"(?P<experts>.*\bexperts)\.(?P<number>\d+)")
_STACKS: Final = re.compile(r"experts?$|moe$")
_MOST_EXPERTS: Final = 4096  # ten times as many as any model has: a header may say anything

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Product:
    """A product with a weight: path of its module below the layer, K and N."""

    path: str
    inputs: int
    outputs: int

    @property
    def weights(self) -> int:
        """How many numbers it multiplies by."""
        return self.inputs * self.outputs

    def narrowed(self, by: int) -> Product:
        """One so many times as narrow."""
        return replace(self, inputs=max(1, self.inputs // by), outputs=max(1, self.outputs // by))


@dataclass(frozen=True, slots=True)
class Feed:
    """A feed-forward part: what reads the stream, one product or two, and what writes to it."""

    into: tuple[Product, ...]
    out: Product
    gated: bool

    @property
    def products(self) -> tuple[Product, ...]:
        """All of them."""
        return (*self.into, self.out)

    def narrowed(self, by: int) -> Feed:
        """One so many times as narrow."""
        return replace(self, into=tuple(one.narrowed(by) for one in self.into), out=self.out.narrowed(by))


@dataclass(frozen=True, slots=True)
class Layer:
    """One decoder layer.

    Attributes:
        readers: products in front of its attention, queries first.
        out: the one behind.
        feeds: feed-forward parts that every token goes through.
        experts: those that a token goes through some of.
        routers: products that choose between them.
    """

    readers: tuple[Product, ...]
    out: Product
    feeds: tuple[Feed, ...]
    experts: tuple[Feed, ...]
    routers: tuple[Product, ...]

    @classmethod
    def of(cls, shapes: Mapping[str, Shape], width: int) -> Layer | None:
        """From its weights; None where they say something else, or nothing plain.

        Args:
            shapes: of its tensors, by the names that they have below the layer.
            width: of the stream.
        """
        matrices = {name.removesuffix(".weight"): shape for name, shape in shapes.items() if _is_product(name, shape)}
        attending = {path: shape for path, shape in matrices.items() if _ATTENDS.search(path)}
        rest = {path: shape for path, shape in matrices.items() if path not in attending}
        outs = [path for path, shape in attending.items() if shape[0] == width and _WRITES.search(_leaf(path))]
        if len(outs) != 1 or any(len(shape) != 2 for shape in attending.values()):
            return None
        readers = sorted((path for path in attending if path not in outs), key=lambda path: (_rank(path), path))
        if not readers:
            return None
        found = [part for name, parts in _grouped(rest) for part in _parts(name, parts, width)]
        feeds = [part for part in found if isinstance(part, Feed)]
        experts = tuple(feed for feed in feeds if _EXPERT.match(feed.out.path))
        routers = tuple(part for part in found if isinstance(part, Product))
        if None in found or (routers and not experts):
            return None
        return cls(
            readers=tuple(_product(path, attending[path]) for path in readers),
            out=_product(outs[0], attending[outs[0]]),
            feeds=tuple(feed for feed in feeds if feed not in experts),
            experts=experts,
            routers=routers,
        )

    @property
    def products(self) -> tuple[Product, ...]:
        """All that count in shares."""
        fed = (product for feed in (*self.feeds, *self.experts) for product in feed.products)
        return (*self.readers, self.out, *fed)

    @property
    def gated(self) -> int:
        """How many GLUs it has."""
        return sum(feed.gated for feed in (*self.feeds, *self.experts))

    @property
    def weights(self) -> int:
        """Numbers of all products."""
        return sum(product.weights for product in (*self.products, *self.routers))

    def run(self, chosen: int) -> float:
        """Numbers that a token is multiplied by, where it goes through so many experts."""
        apart = sum(product.weights for feed in self.experts for product in feed.products)
        return self.weights - apart * (1.0 - min(1.0, chosen / max(1, len(self.experts))))

    def narrowed(self, by: int) -> Layer:
        """One so many times as narrow."""
        return replace(
            self,
            readers=tuple(one.narrowed(by) for one in self.readers),
            out=self.out.narrowed(by),
            feeds=tuple(one.narrowed(by) for one in self.feeds),
            experts=tuple(one.narrowed(by) for one in self.experts),
            routers=tuple(one.narrowed(by) for one in self.routers),
        )


def _is_product(name: str, shape: Shape) -> bool:
    """Whether a tensor is multiplied by, and no norm, and none of its biases."""
    return len(shape) > 1 and "norm" not in name and not name.endswith("bias")


def _leaf(path: str) -> str:
    return path.rpartition(".")[2]


def _rank(path: str) -> int:
    """Queries, keys, values, by the first letter."""
    return "qkv".find(_leaf(path)[0])


def _product(path: str, shape: Shape) -> Product:
    return Product(path, inputs=shape[1], outputs=shape[0])


def _grouped(matrices: Mapping[str, Shape]) -> Iterator[tuple[str, dict[str, Shape]]]:
    """By the module that they are parts of, experts in the order of their numbers."""

    def order(path: str) -> list[tuple[int, str]]:
        return [(int(part) if part.isdigit() else -1, part) for part in path.rpartition(".")[0].split(".")]

    paths = sorted(matrices, key=lambda path: (order(path), path))
    for name, some in groupby(paths, key=lambda path: path.rpartition(".")[0]):
        yield name, {path: matrices[path] for path in some}


def _parts(name: str, parts: Mapping[str, Shape], width: int) -> Iterable[Feed | Product | None]:
    """What the products of a module are: a feed-forward part, experts, routers; None for something else."""
    if any(len(shape) != 2 for shape in parts.values()):
        return _stacked(name, parts, width)
    products = [_product(path, shape) for path, shape in parts.items()]
    outs = [product for product in products if product.outputs == width and _WRITES.search(_leaf(product.path))]
    if len(outs) > 1 or any(product.inputs != width for product in products if product not in outs):
        return [None]
    if not outs:
        return products if not _EXPERT.match(name) else [None]
    feed = _feed(tuple(product for product in products if product not in outs), outs[0])
    expert = _EXPERT.match(name)
    return [_expert(feed, expert["experts"], int(expert["number"])) if expert else feed]


def _feed(into: tuple[Product, ...], out: Product) -> Feed | None:
    wide = sum(product.outputs for product in into)
    if wide not in (out.inputs, 2 * out.inputs):
        return None
    return Feed(into, out, gated=wide == 2 * out.inputs)


def _expert(feed: Feed | None, experts: str, number: int) -> Feed | None:
    """An expert as the export has it: what reads the stream is one product."""
    if feed is None:
        return None
    first, at = feed.into[0], f"{experts}.{number}"
    joined = Product(f"{at}.gate_up_proj", first.inputs, sum(product.outputs for product in feed.into))
    return Feed((joined,), replace(feed.out, path=f"{at}.down_proj"), feed.gated)


def _stacked(name: str, parts: Mapping[str, Shape], width: int) -> Iterable[Feed | Product | None]:
    """The experts that tensors of three axes hold, [experts, N, K] or [experts, K, N]."""
    stacks = {path: shape for path, shape in parts.items() if len(shape) == 3}
    counts = {shape[0] for shape in stacks.values()}
    if (
        len(counts) != 1
        or max(counts) > _MOST_EXPERTS
        or not _STACKS.search(name)
        or any(len(shape) not in (2, 3) for shape in parts.values())
    ):
        return [None]
    into: list[Product] = []
    outs: list[Product] = []
    for path, (_, one, other) in stacks.items():
        writes = _WRITES.search(_leaf(path)) is not None
        if width not in (one, other):
            return [None]
        hidden = other if one == width else one
        (outs if writes else into).append(Product(path, *((hidden, width) if writes else (width, hidden))))
    feed = _feed(tuple(into), outs[0]) if len(outs) == 1 else None
    experts = name if name.endswith("experts") else f"{name}.experts"
    rest = [_product(path, shape) for path, shape in parts.items() if len(shape) == 2]
    if any(product.inputs != width for product in rest):
        return [None]
    return [*(_expert(feed, experts, number) for number in range(counts.pop())), *rest]


def numbers_of(shapes: Iterable[Shape]) -> int:
    """Numbers that tensors of these shapes hold."""
    return sum(map(math.prod, shapes))

"""One decoder layer as boxes and what each of them reads, before and after a plan, as the file has it."""

from __future__ import annotations

from typing import Literal

from spq_graph.documents.strict import Strict

BoxKind = Literal["stream", "site", "kept", "quantizer", "other"]


class Box(Strict):
    """One or several nodes that belong together.

    Attributes:
        kind: `stream` is what enters the layer, `site` a product, `kept` one in high precision, `quantizer` what was
            inserted in front of a site, `other` everything in between.
        title: a word or two for people.
        detail: operators, or shape and precision; one line or two.
        nodes: names of the nodes, in order; at most a dozen.
        count: how many nodes there are.
        reads: places, in the list of boxes, of those that this one reads.
    """

    kind: BoxKind
    title: str
    detail: str
    nodes: list[str]
    count: int
    reads: list[int]


class LayerDrawing(Strict):
    """One decoder layer, in the source and in the artifact; boxes in topological order."""

    layer: int
    before: list[Box]
    after: list[Box]

"""What the report shows beside the plan: one layer as the files have it, and the words of tokens."""

from __future__ import annotations

from spq_graph.documents.drawing import LayerDrawing
from spq_graph.documents.plan import Plan
from spq_graph.documents.ranges import Ranges
from spq_graph.passes.adapt.prepared import canonical
from spq_graph.passes.draw.boxes import draw_layer, layer_to_draw
from spq_graph.runtime.text.tokenizer import TextTokenizer
from spq_graph.workbench.built import Built
from spq_graph.workbench.workbench import Workbench


def draw(bench: Workbench, built: Built, plan: Plan) -> LayerDrawing | None:
    """The layer with the largest spike, in the source and as built; None where no layer was recognised."""
    layer = layer_to_draw(plan.sites)
    if layer is None:
        return None
    before, after = bench.prepared.graph, canonical(built.path)
    return LayerDrawing(
        layer=layer, before=draw_layer(before, plan.sites, layer), after=draw_layer(after, plan.sites, layer)
    )


def token_texts(tokenizer: TextTokenizer | None, ranges: Ranges) -> dict[int, str]:
    """Texts of the tokens that lead the profiles, by id; empty without a tokenizer."""
    if tokenizer is None:
        return {}
    profiles = [seen.profile for seen in ranges.values.values() if seen.profile is not None]
    ids = sorted({peak.token for profile in profiles for peak in profile.leaders})
    return {token: tokenizer.token_text(token) for token in ids}

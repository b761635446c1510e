"""What can be asked of a model that is open: about every token, about the last one only, or nothing."""

from __future__ import annotations

from spq_graph.documents.report import LogitsRef
from spq_graph.runtime.measures.asked import behind_last, gives_last_only
from spq_graph.runtime.text.sequences import Sequences
from spq_graph.terms.errors import GraphError
from spq_graph.terms.logits import Given
from spq_graph.workbench.workbench import Workbench


def require_logits(bench: Workbench, wanted: str, remedy: str) -> None:
    """Refuse a model that says nothing of the next token.

    Args:
        bench: the model.
        wanted: what needs logits, in words.
        remedy: what is possible all the same.

    Raises:
        GraphError: there are no logits, and so no `wanted`.
    """
    if bench.logits.output is None:
        raise GraphError(
            f"{bench.logits.words}, so that there is no {wanted}", where=bench.source.origin, remedy=remedy
        )


def require_continuing(bench: Workbench, remedy: str) -> None:
    """Refuse a model that cannot tell what comes behind fewer tokens than it insists on.

    Raises:
        GraphError: it takes a fixed number of tokens, and gives logits of the last one only.
    """
    if not continues(bench):
        length = bench.decoder.fixed_shape[1]
        raise GraphError(
            f"the graph takes exactly {length} tokens and gives logits of the last one only: no text grows behind that",
            where=bench.source.origin,
            remedy=remedy,
        )


def continues(bench: Workbench) -> bool:
    """Whether a model can tell what comes behind fewer tokens than it insists on, if it insists on some."""
    length = bench.decoder.fixed_shape[1]
    return length is None or length == 1 or not gives_last_only(bench.reference)


def logits_ref(bench: Workbench, text: Sequences | None, *, measured: bool) -> LogitsRef:
    """What a report says of a model's logits.

    Args:
        bench: the model.
        text: what the ladder was measured on.
        measured: whether anything was; otherwise no session is opened to know more.
    """
    if bench.logits.output is None:
        return LogitsRef(given=Given.NONE, note=bench.logits.words)
    last_only = bench.reference.last_only if measured else None
    if not last_only:
        return LogitsRef(given=None if last_only is None else Given.EVERY, output=bench.logits.output)
    note, judged = "the graph gives logits of the last token only", None
    if text is not None:
        judged = sum(len(batch.targets) for batch in behind_last(text, bench.decoder.fixed_shape))
        note += f": figures are means over {judged} tokens, one a window"
    return LogitsRef(given=Given.LAST, output=bench.logits.output, tokens=judged, note=note)

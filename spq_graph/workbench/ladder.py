"""What quantizing everywhere costs, what keeping the spikes wins back, and the controls beside it, as measured."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from spq_graph.decisions.variants import LadderPlace, Variant, alike, decisions_of
from spq_graph.documents.report import Rung
from spq_graph.passes.adapt.prepared import canonical
from spq_graph.passes.files.read import size_of
from spq_graph.runtime.measures.asked import Stream
from spq_graph.runtime.measures.evaluate import score_text
from spq_graph.runtime.measures.finite import LogitsNotFiniteError
from spq_graph.runtime.measures.said import Said
from spq_graph.runtime.measures.score import Score
from spq_graph.runtime.sessions.segmented import Progress
from spq_graph.runtime.text.sequences import Sequences
from spq_graph.terms.errors import GraphError
from spq_graph.terms.rows import FP32, SPIKE_AWARE, RowId, RowKind
from spq_graph.workbench.built import Built
from spq_graph.workbench.naming import in_source, once_quantized, refuse_too_large_on
from spq_graph.workbench.streams import execute
from spq_graph.workbench.workbench import Workbench

# Models whose sessions live side by side, in bytes of their files.
SESSION_BYTES = 2 << 30


def measure_ladder(
    bench: Workbench, rows: Sequence[Variant], text: Sequences, ready: Mapping[LadderPlace, Built]
) -> list[Rung]:
    """Build, prove and measure every row on the same tokens; FP32 comes first.

    Rows that decide the same are measured once, and the source is run once where there is room for what it says. A row
    in a format that the graph cannot have is left out, with a remark.

    Args:
        bench: the source.
        rows: what to measure beside it.
        text: what it is measured on.
        ready: files of rows that are built already, which are left where they are.

    Raises:
        CheckError: a row's integer sites did not run as integer kernels, or its logits are NaN or infinite.
        ActivationError: those of the source are, or its activations are more than what holds them.
    """
    models = alike(rows)
    distinct = [next((row for row in same if row.place in ready), same[0]) for same in models.values()]
    refuse_too_large_on(bench, text)
    out = [key for key, same in models.items() if any(row.id == SPIKE_AWARE for row in same)]
    measured: dict[object, Rung] = {}
    ladder: list[Rung] = []
    with bench.steps.step("ladder", f"Measuring {len(distinct) + 1} models on {text.tokens} tokens") as tick:
        said = Said(bench.work)
        for done, group in _groups(bench, distinct, ready):
            scorer = _Scorer(bench, text, out, said if len(group) < len(distinct) else None)

            def in_all(some: int, whole: int, done: int = done, group: int = len(group)) -> None:
                tick(done * whole + group * some, len(distinct) * whole)

            built = [(row, file) for row, file in group if file is not None]
            reference, scores, built, streams = scorer.scored(built, in_all)
            if not ladder:
                executed = execute(bench.reference, text.ids[:1, :8]).ops
                ladder.append(_rung(FP32, None, reference, size_of(bench.model), executed))
            for (row, file), score, stream in zip(built, scores, streams, strict=True):
                executed = {} if bench.emulates(row.plan) else bench.prove(file, row.plan, stream).ops
                measured[decisions_of(row.plan)] = _rung(row.id, row.bits, score, file.bytes, executed)
                if row.place not in ready:
                    file.discard()
    for row in rows:
        rung = measured.get(decisions_of(row.plan))
        if rung is not None:
            bits = None if row.id.kind is RowKind.FP32 else row.bits
            ladder.append(rung.model_copy(update={"id": row.id, "bits": bits, "kept": _kept(row)}))
    return ladder


def _groups(
    bench: Workbench, rows: Sequence[Variant], ready: Mapping[LadderPlace, Built]
) -> Iterator[tuple[int, list[tuple[Variant, Built | None]]]]:
    """Rows that are measured side by side, behind how many others, with their files: None where there can be none."""
    group: list[tuple[Variant, Built | None]] = []
    room = SESSION_BYTES - size_of(bench.model)
    for number, row in enumerate(rows):
        file = ready.get(row.place) or _built(bench, row)
        size = file.bytes if file is not None else 0
        if group and size > room:
            yield number - len(group), group
            group, room = [], SESSION_BYTES - size_of(bench.model)
        group.append((row, file))
        room -= size
    if group:
        yield len(rows) - len(group), group


@dataclass(frozen=True, slots=True)
class _Scorer:
    """Scores rows on a text beside the source.

    Attributes:
        bench: the source.
        text: what is measured on.
        out: what those decide that are delivered.
        said: what the source said of the text, where several groups ask for it.
    """

    bench: Workbench
    text: Sequences
    out: Collection[object]
    said: Said | None

    def scored(
        self, built: list[tuple[Variant, Built]], progress: Progress
    ) -> tuple[Score, list[Score], list[tuple[Variant, Built]], list[Stream]]:
        """Scores of the source and of rows, and the rows that they are of: one that is not finite is left out."""
        streams = [self.bench.stream_for(row.plan, file) for row, file in built]
        while True:
            try:
                reference, scores = score_text(self.bench.reference, streams, self.text, progress, self.said)
            except LogitsNotFiniteError as error:
                _leave_out(error, self.bench, built, self.out)
                del streams[error.number or 0]
            else:
                return reference, scores, built, streams


def _leave_out(
    error: LogitsNotFiniteError, bench: Workbench, built: list[tuple[Variant, Built]], out: Collection[object]
) -> None:
    """Leave out the row whose logits are not finite; `out` is what those decide that are delivered.

    Raises:
        ActivationError: it is the source.
        NotFiniteError: it is what is delivered.
    """
    if error.number is None:
        raise in_source(error, bench) from error
    row, file = built.pop(error.number)
    told = once_quantized(error, bench, canonical(file.path), file.path, f"row {row.id.name}, {row.bits} bits")
    if decisions_of(row.plan) in out:
        raise told from error
    bench.steps.remark(f"no row {row.id.name} at {row.bits} bits: {told.what}")
    file.discard()


def _built(bench: Workbench, row: Variant) -> Built | None:
    try:
        return bench.build(row.plan, profile=bench.measured_as(row.plan))
    except GraphError as cause:
        if row.id.kept_in is None and row.id.format is None:
            raise
        bench.steps.remark(f"no row {row.id.name}: {cause.what}")
        return None


def _kept(row: Variant) -> list[str]:
    # Of weight-only and the like nothing is kept, it is another way to quantize everything; and of FP32 all is.
    rounded = (s for s in row.plan.counted if s.precision.bits is None and s.precision is not row.plan.usual)
    return [] if row.id.all_in_one or row.id.kind is RowKind.FP32 else [s.key for s in rounded]


def _rung(row: RowId, bits: int | None, score: Score, size: int, executed: dict[str, int]) -> Rung:
    return Rung(
        id=row,
        bits=bits,
        perplexity=score.perplexity,
        perplexity_stderr=score.perplexity_stderr,
        nll=score.nll,
        nll_stderr=score.nll_stderr,
        kl=score.kl,
        kl_stderr=score.kl_stderr,
        top1=score.top1,
        bytes=size,
        kept=[],
        executed=executed,
    )

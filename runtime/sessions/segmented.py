"""Run a decoder piece by piece, with the weights of one piece in memory at a time."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from spq_graph.documents.leftovers import temporary_folder
from spq_graph.runtime.sessions.cores import cores
from spq_graph.runtime.sessions.executed import Executed, executed_in
from spq_graph.runtime.sessions.feeds import Array
from spq_graph.runtime.sessions.memory import give_back_memory
from spq_graph.runtime.sessions.opening import open_session, session_options
from spq_graph.runtime.sessions.passing import Part, Passing, in_columns, in_parts, kept_of, tokens_of
from spq_graph.runtime.sessions.session import Decoder
from spq_graph.runtime.text.sequences import Ids
from spq_graph.terms.logits import Logits
from spq_graph.terms.segment import Handed, Segment, Segmented, Weight, type_of

Batch: TypeAlias = tuple[Ids, Ids]
Progress: TypeAlias = Callable[[int, int], None]
_P = TypeVar("_P", Passing, Part)
_T = TypeVar("_T")
# Opening a segment costs about as much as some hundred tokens do, so as many tokens as possible pass through one before
# the next is opened; what is handed over is kept for all of them, and should take no more than so many bytes.
ROUND_TOKENS = 4096  # that pass in any case
HANDED_BYTES = 256 << 20
PACKING_KEY = "session.disable_prepacking"
FOLDER_KEY = "session.model_external_initializers_file_folder_path"


class SegmentedRunner(Decoder):
    """A decoder that runs segment by segment.

    A round of batches goes through a segment before the next one is opened. A graph of one segment stays open.

    Args:
        model: the graph in segments.
        outputs: what to compute; by default the logits.
        side_by_side: how many batches run at the same time. Threads that share out every operator wait for the slowest
            of them after each; those that have a batch of their own wait for nobody.
        logits: which output holds them; None to go by names and shapes.

    Raises:
        GraphError: the graph has inputs that token ids alone do not determine.
    """

    def __init__(
        self,
        model: Segmented,
        *,
        outputs: Sequence[str] | None = None,
        side_by_side: int = 1,
        logits: Logits | None = None,
    ) -> None:
        super().__init__(model.where, model.inputs, model.outputs, outputs, logits)
        self._model = model
        self._side_by_side, self._arena = side_by_side, True
        self._wanted = {name for segment in model.segments for name in segment.reads} | set(self.outputs)
        self._open: Any = None
        self._handed = 0  # bytes a token, at most, that segments were seen to hand over

    @property
    def bytes(self) -> int:
        """What the weights of all segments take together."""
        return sum(segment.size for segment in self._model.segments)

    @property
    def pieces(self) -> int:
        """How many segments there are."""
        return len(self._model.segments)

    def results(
        self, batches: Sequence[Batch], progress: Progress | None = None, columns: int | None = None
    ) -> Iterator[list[Array]]:
        """Outputs of one batch after the other.

        Args:
            batches: ids and mask of each, int64 [batch, length], in the shape that the graph insists on.
            progress: called with steps done and in all; a step is one batch in one segment.
            columns: give those of so many tokens of each row at a time, where the last segment computes every token
                from what it is handed of that token; None for all at once.

        Raises:
            SourceError: ONNX Runtime cannot load a segment.
            GraphError: it fails on a batch.
        """
        steps = _Steps(len(batches) * len(self._model.segments), progress)
        waiting = deque(
            Passing(self.token_feeds(ids, mask) | self.empty_past(len(ids), ids.shape[1]), ids, self._known(ids, mask))
            for ids, mask in batches
        )
        while waiting:
            yield from self._round(waiting, steps, columns)

    def stream(self, batches: Sequence[Batch], columns: int | None = None) -> Iterator[npt.NDArray[np.float32]]:
        """Logits of one batch after the other, in the form of `by_token`; ids and mask are int64 [batch, length].

        Args:
            batches: ids and mask of each.
            columns: give those of so many tokens of each row at a time; None for all at once.
        """
        filled = [self.filled(ids, mask) for ids, mask in batches]
        found = self.results(filled, columns=columns)
        # Nothing is held while the next is computed: logits over a large vocabulary are gigabytes.
        for (ids, _), (whole, _) in zip(batches, filled, strict=True):
            rows, length = whole.shape
            given = 0
            while given < length:
                (one,) = next(found)
                here = length if columns is None else max(1, one.size // one.shape[-1] // rows)
                if given < ids.shape[1]:  # what is behind fills the shape that the graph insists on
                    yield from in_columns(self.by_token(one, (rows, here))[: len(ids), : ids.shape[1] - given], columns)
                given += here
                del one

    def _known(self, ids: Ids, mask: Ids) -> dict[str, Array]:
        """What is known of a batch before it enters the first segment, by name."""
        return {}

    def _round(self, waiting: deque[Passing], steps: _Steps, columns: int | None) -> Iterator[list[Array]]:
        """Bring as many batches through all segments as what is handed over has room for."""
        *before, last = self._model.segments
        some: list[Passing] = []
        for number, segment in enumerate(before):
            later = {name for s in self._model.segments[number + 1 :] for name in s.reads} | set(self.outputs)
            session = self._session(segment, (some or waiting)[0].values)
            for batches in self._taken(waiting, some) if number == 0 else [some]:
                for _ in self._in_turn(partial(self._pass, session, segment, later), batches):
                    steps.done()
            del session
            self._leave(segment)
            self._handed = max(self._handed, kept_of(some) // tokens_of(some))
        if not before:
            some = list(waiting)
            waiting.clear()
        session = self._session(last, some[0].values)
        parts = [part for batch in some for part in in_parts(batch, last, columns, self.outputs)]
        # Not in a loop of its own: what that yielded last it would hold while the next is computed.
        yield from self._in_turn(partial(self._finish, session, last, steps), parts)

    def _taken(self, waiting: deque[Passing], some: list[Passing]) -> Iterator[list[Passing]]:
        """Batches that enter a round, some at a time, while there is room; `some` collects those that have entered."""
        room = ROUND_TOKENS
        while waiting and room > 0:
            entering: list[Passing] = []
            while waiting and room > 0:
                entering.append(waiting.popleft())
                room -= math.prod(entering[-1].shape)
            yield entering
            some += entering
            # Behind the first segment of the first round nobody knows what later ones hand over: up to four times that.
            each = self._handed or 4 * kept_of(some) / tokens_of(some)
            room = int(HANDED_BYTES / each) - tokens_of(some)

    def _pass(self, session: Any, segment: Segment, later: set[str], batch: Passing) -> None:
        """Bring a batch through a segment that is not the last, and keep what later ones read."""
        # Copies: an array of the session's own would keep all of what the session allocated beside it.
        found = {name: array.copy() for name, array in self._run(session, segment, batch).items()}
        batch.values = {name: array for name, array in (batch.values | found).items() if name in later}

    def _finish(self, session: Any, segment: Segment, steps: _Steps, part: Part) -> list[Array]:
        """Bring a batch, or a part of it, through the last segment, and return the outputs."""
        batch = part.taken()
        found = batch.values | self._run(session, segment, batch)
        if part.ends:
            steps.done()
        return [found[name] for name in self.outputs]

    def _in_turn(self, work: Callable[[_P], _T], batches: Sequence[_P]) -> Iterator[_T]:
        """What work gives of each batch, in their order; several are worked on at the same time."""
        if self._side_by_side == 1:
            yield from map(work, batches)
            return
        pending: deque[Future[_T]] = deque()
        with ThreadPoolExecutor(self._side_by_side) as pool:
            for batch in batches:
                pending.append(pool.submit(work, batch))
                if len(pending) == self._side_by_side:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()

    def _leave(self, segment: Segment) -> None:
        """What is done when all batches of a round are through a segment."""
        give_back_memory()

    def _run(self, session: Any, segment: Segment, batch: Passing) -> dict[str, Array]:
        names = {spec.name for spec in session.get_inputs()}
        given = {name: array for name, array in (batch.feed | batch.values).items() if name in names}
        wanted = [name for name in segment.gives if name in self._wanted]
        with self.failures(batch.shape):
            return dict(zip(wanted, session.run(wanted, given), strict=True))

    def _session(self, segment: Segment, values: dict[str, Array]) -> Any:
        # Those of the runtime's own pool help whoever asks: with the callers there is one thread for each core.
        threads = max(1, cores() + 1 - self._side_by_side) if self._side_by_side > 1 else 0
        if self._open is not None:
            return self._open
        packed = self._packs(segment)
        session = open_segment(segment, values, self._model.where, threads=threads, packed=packed, arena=self._arena)
        self._open = session if len(self._model.segments) == 1 else None
        return session

    def _packs(self, segment: Segment) -> bool:
        """Whether a session copies weights into the order in which products read them, once, when it is opened."""
        return not segment.wide

    def execute_once(self, ids: Ids) -> Executed:
        """Run one short batch, int64 [batch, length], under the profiler and list the kernels that ran."""
        batch = self.filled(ids, np.ones_like(ids))
        passing = Passing(self.token_feeds(*batch) | self.empty_past(*batch[0].shape), batch[0])
        with temporary_folder() as folder:
            profiles: list[Path] = []
            for number, segment in enumerate(self._model.segments):
                profile = folder / f"profile-{number}"
                session = open_segment(segment, passing.values, self._model.where, profile, packed=not segment.wide)
                passing.values |= self._run(session, segment, passing)
                profiles.append(Path(session.end_profiling()))
            return executed_in(profiles)


def open_segment(
    segment: Segment,
    values: dict[str, Array],
    where: Path,
    profile: Path | None = None,
    threads: int = 0,
    *,
    packed: bool = True,
    arena: bool = True,
) -> Any:
    """A session over a segment.

    Args:
        segment: the segment.
        values: what it is handed, of any one batch; their types are those of its inputs.
        where: the model's file.
        profile: where to write a profile of the kernels; None for no profile.
        threads: of the runtime's own; 0 takes all cores.
        packed: whether weights are copied into the order in which products read them; otherwise floating-point ones
            stay mapped from their files, and products of many rows take no longer.
        arena: whether it keeps, for its next run, the most that was ever between its operators.

    Raises:
        SourceError: ONNX Runtime cannot load it.
    """
    known = [name for name in segment.reads if name in values]
    handed: dict[str, Handed] = {name: (type_of(values[name]), values[name].shape) for name in known}
    options = session_options(threads, profile)
    options.enable_cpu_mem_arena = arena
    options.add_session_config_entry(FOLDER_KEY, str(where.resolve().parent))
    if not packed:
        options.add_session_config_entry(PACKING_KEY, "1")
    weights = {name: _value_of(make()) for name, make in segment.weights.items()}
    options.add_external_initializers(list(weights), list(weights.values()))
    return open_session(segment.proto(handed), options, where)


def _value_of(weight: Weight) -> Any:
    array = weight.array
    if array.dtype.isbuiltin == 1:
        return ort.OrtValue.ortvalue_from_numpy(array)
    codes = array.view(f"uint{8 * array.itemsize}")  # a type that numpy lacks
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(codes, weight.element_type)


@dataclass(slots=True)
class _Steps:
    """Counts what is done of a total."""

    total: int
    progress: Progress | None
    count: int = 0

    def done(self) -> None:
        self.count += 1
        if self.progress is not None:
            self.progress(self.count, self.total)

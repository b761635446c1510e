"""Segmented: run a decoder piece by piece, with the weights of one piece in memory at a time."""

from __future__ import annotations

import ctypes
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from spq_graph.runtime.executed import Executed, executed_in
from spq_graph.runtime.sequences import Ids
from spq_graph.runtime.session import Array, Decoder, open_session, session_options
from spq_graph.segment import Handed, Segment, Segmented, Weight, type_of

Batch: TypeAlias = tuple[Ids, Ids]
Progress: TypeAlias = Callable[[int, int], None]
# Tokens that pass through a segment before the next one is opened: opening one costs about as much as some hundred
# tokens do, and what segments hand over is kept for all of them. Once a round has shown how much that is, the next ones
# take as many tokens as it leaves room for.
ROUND_TOKENS = 4096
HANDED_BYTES = 256 << 20
FOLDER_KEY = "session.model_external_initializers_file_folder_path"


class SegmentedRunner(Decoder):
    """A decoder that runs segment by segment.

    A round of batches goes through a segment before the next one is opened. A graph of one segment stays open.

    Args:
        model: the graph in segments.
        outputs: what to compute; by default the logits.

    Raises:
        GraphError: the graph has inputs that token ids alone do not determine.
    """

    def __init__(self, model: Segmented, *, outputs: Sequence[str] | None = None) -> None:
        super().__init__(model.where, model.inputs, model.outputs, outputs)
        self._model = model
        self._open: Any = None
        self._handed = 0  # bytes a token, at most, that segments were seen to hand over

    @property
    def pieces(self) -> int:
        """How many segments there are."""
        return len(self._model.segments)

    @property
    def bytes(self) -> int:
        """What the weights of all segments take together."""
        return sum(segment.size for segment in self._model.segments)

    def results(self, batches: Sequence[Batch], progress: Progress | None = None) -> Iterator[list[Array]]:
        """Outputs of one batch after the other.

        Args:
            batches: ids and mask of each, int64 [batch, length], in the shape that the graph insists on.
            progress: called with steps done and in all; a step is one batch in one segment.

        Raises:
            SourceError: ONNX Runtime cannot load a segment.
            GraphError: it fails on a batch.
        """
        steps = _Steps(len(batches) * len(self._model.segments), progress)
        for some in self._rounds(batches):
            yield from self._round(some, steps)

    def _rounds(self, batches: Sequence[Batch]) -> Iterator[list[Batch]]:
        some: list[Batch] = []
        tokens = 0
        for batch in batches:
            some.append(batch)
            tokens += batch[0].size
            if tokens >= max(ROUND_TOKENS, HANDED_BYTES // self._handed if self._handed else 0):
                yield some
                some, tokens = [], 0
        if some:
            yield some

    def stream(self, batches: Sequence[Batch]) -> Iterator[npt.NDArray[np.float32]]:
        """Logits of one batch after the other, float32 [batch, length, vocabulary]; ids and mask are int64."""
        filled = [self.filled(ids, mask) for ids, mask in batches]
        for (ids, _), (logits, *_) in zip(batches, self.results(filled), strict=True):
            yield logits[: len(ids), : ids.shape[1]].astype(np.float32, copy=False)

    def _round(self, batches: Sequence[Batch], steps: _Steps) -> Iterator[list[Array]]:
        feeds = [self.token_feeds(ids, mask) | self.empty_past(len(ids), ids.shape[1]) for ids, mask in batches]
        held: list[dict[str, Array]] = [{} for _ in batches]
        *before, last = self._model.segments
        for number, segment in enumerate(before):
            later = {name for s in self._model.segments[number + 1 :] for name in s.reads} | set(self.outputs)
            session = self._session(segment, held[0])
            for feed, values, (ids, _) in zip(feeds, held, batches, strict=True):
                given = self._run(session, segment, feed, values, ids.shape)
                # Copies: an array of the session's own would keep all of what the session allocated beside it.
                values.update({name: array.copy() for name, array in given.items()})
                for name in [name for name in values if name not in later]:
                    del values[name]
                steps.done()
            del session
            give_back_memory()
            kept = sum(array.nbytes for values in held for array in values.values())
            self._handed = max(self._handed, kept // sum(ids.size for ids, _ in batches))
        session = self._session(last, held[0])
        for feed, values, (ids, _) in zip(feeds, held, batches, strict=True):
            found = values | self._run(session, last, feed, values, ids.shape)
            values.clear()
            steps.done()
            yield [found[name] for name in self.outputs]

    def _run(
        self, session: Any, segment: Segment, feed: dict[str, Array], values: dict[str, Array], shape: tuple[int, ...]
    ) -> dict[str, Array]:
        names = {spec.name for spec in session.get_inputs()}
        given = {name: array for name, array in (feed | values).items() if name in names}
        wanted = [name for name in segment.gives if name in self._wanted]
        with self.failures(shape):
            return dict(zip(wanted, session.run(wanted, given), strict=True))

    @property
    def _wanted(self) -> set[str]:
        """What anybody reads: outputs that were asked for, and what segments hand over."""
        return {name for segment in self._model.segments for name in segment.reads} | set(self.outputs)

    def _session(self, segment: Segment, values: dict[str, Array]) -> Any:
        if len(self._model.segments) > 1:
            return open_segment(segment, values, self._model.where)
        if self._open is None:
            self._open = open_segment(segment, values, self._model.where)
        return self._open

    def execute_once(self, ids: Ids) -> Executed:
        """Run one short batch, int64 [batch, length], under the profiler and list the kernels that ran."""
        batch = self.filled(ids, np.ones_like(ids))
        feed = self.token_feeds(*batch) | self.empty_past(*batch[0].shape)
        values: dict[str, Array] = {}
        with tempfile.TemporaryDirectory(prefix="spq-graph-") as folder:
            profiles: list[Path] = []
            for number, segment in enumerate(self._model.segments):
                session = open_segment(segment, values, self._model.where, profile=Path(folder) / f"profile-{number}")
                values |= self._run(session, segment, feed, values, batch[0].shape)
                profiles.append(Path(session.end_profiling()))
            return executed_in(profiles)


def open_segment(segment: Segment, values: dict[str, Array], where: Path, profile: Path | None = None) -> Any:
    """A session over a segment.

    Args:
        segment: the segment.
        values: what it is handed, of any one batch; their types are those of its inputs.
        where: the model's file.
        profile: where to write a profile of the kernels; None for no profile.

    Raises:
        SourceError: ONNX Runtime cannot load it.
    """
    handed: dict[str, Handed] = {
        name: (type_of(values[name]), values[name].ndim) for name in segment.reads if name in values
    }
    options = session_options(profile=profile)
    options.add_session_config_entry(FOLDER_KEY, str(where.resolve().parent))
    weights = {name: _value_of(make()) for name, make in segment.weights.items()}
    options.add_external_initializers(list(weights), list(weights.values()))
    return open_session(segment.proto(handed), options, where)


def _value_of(weight: Weight) -> Any:
    array = weight.array
    if array.dtype.isbuiltin == 1:
        return ort.OrtValue.ortvalue_from_numpy(array)
    codes = array.view(f"uint{8 * array.itemsize}")  # a type that numpy lacks
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(codes, weight.element_type)


def give_back_memory() -> None:
    """Let the C library return what is free to the system, where it is one that would keep it (glibc)."""
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None) is not None:
        trim(0)


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

"""Run a decoder on token ids, whatever inputs its exporter gave it, and read back what really ran."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from spq_graph.documents.leftovers import temporary_folder
from spq_graph.runtime.sessions.executed import Executed, executed_by
from spq_graph.runtime.sessions.feeds import TYPES, Array, TokenInputs
from spq_graph.runtime.sessions.inputs import AttentionFacts, empty_past
from spq_graph.runtime.sessions.memory import give_back_memory
from spq_graph.runtime.sessions.opening import open_session, session_options
from spq_graph.runtime.sessions.passing import in_columns
from spq_graph.runtime.text.sequences import Ids
from spq_graph.terms.errors import GraphError
from spq_graph.terms.halves import refuse_halves
from spq_graph.terms.logits import Logits
from spq_graph.terms.targets import CPU_PROVIDER

_MOST_TOKENS = 1 << 22  # in a batch


class Decoder:
    """What a decoder takes and gives: token ids brought into the form that its exporter chose.

    Args:
        path: the .onnx file, for errors.
        inputs, given: inputs and outputs of the graph, each with `name`, `type` and `shape`.
        outputs: names of those to compute; by default the logits, or what there is instead of them.
        logits: which output holds them, as its graph tells; None to go by names and shapes.

    Attributes:
        last_only: whether logits are those of the last token only; None until somebody has seen any.

    Raises:
        GraphError: the graph has no token ids to take, or takes what they do not determine.
    """

    runtime = "ONNX Runtime"

    def __init__(
        self,
        path: Path,
        inputs: Sequence[Any],
        given: Sequence[Any],
        outputs: Sequence[str] | None = None,
        logits: Logits | None = None,
    ) -> None:
        self.path = path
        self._inputs = list(inputs)
        self._given = list(given)
        refuse_halves([one.name for one in self._inputs], path)
        self._takes = TokenInputs(path, self._inputs)
        self._told = logits
        self.last_only: bool | None = None
        self.outputs = list(outputs) if outputs is not None else [self._find_logits()]

    def _find_logits(self) -> str:
        if self._told is not None and self._told.output is not None:
            return self._told.output
        numbers = [o for o in self._given if "float" in o.type] or self._given
        named = [o for o in numbers if o.name == "logits"]
        by_token = [o for o in numbers if len(o.shape) == 3]
        name: str = (named or by_token or numbers)[0].name
        return name

    @property
    def fixed_shape(self) -> tuple[int | None, int | None]:
        """Batch size and length that the graph insists on; None where they are free."""
        shape = next(i.shape for i in self._inputs if i.name == self._takes.ids_name)
        batch, length = (d if isinstance(d, int) else None for d in (*shape, None, None)[:2])  # it may state no shape
        if not (0 < (batch or 1) <= _MOST_TOKENS and 0 < (batch or 1) * (length or 1) <= _MOST_TOKENS):
            raise GraphError(
                f"input '{self._takes.ids_name}' wants {batch} sequences of {length} tokens",
                where=str(self.path),
                remedy="export the model again with free sizes",
            )
        return batch, length

    @property
    def vocabulary(self) -> int | None:
        """Size of the vocabulary, where the graph states it."""
        if self._told is not None:
            return self._told.vocabulary
        sizes = [o.shape[-1] for o in self._given if o.name == self.outputs[0] and o.shape]
        return sizes[0] if sizes and isinstance(sizes[0], int) else None

    def filled(self, ids: Ids, mask: Ids) -> tuple[Ids, Ids]:
        """A batch in the shape that the graph insists on: copies of the first row below, padding on the right."""
        batch, length = self.fixed_shape
        rows = np.arange(max(batch or 0, len(ids)))
        rows[len(ids) :] = 0
        padding = ((0, 0), (0, max(length or 0, ids.shape[1]) - ids.shape[1]))
        return np.pad(ids[rows], padding), np.pad(mask[rows], padding)

    @contextmanager
    def failures(self, shape: tuple[int, ...]) -> Iterator[None]:
        """Turn what ONNX Runtime raises while it runs a batch of this shape into a GraphError."""
        try:
            yield
        except Exception as cause:  # the binding raises a class of its own for every status code
            raise GraphError(
                f"{self.runtime} failed on a batch of shape {shape}: {str(cause).splitlines()[0]}",
                where=str(self.path),
                remedy="pass a --window of as many tokens as the model takes, or export it with free batch and length",
            ) from cause

    def by_token(self, found: Array, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
        """Logits in one form: float32 [batch, length, vocabulary], or [batch, 1, vocabulary] of the last tokens alone.

        Args:
            found: as the graph gives them; tokens may be on one axis, and the one of the last token may be absent.
            shape: of the ids, as they were run.

        Raises:
            GraphError: they are for neither all tokens nor the last ones.
        """
        rows, length = shape
        tokens = found.size // max(1, found.shape[-1] if found.ndim else 0)
        if found.ndim < 2 or tokens not in (rows, rows * length):
            raise GraphError(
                f"'{self.outputs[0]}' has the shape {found.shape} for {rows} sequences of {length} tokens: neither "
                "logits of every token nor of the last ones",
                where=str(self.path),
                remedy="export the model with logits of shape [batch, length, vocabulary]",
            )
        if length > 1 and self.last_only is False and tokens == rows:
            raise GraphError(
                f"'{self.outputs[0]}' is declared to hold logits of every token, and holds those of the last ones only",
                where=str(self.path),
                remedy="declare its second dimension as 1, and those are measured",
            )
        return found.reshape(rows, -1, found.shape[-1]).astype(np.float32, copy=False)

    @property
    def declares_every(self) -> bool:
        """Whether the logits are declared to be as long as the ids are."""
        ids = next(spec.shape for spec in self._inputs if spec.name == self._takes.ids_name)
        given = next(spec.shape for spec in self._given if spec.name == self.outputs[0])
        return len(ids) == 2 and len(given) == 3 and ids[1] not in (None, 1) and given[1] == ids[1]

    def token_feeds(self, ids: Ids, mask: Ids) -> dict[str, Array]:
        """What the graph's inputs take but for its cache: ids [batch, new], and a mask over them and all before."""
        return self._takes.of(ids, mask)

    @property
    def past_names(self) -> list[str]:
        """Inputs that hold keys and values of earlier tokens."""
        return [spec.name for spec in self._takes.past]

    def empty_past(self, rows: int, new: int) -> dict[str, Array]:
        """What the graph's cache begins with.

        Args:
            rows: how many sequences.
            new: most tokens of each that will be fed at once; where the cache keeps a window only, it has room for
                these beside it.

        Raises:
            GraphError: its shape is not known, or its length is fixed.
        """
        found: dict[str, Array] = {}
        for spec in self._takes.past:
            known = None if all(isinstance(d, int) for d in spec.shape) else self._facts
            window = known.windows.get(spec.name) if known is not None else None
            width = known.widths.get(spec.name) if known is not None else None
            room = window + new if window is not None else 0
            dtype = TYPES.get(spec.type, np.float32)
            found[spec.name] = empty_past(spec.name, spec.shape, rows, dtype, width, room)
        return found

    @property
    def keeps_window(self) -> bool:
        """Whether a cache keeps the latest tokens only, so that how many may be fed at once is limited."""
        return bool(self._facts.windows)

    @property
    def feeds_rows_alone(self) -> bool:
        """Whether several tokens may follow others in one row only, as ONNX Runtime's fused attention has it."""
        return self._facts.right_padding

    @property
    def _facts(self) -> AttentionFacts:
        return self._takes.facts

    @property
    def takes_padding(self) -> bool:
        """Whether rows padded on the left mean the same as without: the graph is told of padding and of positions."""
        names = [spec.name for spec in self._inputs]
        told = any("mask" in name for name in names) and any("position" in name for name in names)
        return told and not self._facts.right_padding


class Runner(Decoder):
    """One session over a decoder, of ONNX Runtime unless a subclass opens another.

    Args:
        path: the .onnx file.
        outputs: what to compute; by default the logits.
        threads: intra-op threads; 0 takes all cores.
        profile: where to write a profile of the kernels; None for no profile.
        provider: ONNX Runtime's execution provider; what it has no kernel for runs on the CPU.
        logits: which output holds them; None to go by names and shapes.

    Raises:
        SourceError: the runtime cannot load the file.
        GraphError: the graph has inputs that token ids alone do not determine.
    """

    def __init__(
        self,
        path: Path,
        *,
        outputs: Sequence[str] | None = None,
        threads: int = 0,
        profile: Path | None = None,
        provider: str = CPU_PROVIDER,
        logits: Logits | None = None,
    ) -> None:
        self.session = self._open(path, threads, profile, provider)
        super().__init__(path, self.session.get_inputs(), self.session.get_outputs(), outputs, logits)

    def _open(self, path: Path, threads: int, profile: Path | None, provider: str) -> Any:
        session = open_session(str(path), session_options(threads, profile), path, provider)
        give_back_memory()  # of what the runtime made of the weights on its way
        return session

    def run(self, ids: Ids, mask: Ids) -> list[Array]:
        """Run a batch; ids and mask are int64 [batch, length]. Returns the outputs in their order."""
        feeds = self.token_feeds(ids, mask) | self.empty_past(len(ids), ids.shape[1])
        with self.failures(ids.shape):
            results: list[Array] = self.session.run(self.outputs, feeds)
        return results

    def logits(self, ids: Ids, mask: Ids) -> npt.NDArray[np.float32]:
        """Logits of a batch in the form of `by_token`; in parts where the graph takes fewer rows."""
        most = self.fixed_shape[0] or len(ids)
        if len(ids) > most:
            parts = [slice(start, start + most) for start in range(0, len(ids), most)]
            return np.concatenate([self.logits(ids[part], mask[part]) for part in parts])
        filled, told = self.filled(ids, mask)
        whole = self.by_token(self.run(filled, told)[0], filled.shape)
        return whole[: len(ids), : ids.shape[1]]

    def stream(
        self, batches: Sequence[tuple[Ids, Ids]], columns: int | None = None
    ) -> Iterator[npt.NDArray[np.float32]]:
        """Logits of one batch after the other, int64 [batch, length] both; of some columns at a time, or of all."""
        return (part for ids, mask in batches for part in in_columns(self.logits(ids, mask), columns))


def execute_once(
    path: Path,
    ids: Ids,
    provider: str = CPU_PROVIDER,
    logits: Logits | None = None,
    then: Callable[[Runner], None] | None = None,
) -> Executed:
    """Run one short batch, int64 [1, length], under the profiler and list the kernels that ran.

    Args:
        path: the .onnx file.
        ids: the batch.
        provider: ONNX Runtime's execution provider.
        logits: which output holds them; None to go by names and shapes.
        then: what the session, which is no longer profiled, serves for besides.
    """
    with temporary_folder() as folder:
        runner = Runner(path, profile=folder / "profile", provider=provider, logits=logits)
        runner.run(*runner.filled(ids, np.ones_like(ids)))
        found = executed_by(runner.session)
    if then is not None:
        then(runner)
    return found

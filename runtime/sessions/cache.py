"""A batch that grows by some tokens at a time, over the graph's cache where it has one."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from spq_graph.runtime.sessions.session import Runner
from spq_graph.runtime.text.sequences import Ids
from spq_graph.terms.cache import continued

Float32 = npt.NDArray[np.float32]


class Decoding:
    """The state of one batch of sequences.

    With a cache every token is run once: what the graph returns as present is handed back as its past, as the value
    that ONNX Runtime allocated, through IO binding and without a copy. Without one, or where the graph insists on a
    length, all tokens are run again each time; the results are the same.

    Args:
        runner: the decoder.
        rows: how many sequences.

    Attributes:
        mask: int64 [rows, length], 1 for every token that was fed and 0 for padding.
    """

    def __init__(self, runner: Runner, rows: int) -> None:
        self.mask: Ids = np.zeros((rows, 0), dtype=np.int64)
        self._runner = runner
        self._ids = self.mask
        # The graph may insist on more rows than there are: the last ones are then copies of the first.
        self._padded = max(runner.fixed_shape[0] or 0, rows)
        self._pairs = cache_pairs(runner)
        self._past: dict[str, ort.OrtValue] = {}
        self._most = 0  # tokens that may follow others at once, where that is limited

    @property
    def cached(self) -> bool:
        """Whether every token is run only once."""
        return bool(self._pairs)

    @property
    def where(self) -> str:
        """The model's file, for errors."""
        return str(self._runner.path)

    @property
    def held(self) -> dict[str, Float32]:
        """Keys and values of every token that was fed, by the input that takes them; copies."""
        return {name: value.numpy().astype(np.float32) for name, value in self._past.items()}

    def feed(self, ids: Ids, mask: Ids | None = None) -> Float32:
        """Append tokens, and return what the model says after each of them.

        Args:
            ids: int64 [rows, new].
            mask: the same shape, 0 for padding; by default there is none.

        Returns:
            Logits, float32 [rows, new, vocabulary]; [rows, 1, vocabulary] where the graph gives those of the last only.

        Raises:
            GraphError: ONNX Runtime fails on them.
        """
        new = np.ones_like(ids) if mask is None else mask
        if self._past and self._most and ids.shape[1] > self._most:
            starts = range(0, ids.shape[1], self._most)
            parts = [slice(start, start + self._most) for start in starts]
            return np.concatenate([self.feed(ids[:, part], new[:, part]) for part in parts], axis=1)
        # Where a head has more columns than the embedding has rows, nothing can be fed behind the others.
        return self._fed(ids, new)[..., : self._runner.vocabulary]

    def _fed(self, ids: Ids, new: Ids) -> Float32:
        self.mask = np.concatenate([self.mask, new], axis=1)
        if self.cached:
            if not self._past:
                self._begin(ids.shape[1])
            return self._step(ids)
        self._ids = np.concatenate([self._ids, ids], axis=1)
        return self._runner.logits(self._ids, self.mask)[:, -ids.shape[1] :]

    def _begin(self, new: int) -> None:
        """Start with an empty cache; of one that keeps a window, the first feed settles the room."""
        if self._runner.feeds_rows_alone and self._padded > 1:
            self._most = 1
        elif self._runner.keeps_window:
            self._most = new
        empty = self._runner.empty_past(self._padded, new)
        self._past = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in empty.items()}

    def _step(self, ids: Ids) -> Float32:
        rows = np.arange(self._padded)
        rows[len(ids) :] = 0
        binding = self._runner.session.io_binding()
        # The arrays have to outlive the run: the binding holds their addresses only.
        feeds = {k: np.ascontiguousarray(v) for k, v in self._runner.token_feeds(ids[rows], self.mask[rows]).items()}
        for name, feed in feeds.items():
            binding.bind_cpu_input(name, feed)
        for name, value in self._past.items():
            binding.bind_ortvalue_input(name, value)
        for name in (self._runner.outputs[0], *self._pairs.values()):
            binding.bind_output(name, "cpu")
        with self._runner.failures(ids.shape):
            self._runner.session.run_with_iobinding(binding)
        logits, *present = binding.get_outputs()
        self._past = dict(zip(self._pairs, present, strict=True))
        return self._runner.by_token(logits.numpy(), (self._padded, ids.shape[1]))[: len(ids)]


def cache_pairs(runner: Runner) -> dict[str, str]:
    """By input of the cache, the output that continues it; empty where the graph has no cache to grow."""
    inputs = runner.past_names
    pairs = continued(inputs, [spec.name for spec in runner.session.get_outputs()])
    return pairs if len(pairs) == len(inputs) and runner.fixed_shape[1] is None else {}

"""What `bench` measured, as it prints it with `--json` and as a report keeps it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from spq_graph.documents.named import Named
from spq_graph.documents.strict import Strict


class Prefill(Strict):
    """A prompt: seconds, and how many times faster than the first row.

    Attributes:
        times_stderr: standard error of `times` over the rounds; None of one round, and in older files.
    """

    seconds: float
    times: float
    times_stderr: float | None = None


class Decode(Strict):
    """Tokens a second over the cache, and how many times as many as the first row; None where that one has none.

    Attributes:
        times_stderr: standard error of `times`, as of `Prefill`.
    """

    tokens_per_second: float
    times: float | None
    times_stderr: float | None = None


class SpeedRow(Named):
    """One model: medians over the rounds.

    Attributes:
        target: what it runs on.
        bytes: of its files.
        load_seconds, resident_bytes: what loading it in a process of its own took; None where `quantize` timed it,
            which leaves that out.
        prefill: by length of the prompt.
        decode: None without a KV cache.
    """

    target: str
    bytes: int
    load_seconds: float | None = None
    resident_bytes: int | None = None
    prefill: dict[str, Prefill]
    decode: Decode | None


class Speed(Strict):
    """What was timed in turns.

    Attributes:
        threads: of every session; rounds: how often each was timed, at least; past: tokens in the cache while decoding.
        processor, environment: where, and in which versions.
        rows: the first is what all ratios refer to.
    """

    threads: int
    rounds: int
    past: int
    processor: str
    environment: dict[str, str]
    rows: list[SpeedRow]

    def to_dict(self) -> dict[str, Any]:
        """What `bench --json` prints."""
        return self.model_dump(mode="json")

    @property
    def loaded(self) -> bool:
        """Whether it is known of each what loading it takes."""
        return all(row.load_seconds is not None and row.resident_bytes is not None for row in self.rows)

    @property
    def conditions(self) -> str:
        """How it was measured, in words."""
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return (
            f"{threads}, {self.processor}; medians of {self.rounds} rounds in turns, ratios to the first row; "
            f"decoding behind {self.past} tokens"
        )

    def charts(self) -> Iterator[tuple[str, list[tuple[SpeedRow, float, str]]]]:
        """For each measurement its name, and the rows with how many times faster they are and what was measured."""
        for length in self.rows[0].prefill:
            timed = [(row, row.prefill[length]) for row in self.rows]
            yield f"prefill {length}", [(row, one.times, f"{1e3 * one.seconds:.1f} ms") for row, one in timed]
        decoded = [(row, row.decode) for row in self.rows if row.decode is not None]
        shown = [(r, d.times, f"{d.tokens_per_second:.1f} tokens/s") for r, d in decoded if d.times is not None]
        if shown:
            yield "decode", shown

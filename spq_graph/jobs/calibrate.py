"""Ranges of a model, measured or merged."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from spq_graph.decisions.enough import too_few
from spq_graph.documents import artifact
from spq_graph.documents.checkpoint import Checkpoint
from spq_graph.documents.interrupts import completed, held
from spq_graph.documents.ranges import Ranges, json_file, merge_all
from spq_graph.terms.errors import UsageError
from spq_graph.workbench.data import calibration_data, check_measured
from spq_graph.workbench.opening import Openable, Opening
from spq_graph.workbench.steps import Steps


def calibrate(
    model: Openable,
    out: str | Path,
    *,
    calibration: str | Path | None = None,
    tokens: int | None = None,
    seed: int = 0,
    chat: bool = True,
    shard: str | None = None,
    steps: Steps | None = None,
) -> Ranges:
    """Measure the ranges of every site's input, and write them to `out`.

    An interrupted run leaves what it measured beside `out`, and the next one on the same data goes on from there.

    Args:
        model: what to measure.
        out: the file to write, JSON with arrays beside it.
        calibration: text, JSON, JSON lines, or .npz of input_ids; None for text sampled from the model itself.
        tokens: how much of it; None for the default of a recipe, or for as much sampled text as settles ranges.
        seed: of the sampling.
        chat: whether conversations are sampled where the model has a chat template.
        shard: I/N for the I-th of N shards of the sequences, from 0, to be merged by `merge`.
        steps: times and shows what is done.

    Raises:
        SpqError: as `quantize`.
    """
    opening, out = Opening.of(model), json_file(Path(out))
    check_measured(opening.resolve(), calibration)
    given = (*opening.inputs, calibration)
    inputs = tuple(path for place in given if place is not None and (path := Path(place)).is_file())
    artifact.check_file(out, inputs, arrays=True)
    part = _shard(shard) if shard is not None else None
    with opening.open(steps) as bench:
        sequences = calibration_data(bench, calibration, tokens, seed, chat=chat)
        if part is not None:
            sequences = sequences.shard(*part)
        checkpoint = Checkpoint(out)
        ranges = bench.calibrate(sequences, checkpoint)
    if part is not None:
        ranges.remark = None  # of all shards together there may be enough
    with held():
        ranges.save(out)
        completed(f"{out} is complete")
    checkpoint.clear()
    return ranges


def _shard(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise UsageError(f"'{text}' is not I/N with I below N", where="--shard", remedy="for example --shard 0/4")
    return int(index), int(count)


def merge(parts: Iterable[Ranges | str | Path], out: str | Path) -> Ranges:
    """Merge ranges of one model that were measured apart, or their files, and write them to `out`.

    Raises:
        DataError: there are none, they cannot be read, or they are of different models.
        SpqError: `out` must not be written.
    """
    out = json_file(Path(out))
    artifact.check_file(out, arrays=True)
    ranges = merge_all(map(Ranges.of, parts))
    ranges.remark = too_few(ranges.tokens)
    with held():
        ranges.save(out)
        completed(f"{out} is complete")
    return ranges

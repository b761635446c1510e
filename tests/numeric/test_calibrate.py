"""Ranges against activations that were fetched and reduced in numpy; shards, padding, and what is not finite."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest

pytest.importorskip("onnxruntime")

from spq_graph.documents.ranges import Ranges, merge_all
from spq_graph.documents.value_range import ValueRange
from spq_graph.models.source import resolve
from spq_graph.passes.adapt.prepared import prepared
from spq_graph.passes.find.quantized import identify_floating
from spq_graph.runtime.measures.calibrate import batches_without_padding
from spq_graph.runtime.sessions.session import Runner
from spq_graph.runtime.text.sequences import Sequences
from spq_graph.terms.errors import ActivationError
from spq_graph.workbench.looked import Looked
from spq_graph.workbench.steps import Steps
from spq_graph.workbench.workbench import Workbench
from tests.support.decoders import BOS, random_ids, write_decoder

SPIKE = 700.0


def opened(path: Path, work: Path) -> Workbench:
    """A workbench that outlives its block, whose files lie in a folder of the test."""
    source, found = resolve(str(path)), prepared(path)
    return Workbench(source, work, Steps(), path, looked=Looked(found, identify_floating(found.graph)))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    folder = tmp_path_factory.mktemp("bench")
    return opened(write_decoder(folder / "decoder.onnx", spikes={1: SPIKE}), folder)


@pytest.fixture(scope="module")
def ragged() -> Sequences:
    """Rows of every length, padded on the right with ids that are not harmless: they would move every range."""
    ids = random_ids(48, 32)
    lengths = np.random.default_rng(1).integers(2, 33, len(ids))
    lengths[0] = 32
    mask = (np.arange(32) < lengths[:, None]).astype(np.int64)
    return Sequences(np.where(mask == 1, ids, BOS), mask)


def fetched(bench: Workbench, ids: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[np.float32]]:
    """Every site's input, [length, K], for one row, from a graph that gives them out."""
    names = list(dict.fromkeys(site.input for site in bench.found.sites))
    model = onnx.load(bench.model)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    path = bench.work / "fetching.onnx"
    onnx.save(model, path)
    arrays = Runner(path, outputs=names).run(ids[None], np.ones_like(ids)[None])
    return {name: array[0] for name, array in zip(names, arrays, strict=True)}


def test_against_activations_that_were_fetched(bench: Workbench, ragged: Sequences) -> None:
    found = bench.calibrate(ragged)
    expected = Ranges(bench.digest)
    for row, mask in zip(ragged.ids, ragged.mask, strict=True):
        ids = row[mask == 1]
        ones = np.ones_like(ids)[None]
        for name, value in fetched(bench, ids).items():
            low, high = value.min(axis=-1)[None], value.max(axis=-1)[None]
            expected.add(name, ValueRange.observe(low, high, (value.min(axis=0), value.max(axis=0)), ids[None], ones))
        expected.count(ids[None], ones)
    assert list(found.values) == list(expected.values)
    assert (found.tokens, found.sequences, found.data) == (expected.tokens, expected.sequences, expected.data)
    for name, seen in found.values.items():
        other = expected.values[name]
        assert (seen.tokens, seen.sequences) == (other.tokens, other.sequences)
        assert (seen.peak.token, seen.peak.position) == (other.peak.token, other.peak.position)
        numbers = [[v.low, v.high, v.peak.value, v.sequence_ratio] for v in (seen, other)]
        np.testing.assert_allclose(*numbers, rtol=1e-4)
        assert seen.median == pytest.approx(other.median, rel=1 / 32)  # one bin, where a value sits on its edge
        np.testing.assert_allclose(seen.channel_low, other.channel_low, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(seen.channel_high, other.channel_high, rtol=1e-4, atol=1e-6)


def test_a_planted_spike_is_found_where_it_is(bench: Workbench, ragged: Sequences) -> None:
    ranges = bench.calibrate(ragged)
    ratios = {site.key: ranges.values[site.input].ratio for site in bench.found.sites}
    spiking = ranges.values[next(s.input for s in bench.found.sites if s.key == "layers.1.mlp.down_proj")]
    assert max(ratios, key=lambda key: ratios[key]) == "layers.1.mlp.down_proj"
    assert spiking.peak.value == pytest.approx(SPIKE, rel=0.2)  # the other channels shift it a little
    assert (spiking.peak.token, spiking.peak.position) == (BOS, 0)
    assert ratios["layers.1.mlp.down_proj"] > 10 * sorted(ratios.values())[-2]


@pytest.mark.parametrize("count", [2, 3, 7])
def test_shards_merge_to_the_bytes_of_one_run(bench: Workbench, ragged: Sequences, tmp_path: Path, count: int) -> None:
    def saved(ranges: Ranges, name: str) -> tuple[bytes, bytes]:
        path = tmp_path / f"{name}.json"
        ranges.save(path)
        return path.read_bytes(), path.with_suffix(".safetensors").read_bytes()

    shards = [bench.calibrate(ragged.shard(index, count)) for index in range(count)]
    whole = saved(bench.calibrate(ragged), "whole")
    assert saved(merge_all(shards), "merged") == whole
    assert saved(merge_all(shards[::-1]), "reversed") == whole


def test_padding_on_the_left_changes_nothing(bench: Workbench) -> None:
    ids = random_ids(1, 12)
    bare = bench.calibrate(Sequences(ids, np.ones_like(ids)))
    led = np.concatenate([np.full((1, 5), BOS), ids], axis=1)
    mask = (np.arange(17) >= 5).astype(np.int64)[None]
    padded = bench.calibrate(Sequences(led, mask))
    assert padded.data == bare.data
    for name, seen in padded.values.items():
        assert seen.tokens == 12
        np.testing.assert_allclose([seen.low, seen.high], [bare.values[name].low, bare.values[name].high], rtol=1e-5)


@contextmanager
def broken(folder: Path, layer: int) -> Iterator[Workbench]:
    yield opened(write_decoder(folder / "broken.onnx", broken_layer=layer), folder)


@pytest.mark.parametrize("layer", [0, 2])
def test_what_is_not_finite_is_named_by_its_site(tmp_path: Path, layer: int) -> None:
    ids = random_ids(4, 16)
    with broken(tmp_path, layer) as bench, pytest.raises(ActivationError, match="NaN or infinite") as caught:
        bench.calibrate(Sequences(ids, np.ones_like(ids)))
    assert f"layers.{layer}.mlp.down_proj" in caught.value.where


@pytest.mark.parametrize(("size", "columns", "rows"), [(None, None, 64), (None, 48, 5), (3, 48, 3), (None, 4000, 1)])
def test_batches_hold_as_many_tokens_as_the_graph_makes_of_them(
    size: int | None, columns: int | None, rows: int
) -> None:
    ids = random_ids(70, 4)
    batches = list(batches_without_padding(Sequences(ids, np.ones_like(ids)), size, columns))
    assert {len(batch) for batch in batches[:-1]} == {rows}
    np.testing.assert_array_equal(np.concatenate(batches), ids)


@pytest.mark.parametrize(("batch", "length"), [(1, 32), (5, 32), (2, 40)])
def test_a_graph_of_fixed_shape(bench: Workbench, tmp_path: Path, batch: int, length: int) -> None:
    """The same weights with fixed dimensions; the rows fill neither the last batch nor, at 40, the length."""
    fixed = opened(write_decoder(tmp_path / "fixed.onnx", spikes={1: SPIKE}, fixed=(batch, length)), tmp_path)
    ids = random_ids(7, 32)
    sequences = Sequences(ids, np.ones_like(ids))
    found, free = fixed.calibrate(sequences), bench.calibrate(sequences)
    assert (found.tokens, found.sequences, found.data) == (free.tokens, free.sequences, free.data)
    for name, seen in found.values.items():
        np.testing.assert_allclose([seen.low, seen.high], [free.values[name].low, free.values[name].high], rtol=1e-4)
        assert seen.tokens == 7 * 32

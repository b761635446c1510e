"""What they say of token maxima, and that shards merge to the same bytes in any order."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spq_graph.documents.ranges import Ranges, merge_all
from spq_graph.documents.token_profile import Peak, bin_middle, bins_of
from spq_graph.documents.value_range import ValueRange
from spq_graph.terms.errors import DataError

Floats = npt.NDArray[np.float32]
LENGTH, CHANNELS = 7, 5


def observe(values: Floats, ids: npt.NDArray[np.int64], mask: npt.NDArray[np.int64]) -> ValueRange:
    """What calibration sees of an activation [batch, length, K]."""
    counted = values[mask.astype(bool)]
    by_channel = counted.min(axis=0), counted.max(axis=0)
    return ValueRange.observe(values.min(axis=-1), values.max(axis=-1), by_channel, ids, mask)


def ranges_of(rows: npt.NDArray[np.int64], seed: int) -> Ranges:
    """Ranges of two values over some rows of one activation, each a function of seed and row alone."""
    ranges = Ranges("sha256:model")
    for row in rows:
        generator = np.random.default_rng([seed, int(row)])
        ids = generator.integers(0, 9, (1, LENGTH))
        mask = (np.arange(LENGTH) < generator.integers(1, LENGTH + 1)).astype(np.int64)[None]
        for name, scale in (("first", 1.0), ("second", 1e4)):
            values = (scale * generator.standard_t(2, (1, LENGTH, CHANNELS))).astype(np.float32)
            ranges.add(name, observe(values, ids, mask))
        ranges.count(ids, mask)
    return ranges


def saved(ranges: Ranges, folder: Path) -> tuple[bytes, bytes]:
    folder.mkdir(exist_ok=True)
    ranges.save(folder / "ranges.json")
    return (folder / "ranges.json").read_bytes(), (folder / "ranges.safetensors").read_bytes()


@settings(max_examples=20)
@given(
    seed=st.integers(0, 1000),
    parts=st.lists(st.integers(0, 2), min_size=3, max_size=9),
    order=st.permutations([0, 1, 2]),
)
def test_merging_is_associative_and_commutes_to_the_byte(
    tmp_path_factory: pytest.TempPathFactory, seed: int, parts: list[int], order: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("ranges")
    rows = np.arange(len(parts))
    whole = saved(ranges_of(rows, seed), folder / "whole")
    shards = []
    for part in order:
        shard = ranges_of(rows[np.array(parts) == part], seed)
        saved(shard, folder / f"shard{part}")
        shards.append(Ranges.load(folder / f"shard{part}" / "ranges.json"))
    assert saved(merge_all(shards), folder / "left") == whole
    right = merge_all([shards[1], shards[2]])
    assert saved(merge_all([shards[0], right]), folder / "right") == whole


def test_save_and_load_keep_every_byte(tmp_path: Path) -> None:
    first = saved(ranges_of(np.arange(5), 3), tmp_path / "a")
    assert saved(Ranges.load(tmp_path / "a" / "ranges.json"), tmp_path / "b") == first


@settings(max_examples=100)
@given(maxima=st.lists(st.floats(2.0**-120, 2.0**120, width=32), min_size=1, max_size=60), share=st.floats(0, 1))
def test_quantile_is_within_one_in_128(maxima: list[float], share: float) -> None:
    values = np.array(maxima, dtype=np.float32).reshape(1, -1, 1)
    shape = values.shape[:2]
    seen = observe(values, np.zeros(shape, np.int64), np.ones(shape, np.int64))
    true = float(np.sort(values.ravel())[int(share * (values.size - 1))])
    assert abs(seen.quantile(share) / true - 1) <= 1 / 128


@given(value=st.floats(0, 2.0**120, width=32))
def test_a_bin_holds_its_value(value: float) -> None:
    (code,) = bins_of(np.array([value], dtype=np.float32)).tolist()
    assert abs(bin_middle(code) - value) <= value / 128 + 2.0**-120
    assert bin_middle(0) == 0.0


def test_statistics_of_a_spike() -> None:
    values = np.ones((4, 9, 3), dtype=np.float32)
    values[:, 0, 1] = -200.0
    values[2, 0, 1] = -800.0
    ids = np.arange(36, dtype=np.int64).reshape(4, 9)
    seen = observe(values, ids, np.ones_like(ids))
    assert (seen.low, seen.high, seen.tokens, seen.sequences) == (-800.0, 1.0, 36, 4)
    assert (seen.peak.value, seen.peak.token, seen.peak.position) == (800.0, 18, 0)
    assert seen.ratio == pytest.approx(800, rel=1 / 128)
    assert seen.sequence_ratio == pytest.approx((200 * 3 + 800) / 4)
    assert seen.channels.tolist() == [1.0, 800.0, 1.0]
    assert (seen.channel_low.tolist(), seen.channel_high.tolist()) == ([1.0, -800.0, 1.0], [1.0, 1.0, 1.0])


def test_padding_is_not_seen() -> None:
    values = np.ones((2, 4, 3), dtype=np.float32)
    values[0, 3], values[1, 0] = 50.0, -70.0
    mask = np.array([[1, 1, 1, 0], [0, 1, 1, 1]])
    seen = observe(values, np.zeros((2, 4), np.int64), mask)
    assert (seen.low, seen.high, seen.peak.value, seen.tokens) == (1.0, 1.0, 1.0, 6)
    assert sum(seen.histogram.values()) == 6


def test_nothing_but_padding_is_refused() -> None:
    one = np.ones((1, 2), np.float32)
    with pytest.raises(DataError, match="nothing but padding"):
        ValueRange.observe(one, one, (one, one), *(np.zeros((1, 2), np.int64),) * 2)


@pytest.mark.parametrize("swap", [False, True])
def test_ties_of_the_peak_go_to_the_earliest_position_then_the_smallest_token(swap: bool) -> None:
    first, second = Peak(5.0, token=9, position=0), Peak(5.0, token=2, position=3)
    third = Peak(5.0, token=4, position=0)
    order = [first, second, third][:: -1 if swap else 1]
    assert max(order, key=Peak.rank) == third
    values = np.full((2, 3, 1), 5.0, dtype=np.float32)
    seen = observe(values, np.array([[8, 1, 1], [6, 1, 1]]), np.ones((2, 3), np.int64))
    assert (seen.peak.token, seen.peak.position) == (6, 0)


def test_ratios_of_zeros() -> None:
    zeros = observe(np.zeros((1, 4, 2), np.float32), np.zeros((1, 4), np.int64), np.ones((1, 4), np.int64))
    assert (zeros.ratio, zeros.sequence_ratio) == (1.0, 1.0)
    alone = np.zeros((1, 4, 2), np.float32)
    alone[0, 0, 0] = 3.0
    spiking = observe(alone, np.zeros((1, 4), np.int64), np.ones((1, 4), np.int64))
    assert np.isfinite(spiking.ratio)
    assert spiking.ratio > 1e30


def test_a_sequence_counts_the_same_alone_and_beside_padding() -> None:
    values = np.random.default_rng(0).standard_t(2, (3, 8, 2)).astype(np.float32)
    ids, ones = np.zeros((3, 8), np.int64), np.ones((3, 8), np.int64)
    whole = observe(values, ids, ones)
    partly = observe(
        np.pad(values, ((0, 1), (0, 1), (0, 0))), np.pad(ids, ((0, 1), (0, 1))), np.pad(ones, ((0, 1), (0, 1)))
    )
    assert (whole.ratio_sum, whole.sequences, whole.histogram) == (partly.ratio_sum, partly.sequences, partly.histogram)


def test_rows_that_stand_for_no_tokens_have_neither_sequences_nor_a_place() -> None:
    """An expert gets all tokens of one sequence, three of another one, none of a third: one way of telling it."""
    values = np.random.default_rng(0).standard_t(2, (4, 8, 2)).astype(np.float32)
    ids, ones = np.ones((4, 8), np.int64), np.ones((4, 8), np.int64)
    ranges = Ranges("sha256:model")
    ranges.add("all", observe(values, ids, ones))
    ranges.add("expert", observe(values[:1], ids[:1], ones[:1]))
    low, high = values[1:2, :3].min(axis=-1), values[1:2, :3].max(axis=-1)
    by_channel = values[1, :3].min(axis=0), values[1, :3].max(axis=0)
    ranges.add("expert", ValueRange.observe(low, high, by_channel, None, ones[:1, :3]))
    ranges.count(ids, ones)
    ranges.settle()
    expert, everything = ranges.values["expert"], ranges.values["all"]
    assert (expert.sequences, expert.ratio_sum, expert.tokens) == (0, 0, 11)
    assert (expert.peak.token, expert.peak.position) == (-1, -1)
    assert expert.peak.value == max(np.abs(values[0]).max(), np.abs(values[1, :3]).max())
    assert expert.sequence_ratio == expert.ratio
    assert (everything.sequences, everything.peak.token) == (4, 1)


def test_digest_counts_sequences_with_multiplicity() -> None:
    ids = np.array([[1, 2, 3], [4, 5, 6]])
    ones = np.ones_like(ids)

    def digest(*batches: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]) -> str:
        ranges = Ranges("m")
        for rows, mask in batches:
            ranges.count(rows, mask)
        return ranges.data_digest

    assert digest((ids, ones)) == digest((ids[1:], ones[1:]), (ids[:1], ones[:1]))
    assert digest((ids, ones)) != digest((ids, ones), (ids, ones))
    padded = np.array([[1, 2, 3, 0]])
    assert digest((padded, np.array([[1, 1, 1, 0]]))) == digest((ids[:1], ones[:1]))


def test_shards_of_other_models_are_refused() -> None:
    with pytest.raises(DataError, match="different models"):
        merge_all([Ranges("sha256:a"), Ranges("sha256:b")])
    with pytest.raises(DataError, match="no ranges"):
        merge_all([])


@pytest.mark.parametrize("damage", ["missing", "broken", "schema", "arrays", "key"])
def test_unreadable_ranges_are_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "ranges.json"
    saved(ranges_of(np.arange(2), 0), tmp_path)
    head = json.loads(path.read_text())
    if damage == "missing":
        path.unlink()
    elif damage == "broken":
        path.write_text(path.read_text()[:-40])
    elif damage == "schema":
        path.write_text(json.dumps(head | {"schema": "spq-graph/ranges/99"}))
    elif damage == "arrays":
        (tmp_path / "ranges.safetensors").write_bytes(b"\x00" * 9)
    else:
        del head["values"]["first"]["tokens"]
        path.write_text(json.dumps(head))
    with pytest.raises(DataError) as caught:
        Ranges.load(path)
    assert str(path) in str(caught.value)


def test_a_profile_tells_where_and_on_which_token() -> None:
    values = np.ones((2, 40, 3), dtype=np.float32)
    values[:, 0] = 500.0
    values[1, 0, 2] = -700.0
    values[0, 9] = 16.0
    values[1, 35] = 40.0
    ids = np.tile(np.arange(100, 140), (2, 1))
    ids[:, 0], ids[1, 35] = 1, 7
    profile = observe(values, ids, np.ones_like(ids)).profile
    assert profile is not None
    at = {s.first: s for s in profile.stretches()}
    assert [(s.first, s.last) for s in profile.stretches()][7:11] == [(7, 7), (8, 9), (10, 11), (12, 13)]
    assert profile.stretches()[-1].last == 39
    assert (at[0].peak.value, at[0].peak.token, at[0].peak.position, at[0].tokens) == (700.0, 1, 0, 2)
    assert at[0].typical == pytest.approx((500 * 700) ** 0.5, rel=0.01)
    assert (at[8].peak.value, at[8].peak.token, at[8].peak.position) == (16.0, 109, 9)
    assert at[8].typical == pytest.approx(16 ** (1 / 4), rel=0.05)
    assert (at[32].peak.value, at[32].peak.token, at[32].peak.position, at[32].tokens) == (40.0, 7, 35, 16)
    assert at[1].typical == pytest.approx(1.0, rel=0.01)
    assert [(p.token, p.value, p.position) for p in profile.leaders[:4]] == [
        (1, 700.0, 0),
        (7, 40.0, 35),
        (109, 16.0, 9),
        (101, 1.0, 1),
    ]
    assert len({p.token for p in profile.leaders}) == 8


@settings(max_examples=40)
@given(seed=st.integers(0, 10_000), length=st.integers(1, 70), few=st.booleans())
def test_a_profile_is_what_its_definition_says(seed: int, length: int, few: bool) -> None:
    generator = np.random.default_rng(seed)
    rows = int(generator.integers(1, 5))
    ids = generator.integers(0, 5 if few else 500, (rows, length))
    mask = (generator.random((rows, length)) < 0.7).astype(np.int64)
    mask[0, 0] = 1
    # Few distinct values: ties are what a total order is for.
    values = generator.integers(1, 6, (rows, length, 2)).astype(np.float32)
    profile = observe(values, ids, mask).profile
    assert profile is not None
    seen = [
        Peak(float(values[r, c].max()), int(ids[r, c]), c) for r in range(rows) for c in range(length) if mask[r, c]
    ]
    for stretch in profile.stretches():
        inside = [p for p in seen if stretch.first <= p.position <= stretch.last]
        assert stretch.peak == max(inside, key=Peak.rank)
        assert stretch.tokens == len(inside)
        true = float(np.exp(np.mean(np.log([p.value for p in inside]))))
        assert stretch.typical == pytest.approx(true, rel=0.08)
    assert sum(stretch.tokens for stretch in profile.stretches()) == len(seen)
    best: dict[int, Peak] = {}
    for peak in sorted(seen, key=Peak.rank, reverse=True):
        best.setdefault(peak.token, peak)
    assert list(profile.leaders) == list(best.values())[:8]


def test_ranges_without_profiles_still_load_and_merge(tmp_path: Path) -> None:
    new = ranges_of(np.arange(3), 0)
    saved(new, tmp_path / "new")
    old = ranges_of(np.arange(3, 5), 0)
    for seen in old.values.values():
        seen.profile = None  # as an earlier version wrote it
    saved(old, tmp_path / "old")
    loaded = Ranges.load(tmp_path / "old" / "ranges.json")
    assert {seen.profile for seen in loaded.values.values()} == {None}
    one, other = saved(merge_all([new, loaded]), tmp_path / "a"), saved(merge_all([loaded, new]), tmp_path / "b")
    assert one == other
    assert {seen.profile for seen in Ranges.load(tmp_path / "a" / "ranges.json").values.values()} == {None}


def test_tokens_without_a_place_have_no_profile() -> None:
    """What is routed to an expert comes as rows, whose tokens and positions are not known."""
    values = np.ones((1, 4, 2), np.float32)
    assert observe(values, None, np.ones((1, 4), np.int64)).profile is None

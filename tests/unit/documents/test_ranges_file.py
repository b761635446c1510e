"""Ranges that say what cannot be are refused, by key and value; what was damaged on the disk is told by its digest."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file, save_file

from spq_graph.documents.leftovers import part_of
from spq_graph.documents.ranges import Ranges
from spq_graph.terms.errors import DataError
from spq_graph.terms.site import Role, Site
from tests.unit.documents.test_ranges import ranges_of

Head = dict[str, Any]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    ranges_of(np.arange(3), 0).save(tmp_path / "ranges.json")
    return tmp_path / "ranges.json"


def edit(path: Path, change: Callable[[Head], object]) -> None:
    head = json.loads(path.read_text())
    change(head)
    path.write_text(json.dumps(head))


def edit_arrays(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Arrays that an earlier version wrote: nothing in the head tells that they are others."""
    arrays = load_file(path.with_suffix(".safetensors"))
    change(arrays)
    save_file(arrays, path.with_suffix(".safetensors"))
    edit(path, lambda head: head.pop("arrays"))


def refused(path: Path, says: str) -> None:
    with pytest.raises(DataError, match=rf"(?s)cannot be read.*{says}") as caught:
        Ranges.load(path)
    assert caught.value.where == str(path)
    assert "spq-graph calibrate" in caught.value.remedy


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("min", float("nan"), "nan is no number"),
        ("max", float("inf"), r"values\.first\.max: inf is no number"),
        ("min", 1e30, r"values\.first\.min: 1e\+30 is above max"),
        ("max", 1e30, r"values\.first\.token_max: .* is not the larger end"),
        ("token_max", -1.0, r"values\.first\.token_max: -1.0 is not from 0"),
        ("max", 1e39, r"values\.first\.max: 1e\+39 is not from -3.4"),
        ("token_max", "3", r"values\.first\.token_max: '3' is no number"),
        ("tokens", -4, r"values\.first\.tokens: -4 is not from 0"),
        ("tokens", 1, r"values\.first\.counts: they are not those of 1 tokens"),
        ("tokens", 2.5, r"values\.first\.tokens: 2.5 is no whole number"),
        ("sequences", 99, r"values\.first\.sequences: 99 are more than the 3"),
        ("token", -2, r"values\.first\.token: -2 is not from -1"),
        ("position", True, r"values\.first\.position: True is no whole number"),
        ("ratio_sum", -1, r"values\.first\.ratio_sum: -1 is not at least 0"),
        ("median", -1.0, r"values\.first\.median: -1.0 is not at least 0"),
    ],
)
def test_facts(path: Path, key: str, value: Any, says: str) -> None:
    edit(path, lambda head: head["values"]["first"].update({key: value}))
    refused(path, says)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda head: head.update(tokens=-1), r"tokens: -1 is not from 0"),
        (lambda head: head.update(sequences="3"), r"sequences: '3' is no whole number"),
        (lambda head: head.update(data="md5:1"), r"data: 'md5:1' is no digest"),
        (lambda head: head.update(model=None), "model: the digest of the model is missing"),
        (lambda head: head.update(values=[]), "values: not an object"),
        (lambda head: head["values"].update(first=[]), r"values\.first: not an object"),
        (lambda head: head["values"].update(third=head["values"]["first"]), "third/bins is missing"),
    ],
)
def test_heads(path: Path, change: Callable[[Head], object], says: str) -> None:
    edit(path, change)
    refused(path, says)


def test_a_key_that_stands_twice(path: Path) -> None:
    text = path.read_text()
    path.write_text(text.replace('"second":', '"first":'))
    refused(path, "the key 'first' stands twice")


@pytest.mark.parametrize(
    ("part", "array", "says"),
    [
        ("counts", lambda a: -a, "counts: they are not those of"),
        ("bins", lambda a: a[::-1].copy(), "bins: they are not numbers from 0 to 16319 in their order"),
        ("bins", lambda a: a + 20_000, "bins: they are not numbers"),
        ("channel_low", lambda a: np.full_like(a, np.nan), "channels: .* not finite"),
        ("channel_high", lambda a: a[:-1].copy(), "channels: .* missing"),
        ("channel_high", lambda a: -np.abs(a) - 1e6, "channel_low: .* above its largest"),
        ("channel_low", lambda a: a.astype(np.float64), r"first/channel_low is F64 \[5\], not as ranges have it"),
        ("counts", lambda a: np.zeros((1 << 15,), np.int64), r"first/counts is I64 \[32768\]"),
        ("profile", np.zeros_like, "profile: its buckets do not hold"),
        ("profile", lambda a: a[:, :3].copy(), r"first/profile is I64"),
        ("profile_max", lambda a: np.full_like(a, np.inf), "profile_max: "),
        ("leaders_max", lambda a: np.full_like(a, np.nan), "leaders: "),
    ],
)
def test_arrays(path: Path, part: str, array: Callable[[Any], Any], says: str) -> None:
    edit_arrays(path, lambda arrays: arrays.update({f"first/{part}": array(arrays[f"first/{part}"])}))
    refused(path, says)


def first_edition(path: Path, largest: npt.NDArray[np.float32]) -> None:
    """Rewrite the arrays as the first edition did: one largest absolute value by channel."""

    def rewrite(arrays: dict[str, Any]) -> None:
        del arrays["first/channel_low"], arrays["first/channel_high"]
        arrays["first/channels"] = largest

    edit_arrays(path, rewrite)


def test_what_the_first_edition_wrote_by_channel_is_taken_as_bounds(path: Path) -> None:
    measured = Ranges.load(path).values["first"]
    first_edition(path, measured.channels)
    read = Ranges.load(path).values["first"]
    assert np.array_equal(read.channels, measured.channels)
    assert np.array_equal(read.channel_low, -measured.channels)


def test_what_the_first_edition_cannot_have_written_is_refused(path: Path) -> None:
    first_edition(path, -np.ones(5, np.float32))
    refused(path, "channels: a channel's largest absolute value is negative")


@pytest.mark.parametrize("place", [-1, -40, -200])
def test_a_byte_that_flipped(path: Path, place: int) -> None:
    file = path.with_suffix(".safetensors")
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)
    refused(path, "it is not the file that was written with this one, or was damaged since")


def test_arrays_of_another_run(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    ranges_of(np.arange(4), 1).save(other)
    other.with_suffix(".safetensors").replace(path.with_suffix(".safetensors"))
    refused(path, "it is not the file that was written with this one")


def test_a_file_that_says_it_is_huge(path: Path) -> None:
    """Its size is looked at before it is read; sparse, it takes no place."""
    with path.open("r+b") as stream:
        stream.truncate(1 << 33)
    refused(path, "8,589,934,592 bytes are more than ranges take")


def test_what_an_earlier_version_wrote_is_read_and_known_as_such(path: Path) -> None:
    assert Ranges.load(path).sealed
    edit_arrays(path, lambda arrays: None)
    found = Ranges.load(path)
    assert not found.sealed
    found.save(path)
    assert found.sealed
    assert Ranges.load(path).sealed


def test_a_site_of_which_they_say_nothing_is_named() -> None:
    def site(key: str, value: str, expert: int | None = None) -> Site:
        return Site(key=key, node=key, role=Role.OTHER, layer=None, expert=expert, shape=(5, 5), input=value)

    ranges = ranges_of(np.arange(2), 0)
    known = [site("a", "first"), site("b", "second"), site("c", "unrouted", expert=3)]
    ranges.refuse_lacking(known, "ranges.json")
    lacking = [*known, site("d", "third"), site("e", "fourth")]
    with pytest.raises(DataError, match=r"say nothing of d \(value 'third'\), nor of 1 more sites") as caught:
        ranges.refuse_lacking(lacking, "ranges.json")
    assert caught.value.where == "ranges.json"


def test_a_run_that_was_killed_between_the_two_files_is_ended_by_who_reads_them(path: Path) -> None:
    before = Ranges.load(path)
    ranges_of(np.arange(5), 2).save(path)
    arrays = path.with_suffix(".safetensors")
    new = arrays.read_bytes()
    before.save(path.with_name("before.json"))
    ranges_of(np.arange(5), 2).save(path)
    arrays.replace(part_of(arrays, "0123456789abcdef"))
    path.with_name("before.safetensors").replace(arrays)
    assert Ranges.load(path).sequences == 5
    assert arrays.read_bytes() == new
    assert not list(path.parent.glob(".ranges*"))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 7,
        (1 << 62).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"{}",
        (100).to_bytes(8, "little") + b'{"first/bins":{"dtype":"I32","shape":[9999999999],"data_offsets":[0,4]}}',
    ],
)
def test_arrays_that_are_no_safetensors(path: Path, content: bytes) -> None:
    edit(path, lambda head: head.pop("arrays"))
    path.with_suffix(".safetensors").write_bytes(content)
    refused(path, "")


def test_arrays_that_are_cut(path: Path) -> None:
    edit(path, lambda head: head.pop("arrays"))
    file = path.with_suffix(".safetensors")
    file.write_bytes(file.read_bytes()[:-9])
    refused(path, "SafetensorError")


def test_arrays_that_are_not_asked_for_are_not_read(path: Path) -> None:
    """The header says how large each is; what belongs to no value stays where it lies."""
    edit_arrays(path, lambda arrays: arrays.update({"stranger": np.zeros(1 << 20, np.float32)}))
    assert set(Ranges.load(path).values) == {"first", "second"}

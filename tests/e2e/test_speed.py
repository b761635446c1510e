"""What `quantize` says of speed by itself: beside the source, short, and nothing lost where it cannot be timed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnxruntime")

from spq_graph import SpqError, quantize
from spq_graph.documents.plan import Plan
from spq_graph.documents.recipe import Recipe
from spq_graph.runtime.measures import timing
from spq_graph.workbench import glance
from spq_graph.workbench.data import Data
from spq_graph.workbench.steps import Steps
from tests.support.command import Case, done
from tests.support.decoders import write_decoder, write_ids

BY_RATIO = Recipe(spike_ratio=1e6)


def quantized(model: Path, out: Path, **more: Any) -> tuple[dict[str, Any], list[str]]:
    """The report of a decoder that was quantized by ratio, and what was remarked."""
    said: list[str] = []
    data = Data(calibration=str(write_ids(model.with_name("ids.npz"))))
    quantize(model, out, BY_RATIO, data=data, steps=Steps(remark=said.append), **more)
    return json.loads((out / "report.json").read_text()), said


@pytest.fixture
def cached(tmp_path: Path) -> Path:
    return write_decoder(tmp_path / "decoder.onnx", layers=1, cache=True, positions=True)


def test_it_is_timed_beside_its_source_and_weights_alone(case: Case) -> None:
    """A row within the limit of loss is timed as well: the recommendation decides between those."""
    report = case.result.json["report"]
    rows = {row["name"]: row for row in report["speed"]["rows"]}
    assert next(iter(rows)) == "fp32"
    assert list(rows)[-2:] == ["weight_only", "spike_aware"]
    loss = {r["name"]: r["perplexity"] for r in report["ladder"] if r["bits"] in (8, None)}
    everywhere = ("everywhere", "everywhere_w8a8_token", "everywhere_fp8_e4m3")
    within = {name for name in everywhere if loss[name] <= 1.01 * loss["fp32"]}
    assert set(rows) == {"fp32", "weight_only", "spike_aware"} | within
    length = str(min(glance.PROMPT, *map(int, rows["fp32"]["prefill"])))
    assert rows["fp32"]["prefill"][length]["times"] == 1
    for row in rows.values():
        assert row["prefill"][length]["seconds"] > 0
        assert row["load_seconds"] is None
    assert report["seconds"]["speed"] > 0


def test_people_are_told(cached: Path, tmp_path: Path) -> None:
    arguments = ["--calibration", write_ids(tmp_path / "ids.npz"), "--spike-ratio", 1e6]
    said = " ".join(done("quantize", cached, "-o", tmp_path / "out", *arguments).out.replace("│", " ").split())
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    own = report["speed"]["rows"][-1]
    assert own["name"] == "spike_aware"
    [(length, prefill)] = own["prefill"].items()
    sentence = (
        f"It is {prefill['times']:.2f} times as fast as FP32 on a prompt of {length} tokens, "
        f"and {own['decode']['times']:.2f} times in decoding."
    )
    assert sentence in said
    assert sentence in report["verdict"]["summary"]
    assert sentence in (tmp_path / "out" / "report.html").read_text()
    card = (tmp_path / "out" / "README.md").read_text()
    assert sentence in card
    assert f"| {own['decode']['tokens_per_second']:.1f} tokens/s | {own['decode']['times']:.2f}× |" in card


def test_not_where_that_was_left_out(cached: Path, tmp_path: Path) -> None:
    report, said = quantized(cached, tmp_path / "out", bench=False)
    assert report["speed"] is None
    assert "speed" not in report["seconds"]
    assert "## Speed" not in (tmp_path / "out" / "README.md").read_text()
    assert said == []


def test_the_artifact_is_the_same_either_way(cached: Path, tmp_path: Path) -> None:
    quantized(cached, tmp_path / "one")
    quantized(cached, tmp_path / "other", bench=False)
    for name in ("model.onnx", "plan.json", "ranges.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("SLOW", 0.0, "speed was not timed: a prompt of"),
        ("FILES", 1 << 60, "speed was not timed: sessions side by side take"),
        ("SOURCE_UP_TO", 0, "speed was not timed: a session of the source takes as much memory again"),
    ],
)
def test_what_would_take_too_much_is_not_timed_and_told(
    cached: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: float, why: str
) -> None:
    monkeypatch.setattr(glance, name, value)
    report, [said] = quantized(cached, tmp_path / "out")
    assert report["speed"] is None
    assert said.startswith(why)
    assert said.endswith("`spq-graph bench OUT --against SOURCE --report` times it")


def test_beside_a_large_source_no_rival_takes_memory(
    cached: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(glance, "RIVALS_UP_TO", cached.stat().st_size - 1)
    report, said = quantized(cached, tmp_path / "out")
    assert [row["name"] for row in report["speed"]["rows"]] == ["fp32", "spike_aware"]
    assert said == []


def test_a_failure_costs_the_figures_and_nothing_else(
    cached: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise SpqError("no clock")

    monkeypatch.setattr(timing, "in_turns", fail)
    report, said = quantized(cached, tmp_path / "out")
    assert report["speed"] is None
    assert said == ["speed was not timed: no clock"]
    assert Plan.load(tmp_path / "out" / "plan.json").sites


def test_a_graph_of_one_batch_and_length_is_timed_as_it_insists(tmp_path: Path) -> None:
    model = write_decoder(tmp_path / "decoder.onnx", layers=1, fixed=(2, 16))
    data = write_ids(tmp_path / "ids.npz", rows=4, length=16)
    quantize(model, tmp_path / "out", BY_RATIO, data=Data(calibration=str(data)))
    speed = json.loads((tmp_path / "out" / "report.json").read_text())["speed"]
    assert [list(row["prefill"]) for row in speed["rows"]] == [["16"]] * 3
    assert all(row["decode"] is None for row in speed["rows"])


def test_rounds_end_when_time_is_up_but_for_two(cached: Path) -> None:
    from spq_graph.runtime.sessions.session import Runner

    runners = {"one": Runner(cached, threads=1)}
    ticks: list[tuple[int, int]] = []
    few = timing.in_turns(runners, [8], 8, 5, lambda *told: ticks.append(told), within=0.0)
    assert {label: len(taken) for label, taken in few["one"].items()} == {"prefill 8": 2, "decode": 2}
    assert ticks[-1] == (12, 12)
    full = timing.in_turns(runners, [8], 8, 5, lambda *_: None)
    assert {label: len(taken) for label, taken in full["one"].items()} == {"prefill 8": 5, "decode": 5}


def test_what_it_takes_is_expected() -> None:
    prompt = glance.PROMPT * 1e-4 * glance.cores()
    short = glance.expected(1 << 20, None, 1e-4, 0.5)
    assert short == pytest.approx(0.5 + prompt + 6 * glance.ROUND * prompt)
    assert glance.expected(1 << 20, None, 0.0, 0.5) == 0.5  # a model that took less than a clock tells
    assert glance.expected(1 << 20, 1 << 10, 1e-4, 0.5) == 0  # what is not timed
    assert glance.expected(1 << 60, None, 1e-4, 0.5) == 0
    slow = 0.9 * glance.SLOW / glance.PROMPT / glance.cores()
    assert glance.expected(1 << 20, None, slow, 0.0) == pytest.approx((1 + 3 * glance.ROUND) * 0.9 * glance.SLOW)
    assert glance.expected(1 << 20, None, 2 * slow, 0.0) == 0

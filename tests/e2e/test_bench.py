"""`bench`: what it times, beside what, and in which numbers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnxruntime")

from spq_graph import Opening, SpqError, bench
from spq_graph.documents.report import Report
from spq_graph.workbench.timed import times_faster
from tests.support.command import done, spq
from tests.support.decoders import write_decoder, write_ids


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A decoder with a cache, and what `quantize` made of it."""
    folder = tmp_path_factory.mktemp("bench")
    model = write_decoder(folder / "decoder.onnx", layers=1, spikes={0: 1000.0}, cache=True, positions=True)
    calibration = write_ids(folder / "calibration.npz")
    keep = ["--keep", "*down_proj", "--spike-ratio", 1e6]
    done("quantize", model, "-o", folder / "out", "--calibration", calibration, "--no-eval", "--no-bench", *keep)
    return model, folder / "out"


def test_with_the_floating_point_model_all_ways_are_timed_in_turns(cached: tuple[Path, Path]) -> None:
    model, out = cached
    found: dict[str, Any] = done(
        "bench", out, "--against", model, "--target", "cpu", "--rounds", 2, "--length", 8, "--length", 16, "--json"
    ).json
    names = ["fp32", "everywhere", "everywhere_w8a8_token", "everywhere_fp8_e4m3", "weight_only", "spike_aware"]
    assert [row["name"] for row in found["rows"]] == names
    assert (found["threads"], found["rounds"], found["past"]) == (1, 2, 8)
    for row in found["rows"]:
        assert set(row["prefill"]) == {"8", "16"}
        assert row["prefill"]["16"]["seconds"] > 0
        assert row["decode"]["tokens_per_second"] > 0
        assert row["bytes"] > 0
        assert row["load_seconds"] > 0
    first = found["rows"][0]
    assert first["prefill"]["8"]["times"] == first["decode"]["times"] == 1


def test_alone_it_is_timed_alone_and_shown(cached: tuple[Path, Path]) -> None:
    shown = done("bench", cached[1] / "model.onnx", "--rounds", 1, "--length", 8).out
    assert "prefill 8" in shown
    assert "tokens/s" in shown
    assert "1 thread" in shown


def test_the_figures_stand_in_the_report_where_that_is_asked_for(cached: tuple[Path, Path], tmp_path: Path) -> None:
    model, made = cached
    out = tmp_path / "out"
    shutil.copytree(made, out)
    arguments = ["--against", model, "--target", "cpu", "--rounds", 1, "--length", 8, "--report", "--json"]
    found = done("bench", out, *arguments).json
    report = Report.load(out / "report.json")
    assert report.speed is not None
    assert report.speed.model_dump(mode="json") == found
    before = Report.load(made / "report.json")
    assert report.verdict.summary.startswith(before.verdict.summary)
    assert report.model_copy(update={"speed": None, "verdict": before.verdict}) == before
    page = (out / "report.html").read_text()
    assert "How fast" in page
    for row in found["rows"]:
        assert f"{row['decode']['tokens_per_second']:.1f}" in page
    assert {path.name for path in out.iterdir()} == {path.name for path in made.iterdir()}
    assert "How fast" not in (made / "report.html").read_text()
    assert (out / "report.png").read_bytes() != (made / "report.png").read_bytes()


def test_a_report_that_is_not_there_is_said_before_anything_is_timed(cached: tuple[Path, Path]) -> None:
    result = spq("bench", cached[1] / "model.onnx", "--report")
    assert result.code == 2
    assert "no plan.json here" in result.err


def test_a_program_writes_them_into_the_report_too(cached: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(cached[1], out)
    found = bench(Opening(out), rounds=1, lengths=[8], report=True)
    assert Report.load(out / "report.json").speed == found
    with pytest.raises(SpqError, match=r"no plan\.json here"):
        bench(out / "model.onnx", report=True)


def test_wrong_use(cached: tuple[Path, Path]) -> None:
    assert spq("bench", cached[1], "--target", "tpu").code == 2
    assert spq("bench", cached[1] / "absent.onnx").code != 0


def test_ratios_are_medians_over_rounds_not_of_them() -> None:
    times, error = times_faster([2.0, 100.0, 3.0], [1.0, 100.0, 1.0])
    assert times == 2.0
    assert error == pytest.approx(3**-0.5)  # of 2, 1 and 3, whose standard deviation is 1
    assert times_faster([2.0], [1.0]) == (2.0, None)


def test_a_prompt_that_no_memory_holds_is_refused_before_anything_is_read() -> None:
    ended = spq("bench", "nowhere.onnx", "--length", 10**12)
    assert ended.code == 2
    assert "1048576" in ended.err

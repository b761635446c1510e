"""What is told of a run beside its result: a line for each step, or none, and all of it in a log."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")

from tests.support.command import Case, done, spq

REMARK = (
    "decisions were measured on 496 tokens, not on the 4,096 that sensitivity_tokens asks for: the calibration data "
    "has no more\n"
)
LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d (.*)")


def arguments(case: Case, out: Path) -> list[object]:
    return ["quantize", case.model, "-o", out, "--calibration", case.calibration, "--text", case.text, "--force"]


def test_every_step_has_a_line_and_quiet_ends_that(case: Case, tmp_path: Path) -> None:
    found = done(*arguments(case, tmp_path / "out"), "--json")
    assert set(found.json) == {"out", "plan", "report"}
    told = found.err.splitlines()
    for words in ("Finding GLU blocks", "Calibrating on", "Deciding at 8 bits", "Inserting and proving", "Measuring"):
        assert any(re.match(rf"{words}.*: done in \d", line) for line in told), words
    for quiet in (["-q"], ["--quiet"]):
        assert done(*arguments(case, tmp_path / "out"), *quiet, "--json").err == REMARK
    assert done("--quiet", *arguments(case, tmp_path / "out")).err == REMARK


def test_a_log_holds_all_that_is_told_of_runs_and_how_they_ended(case: Case, tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    found = done(*arguments(case, tmp_path / "out"), "--log-file", log, "--quiet")
    assert found.err == REMARK
    refused = spq("--log-file", log, *arguments(case, tmp_path / "out"), "--target", "nowhere")
    assert refused.code == 2
    first, *lines = log.read_text().splitlines()
    assert first == "spq-graph log"
    said = [LINE.fullmatch(line)[1] for line in lines]  # type: ignore[index]
    assert said[0].startswith("spq-graph 0.1.0: spq-graph quantize ")
    assert REMARK.strip() in said
    assert any(re.match(r"Calibrating on .*: done in \d", line) for line in said)
    assert any(line.startswith("error: ") for line in said)
    assert sum(line.startswith("spq-graph 0.1.0: ") for line in said) == 2


@pytest.mark.parametrize("verb", ["doctor", "inspect"])
def test_verbs_that_only_look_take_them_too(verb: str, case: Case, tmp_path: Path) -> None:
    model = [case.model] if verb == "inspect" else []
    done(verb, *model, "-q", "-v", "--log-file", tmp_path / "log")
    assert (tmp_path / "log").read_bytes().startswith(b"spq-graph log\n")

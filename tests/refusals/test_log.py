"""Refusals of a place for the log, each made and put right as it says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")

from tests.refusals.conftest import Made
from tests.support.command import contents, done
from tests.support.following import Told

follows = pytest.mark.follows


@follows("spq_graph/cli/log_file.py:LogFile.__init__", "this is not a log")
def test_what_is_no_log(refusal: Told, made: Made, tmp_path: Path) -> None:
    before = contents(made.model)
    refusal.command("inspect", made.model, "--log-file", made.model)
    assert contents(made.model) == before
    for _ in range(2):  # what is a log of ours is added to
        done("inspect", made.model, "--log-file", tmp_path / "another.log")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names here")
@follows("spq_graph/cli/log_file.py:LogFile.__init__", "this is not a log")
def test_a_pipe_is_no_log(refusal: Told, made: Made, tmp_path: Path) -> None:
    """Opening it would wait for somebody who reads."""
    os.mkfifo(tmp_path / "pipe")
    refusal.command("inspect", made.model, "--log-file", tmp_path / "pipe")
    done("inspect", made.model, "--log-file", tmp_path / "another.log")


@follows("spq_graph/cli/log_file.py:LogFile.__init__", "the log cannot be written")
def test_where_no_log_can_be(refusal: Told, made: Made, tmp_path: Path) -> None:
    refusal.command("inspect", made.model, "--log-file", tmp_path / "absent" / "run.log")
    done("inspect", made.model, "--log-file", tmp_path / "run.log")

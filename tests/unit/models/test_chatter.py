"""What libraries print is held back from people, and kept for those who ask."""

from __future__ import annotations

import logging
import os
import sys
import threading
import warnings

import pytest

pytest.importorskip("transformers")

from spq_graph.models.chatter import quiet, said


def talk() -> None:
    """Every way in which a library speaks."""
    print("by print")
    print("by stderr", file=sys.stderr)
    warnings.warn("by warning", stacklevel=2)
    logging.getLogger("transformers.models").warning("by %s", "logger")
    logging.getLogger("torch.onnx").error("by torch")


def test_everything_is_held_back_and_told(capfd: pytest.CaptureFixture[str]) -> None:
    heard: list[str] = []
    with quiet(heard.append, descriptors=True):
        talk()
        os.write(1, b"by descriptor 1\n")
        os.write(2, b"by descriptor 2\n")
    assert capfd.readouterr() == ("", "")
    (text,) = heard
    for way in ("print", "stderr", "warning", "logger", "torch", "descriptor 1", "descriptor 2"):
        assert f"by {way}" in text
    print("out again")
    os.write(2, b"err again\n")
    assert capfd.readouterr() == ("out again\n", "err again\n")


def test_nobody_listens_and_descriptors_stay(capfd: pytest.CaptureFixture[str]) -> None:
    with quiet():
        talk()
        os.write(2, b"of another thread's C\n")
    assert capfd.readouterr() == ("", "of another thread's C\n")


@pytest.mark.parametrize("descriptors", [True, False])
def test_what_other_threads_write_is_shown(descriptors: bool, capfd: pytest.CaptureFixture[str]) -> None:
    with quiet(descriptors=descriptors):
        thread = threading.Thread(target=lambda: print("a bar", file=sys.stderr, flush=True))
        thread.start()
        thread.join()
    assert capfd.readouterr().err == "a bar\n"


def test_a_handler_made_meanwhile_writes_afterwards(capfd: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("onnxscript")
    before = logger.handlers[:]
    with quiet():
        logger.addHandler(logging.StreamHandler())
        logger.warning("held")
    try:
        logger.warning("shown")
        assert "shown" in capfd.readouterr().err
        assert len(logger.handlers) == len(before) + 1
    finally:
        logger.handlers[:] = before


def test_what_was_said_before_an_error_is_told() -> None:
    heard: list[str] = []

    def fail() -> None:
        with quiet(heard.append):
            print("why")
            raise ValueError("odd")

    with pytest.raises(ValueError, match="odd"):
        fail()
    assert heard == ["why\n"]


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("\n one \n two"), "one"),
        (
            ValueError("Validation error for field 'x':\n    TypeError: Field 'x' expected int"),
            "Field 'x' expected int",
        ),
        (KeyError("swish9"), "'swish9' (KeyError)"),
        (MemoryError(), "MemoryError"),
        (ValueError("x" * 70_000), "x" * 297 + "..."),
    ],
)
def test_an_error_in_one_line(error: Exception, text: str) -> None:
    assert said(error) == text

"""What every case of a refusal gets: a block that must end in it, and one small model with what was made of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import write_tokenizer
from tests.support.command import done
from tests.support.decoders import write_decoder, write_ids
from tests.support.following import Told, named


@pytest.fixture(autouse=True)
def refusal(request: pytest.FixtureRequest) -> Iterator[Told | None]:
    """The refusal that a test is marked to follow, which must come about in it; None for a test of something else."""
    mark = request.node.get_closest_marker("follows")
    if mark is None:
        yield None
        return
    arguments = {key: value for key, value in mark.kwargs.items() if key != "outside"}
    told = Told(named(*mark.args, **arguments))
    yield told
    assert told.happened, f"this was not refused: {told.expected.name}"


@dataclass(frozen=True)
class Made:
    """A decoder with data of its own and a tokenizer, and the OUT that `quantize` made of it. Read-only by agreement.

    Attributes:
        model, data, text: the .onnx file, ids to calibrate on, and ids to evaluate on.
        words: the tokenizer's folder; prose: a text in its words.
        out: the OUT folder; it holds no tokenizer.
    """

    model: Path
    data: Path
    text: Path
    words: Path
    prose: Path
    out: Path

    @property
    def ranges(self) -> Path:
        return self.out / "ranges.json"

    @property
    def plan(self) -> Path:
        return self.out / "plan.json"


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("made")
    model = write_decoder(folder / "decoder.onnx", layers=2, spikes={1: 1000.0}, cache=True)
    data, text = (
        write_ids(folder / "data.npz", rows=4, length=16),
        write_ids(folder / "text.npz", rows=4, length=16, seed=1),
    )
    (folder / "words").mkdir()
    write_tokenizer(folder / "words")
    (folder / "prose.txt").write_text(" ".join(f"w{n % 60}" for n in range(400)), encoding="utf-8")
    out = folder / "out"
    done("quantize", model, "-o", out, "--calibration", data, "--spike-ratio", 50, "--no-eval")
    return Made(model, data, text, folder / "words", folder / "prose.txt", out)

"""One quantized decoder for every test of the command line."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.command import Case, contents, done
from tests.support.decoders import write_decoder, write_ids


@pytest.fixture(scope="session")
def case(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    folder = tmp_path_factory.mktemp("inputs")
    model = write_decoder(folder / "decoder.onnx", spikes={1: 1000.0}, external=True)
    calibration, text = write_ids(folder / "calibration.npz"), write_ids(folder / "text.npz", seed=1)
    before = contents(folder)
    out = tmp_path_factory.mktemp("outputs") / "out"
    arguments = ["quantize", model, "-o", out, "--calibration", calibration, "--text", text]
    yield Case(model, calibration, text, out, done(*arguments, "--bits", 8, "--bits", 6, "--json"))
    assert contents(folder) == before  # whatever the tests did

"""What docs/serving.md shows of Triton: the repository, and a client, in the environment of Triton's client."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")

from spq_graph import generate
from tests.sources.environments import python_of
from tests.support.serving import PAGE, program, write_out

pytestmark = pytest.mark.families

STAND_IN = Path(__file__).with_name("triton_stand_in.py")
PROMPT = "w1 w5 w9"


@pytest.fixture(scope="module")
def python(environments: Path) -> Path:
    return python_of("triton", environments)


@pytest.fixture(scope="module")
def out(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OUT, with the model repository beside it."""
    folder = write_out(tmp_path_factory.mktemp("triton"))
    subprocess.run([python, "-c", program("import shutil")], cwd=folder.parent, check=True)
    return folder


@pytest.fixture(scope="module")
def port(python: Path, out: Path) -> Iterator[str]:
    """Where the model is served."""
    command = [python, STAND_IN, out.parent / "models" / "my-llama"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert server.stderr is not None
        found = server.stdout.readline().strip()
        assert found, server.stderr.read()
        yield found
        server.terminate()


def test_the_repository_is_as_shown(out: Path) -> None:
    """Line by line but for sizes."""
    (shown,) = re.findall(r"```text\n(backend: .*?)```", PAGE, flags=re.DOTALL)
    written = (out.parent / "models" / "my-llama" / "config.pbtxt").read_text()
    sizes = re.compile(r"(?<=[\[ ])\d+(?=[,\]])")
    lines = sizes.sub("N", shown).splitlines()
    assert sizes.sub("N", written).splitlines()[: len(lines)] == lines
    assert written.count("state {") - written.count("initial_state {") == 6
    for name in ("model.onnx", "model.onnx.data"):
        assert (out.parent / "models" / "my-llama" / "1" / name).read_bytes() == (out / name).read_bytes()


def test_the_client_says_what_generate_says(python: Path, out: Path, port: str) -> None:
    code = program("import tritonclient").replace("8001", port)
    for prompt, count, sequence in ((PROMPT, 20, 1), ("w2", 1, 2), ("w3 w4", 12, 1)):
        asked = code.replace('"The river", 20, sequence=1', f'"{prompt}", {count}, sequence={sequence}')
        assert asked != code
        said = subprocess.run([python, "-c", asked], cwd=out.parent, capture_output=True, text=True)
        assert said.returncode == 0, said.stderr
        expected = generate(out, prompt, chat=False, max_new_tokens=count).texts[0]
        assert said.stdout.split() == expected.split()

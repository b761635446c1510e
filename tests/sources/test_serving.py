"""What docs/serving.md shows of Triton and onnxruntime-genai, in the environments of their own clients."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")

from spq_graph import generate
from spq_graph.runtime.sessions.library import library_path
from tests.sources.clients import GENAI
from tests.sources.environments import python_of
from tests.support.serving import PAGE, program, write_out

pytestmark = pytest.mark.families

STAND_IN = Path(__file__).with_name("triton_stand_in.py")
PROMPT = "w1 w5 w9"
LIBRARY = None if (path := library_path()) is None else Path(path)


@pytest.fixture(scope="module")
def python(environments: Path) -> Path:
    return python_of("triton", environments)


@pytest.fixture(scope="module")
def out(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OUT, with the model repository beside it; its sums are exact without an option of the session."""
    place = tmp_path_factory.mktemp("triton")
    (place / "recipe.toml").write_text("reduce_range = true\n")
    folder = write_out(place, "--high-precision", "w8a8_token", "--recipe", place / "recipe.toml")
    subprocess.run([python, "-c", program("def described(one")], cwd=folder.parent, check=True)
    return folder


@pytest.fixture(scope="module")
def port(python: Path, out: Path) -> Iterator[str]:
    """Where the model is served, with the operator library where there is one."""
    model = out.parent / "with-library" / "my-llama"
    shutil.copytree(out.parent / "models" / "my-llama", model)
    if LIBRARY is not None and LIBRARY.is_file():
        (line,) = re.findall(r"`(model_operations .*)`", PAGE)
        with (model / "config.pbtxt").open("a") as config:
            config.write(line.replace("/path/libspq_graph_ops.so", LIBRARY.as_posix()))
    command = [python, STAND_IN, model]
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


def test_genai_takes_the_operator_library_that_lies_in_out(
    environments: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That it is taken shows where it is not there; that its kernel computes the same, where it is."""
    if LIBRARY is None or not LIBRARY.is_file():
        pytest.skip("needs the operator library")
    out = write_out(tmp_path, "--high-precision", "w8a8_token")
    asked = generate(out, PROMPT, chat=False, max_new_tokens=12)
    monkeypatch.chdir(tmp_path)
    exec(compile(program("library, about ="), "serving.md", "exec"), {})
    ids = json.dumps([1, *(int(word[1:]) + 3 for word in PROMPT.split())])
    command = [python_of("genai", environments), "-c", GENAI, out, ids]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout.splitlines()[-1])[: len(asked.tokens[0])] == asked.tokens[0]
    (out / LIBRARY.name).unlink()
    without = subprocess.run(command, capture_output=True, text=True)
    assert without.returncode != 0
    assert LIBRARY.name in without.stderr

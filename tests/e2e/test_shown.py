"""Every spq-graph command that README and the pages show runs as it stands there, on models of a few kilobytes."""

from __future__ import annotations

import io
import itertools
import json
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("torch")

from spq_graph.runtime.text.named_sets import NamedSet
from tests.conftest import ROOT, WORDS
from tests.support.clusters import cluster
from tests.support.command import done
from tests.support.decoders import write_decoder, write_ids
from tests.support.hub import cached, of_folder, served
from tests.support.serving import TEMPLATE

pytestmark = pytest.mark.slow

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OTHERS = ("pipelines.md",)  # shows other tools as well: tests/sources/test_pipelines.py
ID = "Qwen/Qwen2.5-0.5B-Instruct"
# What makes a file that a command reads, where no command before it has.
MAKES = {
    "exported": "export ./my-llama -o exported",
    "ranges.json": "calibrate exported/model.onnx -o ranges.json --calibration ids.npz",
    "plan.json": "plan exported/model.onnx ranges.json -o plan.json --calibration ids.npz",
    "out": "quantize exported/model.onnx -o out --calibration mine.txt --no-eval",
    "other": "apply exported/model.onnx plan.json -o other --target portable",
    "tighter": "apply exported/model.onnx plan.json -o tighter",
    "part0.json": "calibrate exported/model.onnx -o part0.json --calibration mine.txt --shard 0/2",
    "part1.json": "calibrate exported/model.onnx -o part1.json --calibration mine.txt --shard 1/2",
}


def commands() -> list[str]:
    """As they stand, without what stands behind `#`; each once, in the order of the pages."""
    pages = [page.read_text(encoding="utf-8") for page in PAGES if page.name not in OTHERS]
    lines = [line for page in pages for line in re.findall(r"^spq-graph .*$", page, flags=re.MULTILINE)]
    return list(dict.fromkeys(shlex.join(shlex.split(re.sub(r"\s#.*", "", line))[1:]) for line in lines))


def words(count: int, seed: int) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS[3:], count))


@pytest.fixture(scope="module")
def place(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that the pages take for granted."""
    folder = tmp_path_factory.mktemp("shown")
    shutil.copytree(tiny_llama, folder / "my-llama")
    (folder / "my-llama" / "chat_template.jinja").write_text(TEMPLATE)
    for name, count, seed in (("wiki.txt", 1500, 0), ("mine.txt", 1400, 1), ("heldout.txt", 400, 2)):
        (folder / name).write_text(words(count, seed))
    write_ids(folder / "ids.npz")
    write_decoder(folder / "decoder.onnx", spikes={1: 1000.0})
    shutil.copy(folder / "decoder.onnx", folder / "model.onnx")
    (recipe,) = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "tutorial.md").read_text(), flags=re.DOTALL)
    (folder / "tighter.toml").write_text(recipe)
    for name in ("org/name", ID):
        cached(folder / "cache", name, of_folder(folder / "my-llama"))
    return folder


def make(name: str) -> None:
    """What a command reads, and what that is made from."""
    stem = name.partition("/")[0].removeprefix("./")
    if stem in MAKES and not Path(stem).exists():
        arguments = shlex.split(MAKES[stem])
        for argument in arguments:
            if argument != stem:
                make(argument)
        done(*arguments)


@pytest.mark.parametrize("command", commands())
def test_it_runs(command: str, place: Path, exports: None, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = shlex.split(command)
    monkeypatch.chdir(place)
    cache = "empty" if "hf://" in command else "cache"
    monkeypatch.setenv("HF_HUB_CACHE", str(place / cache))
    monkeypatch.setattr(sys, "stdin", io.StringIO("w1 w2\n"))
    netron = SimpleNamespace(start=lambda *_, **__: ("localhost", 8080), wait=lambda: None)
    monkeypatch.setitem(sys.modules, "netron", netron)
    written = Path(arguments[arguments.index("-o") + 1]) if "-o" in arguments else None
    for argument in arguments:
        if argument != str(written):
            make(argument)
    if "model.gguf" in arguments:
        write_gguf(place / "model.gguf")
    if written is not None and written.is_dir():
        shutil.rmtree(written)
    elif written is not None:
        for file in (written, written.with_suffix(".safetensors")):
            file.unlink(missing_ok=True)
    if "--tasks" in arguments and not Path(arguments[arguments.index("--tasks") + 1]).is_file():
        pytest.skip("the data of tasks by name are downloaded: tests/unit/runtime/harness has some of its own")
    keep_sets(arguments, place / "kept", monkeypatch)
    files = {name: file.read_bytes() for name, file in of_folder(place / "my-llama").items()}
    with served(ID, files, []) as url, shared("--dask" in arguments, monkeypatch):
        take_for_the_hub(url, monkeypatch)
        done(*arguments)
    assert written is None or written.exists() or "--dry-run" in arguments


def take_for_the_hub(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub's client reads its address once; ours is always on this machine."""
    constants = pytest.importorskip("huggingface_hub").constants
    template = f"{url}/{constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix(constants.ENDPOINT).lstrip('/')}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", url)


@contextmanager
def shared(asked: bool, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cluster at whatever address a command names, where it names one."""
    if not asked:
        yield
        return
    distributed = pytest.importorskip("distributed")
    client = distributed.Client
    with cluster(1) as made:
        monkeypatch.setattr(distributed, "Client", lambda _, **more: client(made.scheduler_address, **more))
        yield


def keep_sets(arguments: list[str], cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of the data sets that are named, as an earlier run would have left them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    for option, name in itertools.pairwise(arguments):
        named = NamedSet.of(name) if option in ("--calibration", "--text") else None
        for one in (named, named.for_judging()) if named is not None else ():
            one.file.parent.mkdir(parents=True, exist_ok=True)
            text = words(1400, len(name))
            one.file.write_text(text if one.joined else json.dumps({"text": text}))


def write_gguf(path: Path) -> None:
    pytest.importorskip("gguf")
    pytest.importorskip("accelerate")
    from tests.support.gguf_files import llama, write_llama

    write_llama(path, llama())

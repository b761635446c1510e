"""Refusals of ids on the Hub, each made and put right as it says; what the Hub answers is put in its client's mouth."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("huggingface_hub")

import huggingface_hub as hub
from huggingface_hub.errors import HfHubHTTPError

from docs.refusals import ROOT
from spq_graph.models.source import Source, resolve
from tests.support.decoders import write_decoder
from tests.support.following import Told
from tests.support.hub import cached

follows = pytest.mark.follows


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_decoder(tmp_path / "model.onnx", layers=1)


def answers(monkeypatch: pytest.MonkeyPatch, kept: Path, model: Path, *, names: list[str] | None = None) -> None:
    """The Hub has org/name, with these files, and its download puts the model into the cache."""
    siblings = [SimpleNamespace(rfilename=name) for name in names or ["model.onnx"]]
    monkeypatch.setattr(hub.HfApi, "model_info", lambda *_, **__: SimpleNamespace(siblings=siblings))
    monkeypatch.setattr(hub, "snapshot_download", lambda name, **_: cached(kept, name, {"model.onnx": model}))


def fails(monkeypatch: pytest.MonkeyPatch, error: type[Exception], status: int = 404) -> None:
    def raised(*_: Any, **__: Any) -> None:
        if issubclass(error, hub.errors.HfHubHTTPError):
            raise error("no", response=SimpleNamespace(headers={}, request=None, status_code=status))  # type: ignore[call-arg]
        raise error("no route")

    monkeypatch.setattr(hub.HfApi, "model_info", raised)


def tagged(kept: Path, name: str, model: Path, tag: str) -> Path:
    """A commit of its own in the cache, and a tag that names it."""
    snapshot = cached(kept, name, {"model.onnx": model}, "d" * 40)
    (kept / f"models--{name.replace('/', '--')}" / "refs" / tag).write_text("d" * 40)
    return snapshot


def found(source: str) -> Source:
    result = resolve(source)
    assert result.kind == "onnx"
    return result


@follows("models/hub.py:fetched", "Pass ADDRESS")
def test_an_id_that_is_not_in_the_cache(
    refusal: Told, kept: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with refusal:
        resolve("org/name@main")
    answers(monkeypatch, kept, model)
    found(refusal.error.remedy.removeprefix("Pass ").partition(",")[0])
    found("org/name@main")


@follows("models/hub.py:fetched", "which is there")
def test_an_id_that_is_spelled_otherwise(
    refusal: Told, kept: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached(kept, "org/name", {"model.onnx": model})
    with refusal:
        resolve("org/Nane")
    near, other = re.findall(r"Pass (\S+), which is there, or (\S+),", refusal.error.remedy)[0]
    found(near)
    answers(monkeypatch, kept, model)
    found(other)


@follows("models/hub.py:fetched", "client, which is not installed")
def test_without_the_client(refusal: Told, kept: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    with monkeypatch.context() as without:
        without.setattr(
            "spq_graph.models.hub.find_spec", lambda name: None if name == "huggingface_hub" else find(name)
        )
        with refusal:
            resolve("hf://org/name")
    extra = refusal.error.remedy.partition("[")[2].partition("]")[0]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert any("huggingface-hub" in one for one in project["optional-dependencies"][extra])
    answers(monkeypatch, kept, model)
    found("hf://org/name")


@follows("models/hub.py:_download", "its licence is gated", outside="accepting terms takes an account on the Hub")
def test_a_gated_licence(refusal: Told, kept: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fails(monkeypatch, hub.errors.GatedRepoError)
    with refusal:
        resolve("hf://org/name")
    assert "https://huggingface.co/org/name" in refusal.error.remedy
    answers(monkeypatch, kept, model)
    found("hf://org/name")


@follows("models/hub.py:fetched", "not at revision")
def test_a_revision_that_is_not_in_the_cache(
    refusal: Told, kept: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is told is that the revision is at fault, not the model, and what there is in its place."""
    cached(kept, "org/name", {"model.onnx": model})
    with refusal:
        resolve("org/name@v9")
    there, other = re.findall(r"Pass (\S+), which the cache has, or (\S+),", refusal.error.remedy)[0]
    assert (there, other) == ("org/name", "hf://org/name@v9")
    found(there)
    answers(monkeypatch, kept, model)
    monkeypatch.setattr(hub, "snapshot_download", lambda name, **_: tagged(kept, name, model, "v9"))
    found(other)
    found("org/name@v9")


@follows("models/hub.py:fetched", "not at revision")
def test_a_model_of_which_the_cache_has_commits_alone(refusal: Told, kept: Path, model: Path) -> None:
    """Whoever asks for a commit gets no branch; one of which half is there is none to take."""
    for commit in ("a" * 40, "b" * 40):
        cached(kept, "org/name", {"model.onnx": model}, commit)
    cached(kept, "org/name", {"config.json": "{}"}, "c" * 40)
    (kept / "models--org--name" / "refs" / "main").unlink()
    with refusal:
        resolve("org/name")
    listed = re.findall(r"Pass (\S+) or (\S+), which the cache has, or hf://org/name,", refusal.error.remedy)[0]
    assert listed == (f"org/name@{'a' * 40}", f"org/name@{'b' * 40}")
    for name in listed:
        found(name)


@follows("models/hub.py:_download", "refuses this login", outside="a token is made with an account on the Hub")
@pytest.mark.parametrize("status", [401, 403])
def test_a_login_that_is_no_good(
    refusal: Told, kept: Path, model: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    fails(monkeypatch, hub.errors.HfHubHTTPError, status)
    with refusal:
        resolve("hf://org/name")
    answers(monkeypatch, kept, model)
    found("hf://org/name")


@follows("models/hub.py:_download", "has no revision")
def test_no_such_revision(refusal: Told, kept: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fails(monkeypatch, hub.errors.RevisionNotFoundError)
    with refusal:
        resolve("hf://org/name@v9")
    answers(monkeypatch, kept, model)
    found("hf://org/name")


@follows("models/hub.py:_download", "has no model of this id")
def test_no_such_model(refusal: Told, kept: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fails(monkeypatch, hub.errors.RepositoryNotFoundError)
    with refusal:
        resolve("hf://org/nome")
    answers(monkeypatch, kept, model)
    found("hf://org/name")


@follows("models/hub.py:_unreached", "cannot be reached")
@pytest.mark.parametrize("error", [OSError, HfHubHTTPError])
def test_no_network(
    refusal: Told, kept: Path, model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: type[Exception]
) -> None:
    """The cache of another machine is brought here; a Hub that is out of order is as good as none."""
    fails(monkeypatch, error, 503)
    with refusal:
        resolve("hf://org/name")
    assert "hf download org/name" in refusal.error.remedy
    cached(tmp_path / "brought", "org/name", {"model.onnx": model})
    name = next(word for word in refusal.error.remedy.split() if word.startswith("HF_"))
    monkeypatch.setenv(name, str(tmp_path / "brought"))
    found("hf://org/name")


@follows("models/hub.py:_download", "holds no weights that are read")
def test_no_weights(refusal: Told, kept: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, kept, model, names=["README.md", "flax_model.msgpack"])
    with refusal:
        resolve("hf://org/name")
    answers(monkeypatch, kept, model)
    found("hf://org/name")
    found(str(model))

"""Models by their id on the Hugging Face Hub: in the cache of its client, or downloaded where that is asked for.

`org/name` is looked for in the cache alone, `hf://org/name` is downloaded where it is not there; both may name a commit
or a branch behind an @. Reading the cache needs no client of the Hub:
https://huggingface.co/docs/huggingface_hub/guides/manage-cache
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from spq_graph.documents.parsed import parse_json
from spq_graph.terms.errors import SourceError, UsageError

_ID: Final = r"\w[\w.]*(?:-[\w.]+)*"
# Of a path the second slash is gone; the address of a page says the same as hf://.
_ASKED: Final = re.compile(rf"(?:hf:/{{1,2}}|https?://huggingface\.co/)({_ID}(?:/{_ID})?)(?:(?:@|/tree/)([\w./-]+))?/?")
_PLAIN: Final = re.compile(rf"({_ID}/{_ID})(?:@([\w./-]+))?")
_LISTED: Final = 4  # revisions in a sentence
_SECONDS: Final = 8.0  # that the Hub may take to say what a model holds
# What is read beside weights, as far as it lies at the top of a repository; its code is never run.
_BESIDE: Final = ("*.json", "*.jinja", "*.txt", "*.model", "README.md", "LICENSE*", "NOTICE*", "USE_POLICY*")
# The first of these that there are; where there are several of weights, transformers takes them in this order, too.
_WEIGHTS: Final = (
    ("model.safetensors", "model-*.safetensors"),
    ("*.safetensors",),
    ("pytorch_model*.bin", "adapter_model.bin"),
    ("*.onnx", "*.onnx.data", "*.onnx_data*"),
    ("onnx/model.onnx", "onnx/model.onnx.data", "onnx/model.onnx_data*"),
    ("*.gguf",),
)


@dataclass(frozen=True, slots=True)
class HubId:
    """A model on the Hub.

    Attributes:
        name: organization and name; old models have the name alone.
        revision: a commit, a branch or a tag.
        download: whether it is to be downloaded where it is not in the cache.
    """

    name: str
    revision: str = "main"
    download: bool = False

    @classmethod
    def of(cls, source: str) -> HubId | None:
        """What somebody typed as an id; None where it is none."""
        asked, plain = _ASKED.fullmatch(source), _PLAIN.fullmatch(source)
        found = asked or plain
        if found is None or ".." in source or (plain and source.endswith((".onnx", ".gguf"))):
            return None
        return cls(found[1], found[2] or "main", asked is not None)

    @property
    def address(self) -> str:
        """What to type for it to be downloaded."""
        return f"hf://{self.name}" + (f"@{self.revision}" if self.revision != "main" else "")

    @property
    def snapshot(self) -> Path | None:
        """Its folder in the cache; None where it is not there, or not whole."""
        commit = self._commit(self.revision) or self.revision
        folder = self._repository / "snapshots" / commit
        try:
            return folder if commit and "/" not in commit and _is_whole(folder) else None
        except OSError:  # longer than a name may be
            return None

    @property
    def revisions(self) -> list[str]:
        """Revisions of which a whole model is in the cache: branches and tags by name, other commits as they are."""
        refs = self._repository / "refs"
        named = {path.relative_to(refs).as_posix(): path for path in sorted(refs.rglob("*")) if path.is_file()}
        commits = {name: self._commit(name) for name in named}
        whole = {folder.name for folder in (self._repository / "snapshots").glob("*") if _is_whole(folder)}
        return [*(name for name in named if commits[name] in whole), *sorted(whole.difference(commits.values()))]

    @property
    def _repository(self) -> Path:
        """What the cache has of the model."""
        return cache() / f"models--{self.name.replace('/', '--')}"

    def _commit(self, revision: str) -> str | None:
        """The commit that a branch or tag names; None where the cache knows none by it."""
        try:
            return (self._repository / "refs" / revision).read_text(encoding="utf-8").strip()
        except (OSError, ValueError):
            return None


def cache() -> Path:
    """The folder of the Hub's cache, as its own client finds it."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()


def place_of(source: str) -> Path:
    """The folder or file that a source means: a path that is there, else a Hub id in the cache, else the path."""
    path = Path(source).expanduser()
    named = HubId.of(source) if not os.path.lexists(path) else None
    return (named.snapshot if named is not None else None) or path


def fetched(named: HubId, source: str) -> Path:
    """The folder of a model that is not in the cache: downloaded, if that was asked for.

    Args:
        named: the model.
        source: as somebody typed it.

    Raises:
        SourceError: it was not asked for, where the cache has the model at other revisions it is told of those; or
            there is no such model or revision, access has to be asked for, it holds nothing that is read, or the Hub
            refuses, or cannot be reached.
        UsageError: its client is not installed.
    """
    if not named.download and (there := named.revisions):
        others = [f"{named.name}@{one}" if one != "main" else named.name for one in there[:_LISTED]]
        raise SourceError(
            f"the Hub's cache has this model, but not at revision '{named.revision}'",
            where=source,
            remedy=f"Pass {' or '.join(others)}, which the cache has, or {named.address}, which downloads it.",
        )
    if not named.download:
        near = get_close_matches(named.name, _in_cache(), n=1, cutoff=0.7)
        instead = f"Pass {near[0]}, which is there, or" if near and near[0] != named.name else "Pass"
        raise SourceError(
            "no such folder, and the Hub's cache has no whole model of this id",
            where=source,
            remedy=f"{instead} {named.address}, which downloads it.",
        )
    if find_spec("huggingface_hub") is None:
        raise UsageError(
            "to download from the Hub takes its client, which is not installed",
            where=source,
            remedy="pip install 'spq-graph[hub]', and run this again",
        )
    return _download(named, source)


def _download(named: HubId, source: str) -> Path:
    from huggingface_hub import HfApi, errors, snapshot_download

    page = f"https://huggingface.co/{named.name}"
    try:
        found = HfApi().model_info(named.name, revision=named.revision, timeout=_SECONDS)
        files = wanted(one.rfilename for one in found.siblings or ())
        if files:
            return Path(snapshot_download(named.name, revision=named.revision, allow_patterns=files, cache_dir=cache()))
    except errors.GatedRepoError as error:
        raise SourceError(
            "its licence is gated: access has to be asked for",
            where=source,
            remedy=f"Accept its terms at {page}, log in with `hf auth login`, and run this again.",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise SourceError(
            f"the Hub has no revision '{named.revision}' of this model",
            where=source,
            remedy=f"Leave it out for the newest, or take one of {page}/commits/main.",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise SourceError(
            "the Hub has no model of this id, or shows it only to those who have logged in",
            where=source,
            remedy="Check the spelling, or log in with `hf auth login`.",
        ) from error
    except errors.HfHubHTTPError as error:
        if error.response.status_code not in (401, 403):
            raise _unreached(error, named, source) from error
        raise SourceError(
            f"the Hub refuses this login: {_first_line(error)}",
            where=source,
            remedy="`hf auth whoami` says whose it is: log in again with `hf auth login`, or for what is public go "
            "without a token (`hf auth logout`, and unset HF_TOKEN).",
        ) from error
    except Exception as error:  # those of whatever client of HTTP is below it, and of the disk
        raise _unreached(error, named, source) from error
    raise SourceError(
        "this model holds no weights that are read: safetensors, pytorch_model.bin, ONNX or one GGUF",
        where=source,
        remedy=f"Take one that has some, or download a file of {page} and pass that.",
    )


def _unreached(error: Exception, named: HubId, source: str) -> SourceError:
    return SourceError(
        f"the Hub cannot be reached, or not to the end: {_first_line(error)}",
        where=source,
        remedy=f"Where there is a network: hf download {named.name}; here HF_HUB_CACHE names that cache.",
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def wanted(files: Iterable[str]) -> list[str]:
    """Which files of a repository are read: weights in one form, and what lies beside them; empty without weights."""
    names = sorted(files)
    weights = _weights(names)
    return weights + [name for name in names if _fits(name, _BESIDE)] if weights else []


def _weights(names: Iterable[str]) -> list[str]:
    names = list(names)
    found = next((some for form in _WEIGHTS if (some := [name for name in names if _fits(name, form)])), [])
    return found if len(found) == 1 or not all(name.endswith(".gguf") for name in found) else []


def _fits(name: str, patterns: Iterable[str]) -> bool:
    return any(name.count("/") == one.count("/") and fnmatchcase(name, one) for one in patterns)


def _is_whole(folder: Path) -> bool:
    """Whether a snapshot holds weights, and all parts of them: others put files into it one by one."""
    names = [
        path.relative_to(folder).as_posix() for path in (*folder.glob("*"), *folder.glob("onnx/*")) if path.is_file()
    ]
    weights = _weights(names)
    index = next(
        (
            folder / f"{stem}.index.json"
            for stem in ("model.safetensors", "pytorch_model.bin")
            if f"{stem}.index.json" in names and stem not in names
        ),
        None,
    )
    if index is None:
        return bool(weights)
    try:
        parts = parse_json(index.read_bytes())["weight_map"].values()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return bool(weights)  # what is wrong with it is said where it is read
    return all(part in names for part in parts)


def _in_cache() -> list[str]:
    """Ids of which something is in the cache."""
    return [folder.name.removeprefix("models--").replace("--", "/") for folder in cache().glob("models--*")]

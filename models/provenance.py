"""Whose model it is: its id on the Hugging Face Hub, the commit and the licence, as far as its files tell."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path

from spq_graph.documents.model_ref import ModelRef

_MOST = 1 << 16  # characters of a card in which its metadata stands
_METADATA = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*$", re.DOTALL | re.MULTILINE)
_LICENSE = re.compile(r"^(license(?:_name)?):[ \t]*(\S[^\n#]{0,200}?)[ \t\r]*(?:[ \t]#[^\n]*)?$", re.MULTILINE)
# Those of the Hub: no id holds two dashes in a row, so that they stand for a slash in names of its cache.
# https://huggingface.co/docs/huggingface_hub/guides/manage-cache
_KEPT = re.compile(r"models--([\w.]+(?:-[\w.]+)*(?:--[\w.]+(?:-[\w.]+)*)?)")


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a model comes from; None for what its files do not tell.

    Attributes:
        hub: its id on the Hub.
        revision: the commit.
        license: as its card names it, by an identifier of the Hub.
        license_name: what its owner calls one that the Hub does not know.
    """

    hub: str | None = None
    revision: str | None = None
    license: str | None = None
    license_name: str | None = None

    def ref(self, digest: str, origin: str) -> ModelRef:
        """How plans refer to a model from there."""
        return ModelRef(digest=digest, origin=origin, **asdict(self))


def provenance(path: Path) -> Provenance:
    """What the place of a model says, in a cache of the Hub, and the card beside it or above it in its repository.

    Args:
        path: the model's folder, or its file.
    """
    folders = [path.absolute(), *path.absolute().parents] if path.is_dir() else list(path.absolute().parents)
    for folder in folders:
        kept = _KEPT.fullmatch(folder.parent.parent.name) if folder.parent.name == "snapshots" else None
        if kept is not None:
            return Provenance(kept[1].replace("--", "/"), folder.name, **_license(folder))
    return Provenance(**_license(folders[0]))


def _license(folder: Path) -> dict[str, str]:
    """What the metadata of a card says of the licence: words on lines of their own, as the Hub writes them."""
    card = folder / "README.md"
    if not card.is_file():
        return {}
    try:
        with card.open(encoding="utf-8", errors="replace") as stream:
            found = _METADATA.match(stream.read(_MOST))
    except OSError:
        return {}
    said = dict(_LICENSE.findall(found[1])) if found is not None else {}
    return {name: words for name, value in said.items() if (words := value.strip("'\"")[:100])}

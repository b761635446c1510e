"""Recipes by name, as they come with the package: each a TOML file that says in its first line what it is for."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from spq_graph.terms.errors import UsageError

_FOLDER: Final = Path(__file__).with_name("presets")


@dataclass(frozen=True, slots=True)
class Preset:
    """A recipe by name.

    Attributes:
        name: what `--preset` takes.
        about: what it is for, in a line.
        text: the file as it lies in the package, which `--recipe` takes as well.
    """

    name: str
    about: str
    text: str

    @property
    def fields(self) -> dict[str, Any]:
        """What it sets, by the recipe's keys."""
        return tomllib.loads(self.text)

    def to_dict(self) -> dict[str, Any]:
        """What `presets --json` prints of it."""
        return {"name": self.name, "about": self.about, "recipe": self.fields}


def presets() -> Mapping[str, Preset]:
    """All that there are, by name: those of one width beside each other."""
    found = {}
    for file in sorted(_FOLDER.glob("*.toml")):
        text = file.read_text(encoding="utf-8")
        found[file.stem] = Preset(file.stem, text.partition("\n")[0].removeprefix("#").strip(), text)
    return MappingProxyType(found)


def preset(name: str) -> Preset:
    """The preset of this name.

    Raises:
        UsageError: there is none; what is nearest to it is named.
    """
    known = presets()
    if name in known:
        return known[name]
    near = " or ".join(get_close_matches(name.lower(), known, cutoff=0.5) or known)
    raise UsageError(
        f"there is no preset '{name}'", where="--preset", remedy=f"pass {near}: `spq-graph presets` says what each does"
    )

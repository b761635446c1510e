"""The recipes that come with the package, and what a recipe may hold."""

from __future__ import annotations

from typing import Any

from spq_graph.documents.preset import Preset, preset
from spq_graph.documents.preset import presets as all_presets
from spq_graph.documents.recipe import json_schema


def presets(name: str | None = None) -> list[Preset]:
    """The presets, or the one of this name.

    Raises:
        UsageError: there is none of this name.
    """
    return [preset(name)] if name is not None else list(all_presets().values())


def schema_of_recipes() -> dict[str, Any]:
    """What a recipe may hold, as JSON Schema."""
    return json_schema()

"""Spike-aware quantization of GLU language models: decide on paper, then edit the graph."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spq_graph.plan import Plan
    from spq_graph.ranges import Ranges
    from spq_graph.recipe import Recipe
    from spq_graph.report import Report

__all__ = ["Plan", "Ranges", "Recipe", "Report", "__version__"]
__version__ = "0.1.0"

_root = Path(__file__).resolve().parent.parent
if not (Path(__file__).parent / "passes").is_dir() and (_root / "pyproject.toml").is_file():
    # A checkout without symbolic links (Windows): passes, runtime and models lie beside this package.
    __path__.append(str(_root))


def __getattr__(name: str) -> object:
    """The documents by their short names; imported when they are asked for, since every verb imports this."""
    if name in __all__:
        return getattr(import_module(f"{__name__}.{name.lower()}"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")

"""Spike-aware quantization of GLU language models: decide on paper, then edit the graph."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spq_graph.benching import bench
    from spq_graph.comparing import differences as compare
    from spq_graph.data import Data
    from spq_graph.doctor import examine
    from spq_graph.errors import SpqError
    from spq_graph.generating import generate
    from spq_graph.inspection import inspect_path as inspect
    from spq_graph.measuring import evaluate
    from spq_graph.opening import Opening
    from spq_graph.pipeline import quantize
    from spq_graph.plan import Plan
    from spq_graph.progress import Steps
    from spq_graph.ranges import Ranges
    from spq_graph.recipe import Recipe
    from spq_graph.report import Report
    from spq_graph.runtime.sampling import Sampling
    from spq_graph.stages import apply, calibrate, export, merge, plan

__all__ = [
    "Data",
    "Opening",
    "Plan",
    "Ranges",
    "Recipe",
    "Report",
    "Sampling",
    "SpqError",
    "Steps",
    "__version__",
    "apply",
    "bench",
    "calibrate",
    "compare",
    "evaluate",
    "examine",
    "export",
    "generate",
    "inspect",
    "merge",
    "plan",
    "quantize",
]
__version__ = "0.1.0"

# Where each name comes from: its module, and what it is called there.
_HOMES = {
    "Data": ("spq_graph.data", "Data"),
    "Opening": ("spq_graph.opening", "Opening"),
    "Plan": ("spq_graph.plan", "Plan"),
    "Ranges": ("spq_graph.ranges", "Ranges"),
    "Recipe": ("spq_graph.recipe", "Recipe"),
    "Report": ("spq_graph.report", "Report"),
    "Sampling": ("spq_graph.runtime.sampling", "Sampling"),
    "SpqError": ("spq_graph.errors", "SpqError"),
    "Steps": ("spq_graph.progress", "Steps"),
    "apply": ("spq_graph.stages", "apply"),
    "bench": ("spq_graph.benching", "bench"),
    "calibrate": ("spq_graph.stages", "calibrate"),
    "compare": ("spq_graph.comparing", "differences"),
    "evaluate": ("spq_graph.measuring", "evaluate"),
    "examine": ("spq_graph.doctor", "examine"),
    "export": ("spq_graph.stages", "export"),
    "generate": ("spq_graph.generating", "generate"),
    "inspect": ("spq_graph.inspection", "inspect_path"),
    "merge": ("spq_graph.stages", "merge"),
    "plan": ("spq_graph.stages", "plan"),
    "quantize": ("spq_graph.pipeline", "quantize"),
}

_root = Path(__file__).resolve().parent.parent
if not (Path(__file__).parent / "passes").is_dir() and (_root / "pyproject.toml").is_file():
    # A checkout without symbolic links (Windows): passes, runtime and models lie beside this package.
    __path__.append(str(_root))


def __getattr__(name: str) -> object:
    """What a program calls, imported when it is asked for: every verb imports this package, none needs all of it."""
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    home, own = _HOMES[name]
    return getattr(import_module(home), own)


def __dir__() -> list[str]:
    """The names to be imported, beside what every module has."""
    return sorted({*globals(), *__all__})

"""How does a language model become INT8 in spite of its spikes?

Spike-aware quantization of GLU language models: decide on paper, then edit the graph.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spq_graph.documents.plan import Plan
    from spq_graph.documents.ranges import Ranges
    from spq_graph.documents.recipe import Recipe, load_recipe
    from spq_graph.documents.report import Report
    from spq_graph.jobs.apply import apply
    from spq_graph.jobs.bench import bench
    from spq_graph.jobs.calibrate import calibrate, merge
    from spq_graph.jobs.chat import chat
    from spq_graph.jobs.compare import compare
    from spq_graph.jobs.doctor import doctor
    from spq_graph.jobs.evaluate import evaluate
    from spq_graph.jobs.export import export
    from spq_graph.jobs.generate import generate
    from spq_graph.jobs.inspect import inspect
    from spq_graph.jobs.plan import plan
    from spq_graph.jobs.quantize import quantize
    from spq_graph.jobs.verify import verify
    from spq_graph.runtime.generation.sampling import Sampling
    from spq_graph.terms.errors import SpqError
    from spq_graph.terms.rows import EVERYWHERE, FP32, SPIKE_AWARE, WEIGHT_ONLY
    from spq_graph.workbench.data import Data
    from spq_graph.workbench.opening import Opening
    from spq_graph.workbench.steps import Steps

__all__ = [
    "EVERYWHERE",
    "FP32",
    "SPIKE_AWARE",
    "WEIGHT_ONLY",
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
    "chat",
    "compare",
    "doctor",
    "evaluate",
    "export",
    "generate",
    "inspect",
    "load_recipe",
    "merge",
    "plan",
    "quantize",
    "verify",
]
__version__ = "0.1.0"

# The module that each name comes from.
_HOMES = {
    "EVERYWHERE": "spq_graph.terms.rows",
    "FP32": "spq_graph.terms.rows",
    "SPIKE_AWARE": "spq_graph.terms.rows",
    "WEIGHT_ONLY": "spq_graph.terms.rows",
    "Data": "spq_graph.workbench.data",
    "Opening": "spq_graph.workbench.opening",
    "Plan": "spq_graph.documents.plan",
    "Ranges": "spq_graph.documents.ranges",
    "Recipe": "spq_graph.documents.recipe",
    "Report": "spq_graph.documents.report",
    "Sampling": "spq_graph.runtime.generation.sampling",
    "SpqError": "spq_graph.terms.errors",
    "Steps": "spq_graph.workbench.steps",
    "apply": "spq_graph.jobs.apply",
    "bench": "spq_graph.jobs.bench",
    "calibrate": "spq_graph.jobs.calibrate",
    "chat": "spq_graph.jobs.chat",
    "compare": "spq_graph.jobs.compare",
    "doctor": "spq_graph.jobs.doctor",
    "evaluate": "spq_graph.jobs.evaluate",
    "export": "spq_graph.jobs.export",
    "generate": "spq_graph.jobs.generate",
    "inspect": "spq_graph.jobs.inspect",
    "load_recipe": "spq_graph.documents.recipe",
    "merge": "spq_graph.jobs.calibrate",
    "plan": "spq_graph.jobs.plan",
    "quantize": "spq_graph.jobs.quantize",
    "verify": "spq_graph.jobs.verify",
}

_root = Path(__file__).resolve().parent.parent
if not (Path(__file__).parent / "passes").is_dir() and (_root / "pyproject.toml").is_file():
    # A checkout without symbolic links (Windows): passes, runtime and models lie beside this package.
    __path__.append(str(_root))


def __getattr__(name: str) -> object:
    """What a program calls, imported when it is asked for: every verb imports this package, none needs all of it."""
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """The names to be imported, beside what every module has."""
    return sorted({*globals(), *__all__})

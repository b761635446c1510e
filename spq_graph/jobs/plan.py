"""A plan from measured ranges."""

from __future__ import annotations

from pathlib import Path

from spq_graph.decisions.choices import refuse_unfit_patterns
from spq_graph.documents import artifact
from spq_graph.documents.interrupts import completed, held
from spq_graph.documents.plan import Plan
from spq_graph.documents.ranges import Ranges, json_file
from spq_graph.documents.recipe import Recipe
from spq_graph.workbench.data import calibration_data, check_measured, refuse_foreign
from spq_graph.workbench.opening import Openable, Opening
from spq_graph.workbench.planning import make_plan
from spq_graph.workbench.prefixing import footing
from spq_graph.workbench.steps import Steps


def plan(
    model: Openable,
    out: str | Path,
    recipe: Recipe | None = None,
    *,
    ranges: Ranges | str | Path,
    calibration: str | Path | None = None,
    steps: Steps | None = None,
) -> Plan:
    """Decide from measured ranges, and write the plan to `out`.

    Args:
        model: what the ranges were measured on.
        out: the file to write.
        recipe: what is wanted; None for the defaults.
        ranges: what `calibrate` measured, or its file.
        calibration: what to measure decisions on; without, sites are chosen by their ratio.
        steps: times and shows what is done.

    Raises:
        SpqError: as `quantize`.
    """
    opening, out, recipe = Opening.of(model), Path(out), recipe or Recipe()
    files = (*opening.inputs, calibration, None if isinstance(ranges, Ranges) else json_file(Path(ranges)))
    artifact.check_file(out, inputs=tuple(p for f in files if f is not None and (p := Path(f)).is_file()))
    known = Ranges.of(ranges)  # what cannot be read is said before anything that takes long
    check_measured(opening.resolve(), calibration)
    with opening.open(steps, targets=(recipe.target,)) as bench:
        refuse_unfit_patterns(bench.found.every, recipe)
        refuse_foreign(bench, known, ranges)
        tokens = recipe.calibration_tokens
        if bench.logits.output is None and calibration is not None:
            bench.steps.remark(f"{bench.logits.words}; sites are chosen by their ratio")
        data = calibration_data(bench, calibration, tokens) if calibration is not None else None
        on = footing(bench, recipe, known, data)
        made = make_plan(bench, recipe, recipe.bits, known, data, on)
    with held():
        made.save(out)
        completed(f"{out} is complete")
    return made

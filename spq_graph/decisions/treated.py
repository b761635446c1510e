"""What a plan says of every remedy that it was decided with. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from spq_graph.decisions import branches as peel
from spq_graph.decisions import smoothing as smooth
from spq_graph.decisions.branches import Branches
from spq_graph.decisions.choices import Choice
from spq_graph.documents.recipe import Recipe
from spq_graph.documents.remedies import Wanted
from spq_graph.documents.treatment import Cause, Treatment
from spq_graph.remedies.smooth import Scales
from spq_graph.terms.absorber import Absorbers


def treated(
    choices: Mapping[str, Choice], recipe: Recipe, absorbers: Absorbers | None, scales: Scales, branches: Branches
) -> list[Treatment]:
    """Treatments as a plan lists them: smoothing first, which branches come on top of.

    Args:
        choices: every site, by key.
        recipe: what is wanted of each remedy.
        absorbers: what takes factors of channels; None where nothing was to be smoothed.
        scales: what was settled, by activation value.
        branches: likewise.
    """
    remedies = recipe.remedies
    found = peel.treatments(choices.values(), branches, _cause(remedies.peel.use))
    if absorbers is None:
        return found
    return smooth.treatments(choices, scales, absorbers, branches, _cause(remedies.smooth.use)) + found


def _cause(use: Wanted) -> Cause:
    return Cause.OVERRIDE if use == "always" else Cause.BUDGET

"""What `quantize` is asked for, as one value: what is carried out and what is forecast cannot differ."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from spq_graph.decisions.choices import refuse_unfit_patterns
from spq_graph.documents import artifact
from spq_graph.documents.recipe import Recipe
from spq_graph.models.stand_in import StandIn
from spq_graph.terms.errors import UsageError
from spq_graph.terms.rows import Extent
from spq_graph.terms.site import Role, Site
from spq_graph.workbench.companions import check_companions
from spq_graph.workbench.data import Data, Given, read
from spq_graph.workbench.opening import Opening
from spq_graph.workbench.planning import widths_of
from spq_graph.workbench.steps import Steps
from spq_graph.workbench.workbench import Workbench


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be quantized, how, and measured on what.

    Attributes:
        opening: the model.
        out: the folder to write.
        recipe: what is wanted.
        data: what is measured on.
        ladder: whether to measure the ladder, where there is a text to measure it on; "short" or "full" says how much.
        ladder_bits: bit widths that get rows in the ladder beside the recipe's.
        force: replace an earlier OUT.
        bench: whether to time what was made beside its source.
    """

    opening: Opening
    out: Path
    recipe: Recipe
    data: Data
    ladder: bool | str = True
    ladder_bits: tuple[int, ...] = ()
    force: bool = False
    bench: bool = True

    @property
    def widths(self) -> tuple[int, ...]:
        """Bit widths to decide at, each once; OUT holds the first.

        Raises:
            UsageError: one of them is not legal.
        """
        return widths_of(self.recipe, self.ladder_bits)

    @property
    def extent(self) -> Extent | None:
        """How much of the ladder to measure; None for nothing.

        Raises:
            UsageError: there is no ladder of that name.
        """
        return Extent.of(self.ladder)

    def check(self) -> None:
        """Refuse what can be known to be wrong before the model is opened.

        Raises:
            UsageError: a width is not legal, there is no such ladder, OUT would replace an input, or the data does not
                fit together.
            OutputError: OUT must not or cannot be written.
            SourceError: the model or a file of the data is not there.
        """
        widths_of(self.recipe, self.ladder_bits)
        Extent.of(self.ladder)
        artifact.check_out(self.out, force=self.force, inputs=(*self.data.inputs, *self.opening.inputs))
        source = self.opening.resolve()
        self.data.check(source)
        check_companions(source)

    @contextmanager
    def begun(self, steps: Steps, stand_in: StandIn | None = None) -> Iterator[tuple[Workbench, Given]]:
        """The model, opened, and what of the data was given, read: everything that shows before calibration.

        What shows before the model is opened, `check` refuses.

        Args:
            steps: times and shows what is done.
            stand_in: what is opened in place of a folder or GGUF; what only the export shows is not looked at then.

        Raises:
            SpqError: as `Opening.open`; a pattern fits no site; or data cannot be read, or does not belong to this
                model.
        """
        with self.opening.open(steps, targets=(self.recipe.target,), stand_in=stand_in) as bench:
            if stand_in is None:
                refuse_unfit_patterns(bench.found.every, self.recipe)
            yield bench, read(bench, self.data, self.recipe, ladder=self.extent is not None)

    def stand_in(self) -> StandIn | None:
        """What stands in for a folder or GGUF; None where its export alone tells whether ranges and patterns fit it."""
        source = self.opening.resolve()
        if source.kind == "onnx" or source.base is not None or self.data.ranges is not None:
            return None
        found = StandIn.of(source.path, tokenizer=source.tokenizer is None and self.data.reads_text)
        return found if found is not None and self._fits(found) else None

    def _fits(self, found: StandIn) -> bool:
        """Whether what the recipe sets by hand is known to be there."""
        sites = [
            Site(key=key, node=key, role=Role.OTHER, layer=None, shape=shape, input="")
            for key, shape in found.named.items()
        ]
        try:
            refuse_unfit_patterns(sites, self.recipe)
        except UsageError:
            return False
        return True

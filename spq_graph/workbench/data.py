"""What a model is measured on: calibration data, or text of its own, and never the text that it is judged by."""

from __future__ import annotations

import filecmp
import math
import os
from dataclasses import dataclass
from pathlib import Path

from spq_graph.decisions.enough import tokens_to_evaluate
from spq_graph.documents.content import refuse_special
from spq_graph.documents.ranges import UNSEALED, Ranges
from spq_graph.documents.recipe import CALIBRATION_TOKENS, Recipe
from spq_graph.models.source import Source, embedded_text
from spq_graph.runtime.text.named_sets import NamedSet, fetched, nearest
from spq_graph.runtime.text.reading import check_readable
from spq_graph.runtime.text.sequences import Sequences
from spq_graph.terms.errors import DataError, SourceError, UsageError
from spq_graph.workbench.sampled import sampled
from spq_graph.workbench.workbench import Workbench


@dataclass(frozen=True, slots=True)
class Data:
    """What a model is measured on. Files are text, JSON, JSON lines, Parquet, or .npz of input_ids.

    For a file the name of a data set may stand: `wikitext-2`, `ultrachat:2000`, `hf://datasets/ORG/NAME:SPLIT`.

    Attributes:
        calibration: what ranges and decisions are measured on; None for text sampled from the model itself. How much of
            it, from which seed, and whether as conversations, the recipe says.
        ranges: what `calibrate` measured of this model, or its file; sites are then chosen by KL only with
            `calibration`. None to measure them.
        text: what the ladder is measured on, never the calibration data; None for the embedded text with "reference",
            and for no ladder with any other model.
        max_eval_tokens: limit of the text; None for what suits the model's size, see `tokens_to_evaluate`.
    """

    calibration: str | Path | None = None
    ranges: Ranges | str | Path | None = None
    text: str | Path | None = None
    max_eval_tokens: int | None = None

    @property
    def inputs(self) -> tuple[Path, ...]:
        """The files that are read, as far as they exist."""
        given = (self.calibration, self.text, self.ranges)
        return tuple(path for place in given if isinstance(place, str | Path) and (path := Path(place)).exists())

    @property
    def reads_text(self) -> bool:
        """Whether something that was given becomes tokens only by the model's tokenizer."""
        return any(Path(given).suffix != ".npz" for given in (self.calibration, self.text) if given is not None)

    def check(self, source: Source) -> None:
        """Refuse what can be known to be wrong before the model is opened.

        Raises:
            SourceError: a file is not there, or is none: texts and ids are read more than once.
            DataError: a file cannot be read.
            UsageError: text without a tokenizer, or one file to calibrate and to evaluate on.
        """
        calibration = data_file(self.calibration) if self.calibration is not None else None
        text = data_file(self.text, judged=True) if self.text is not None else None
        check_measured(source, calibration, text)
        if self.ranges is not None:
            Ranges.of(self.ranges)
        if text is not None and calibration is not None and filecmp.cmp(text, calibration, shallow=False):
            raise UsageError(
                "the evaluation text is the calibration data, so its figures would flatter",
                where=str(text),
                remedy="evaluate on another text",
            )


def data_file(given: str | Path, *, judged: bool = False) -> Path:
    """The file that is meant: itself, or that with the rows of a set that is named, which is fetched where need be.

    Args:
        given: a file, or the name of a set as `NamedSet` has them; a file of that name goes first.
        judged: whether the model is judged by it, of which known sets have a split.

    Raises:
        SpqError: as `fetched`.
    """
    named = NamedSet.of(str(given)) if not os.path.lexists(given) else None
    if named is None:
        return Path(given)
    return fetched(named.for_judging() if judged else named, str(given))


def check_measured(source: Source, *files: str | Path | None) -> None:
    """Refuse files of text or ids that cannot be read, as far as that shows before the model is opened.

    Args:
        source: the model.
        files: what it is to be measured on; None for what was not given.

    Raises:
        SourceError: a file is not there.
        DataError: a file cannot be read, or the model's chat template does not take a conversation of it; asked where
            opening the model takes long, since reading it follows otherwise.
        UsageError: text without a tokenizer.
    """
    for path in (data_file(file) for file in files if file is not None):
        refuse_special(path)
        if not path.is_file():
            near = nearest(str(path))
            raise SourceError(
                "no such file" + (f", and no data set of this name: did you mean {near}?" if near else ""),
                where=str(path),
                remedy="check the spelling and the folder that the command runs in",
            )
        if path.suffix != ".npz" and source.tokenizer is None and source.kind != "gguf":
            raise UsageError("text needs a tokenizer", where=str(path), remedy="pass --tokenizer DIR, or ids as .npz")
        if source.kind != "onnx":
            check_readable(path, source.tokenizer)


@dataclass(frozen=True, slots=True)
class Given:
    """What of `Data` was given, as far as it can be read before anything that takes long.

    Attributes:
        text: what the ladder is measured on; None for no ladder.
        ranges: what was measured of this model before; None to measure them.
        calibration: the data that was named; None where none was.
    """

    text: Sequences | None
    ranges: Ranges | None
    calibration: Sequences | None


def read(bench: Workbench, data: Data, recipe: Recipe, *, ladder: bool) -> Given:
    """Read what was given, and refuse what does not fit together.

    Args:
        bench: the model that is to be measured.
        data: what was given.
        recipe: says how much of the calibration data is read.
        ladder: whether there will be one; without, its text is not read.

    Raises:
        DataError: something cannot be read, or the ranges are another model's.
        UsageError: the text holds sequences of the calibration data.
    """
    if bench.logits.output is None:
        bench.steps.remark(f"{bench.logits.words}; sites are chosen by their ratio, and no accuracy is measured")
    text = _text(bench, data) if ladder and bench.logits.output is not None else None
    ranges = None
    if data.ranges is not None:
        ranges = Ranges.of(data.ranges)
        refuse_foreign(bench, ranges, data.ranges)
    named = data.calibration is not None
    calibration = calibration_data(bench, data.calibration, recipe.calibration_tokens) if named else None
    if calibration is not None:
        _refuse_overlap(text, calibration)
    return Given(text, ranges, calibration)


def refuse_foreign(bench: Workbench, ranges: Ranges, given: Ranges | str | Path) -> None:
    """Refuse ranges of another model, and such as lack a site; tell of those that nothing seals.

    Args:
        bench: the model.
        ranges: that were measured before.
        given: themselves, or the file that they come from, which is then named.

    Raises:
        DataError: they were measured on another model, or say nothing of a site of this one.
    """
    where = bench.source.origin if isinstance(given, Ranges) else str(given)
    if ranges.model_digest != bench.digest:
        remedy = "run `spq-graph calibrate` on this one"
        raise DataError("these ranges were measured on another model", where=where, remedy=remedy)
    ranges.refuse_lacking(bench.found.sites, where)
    if not ranges.sealed:
        bench.steps.remark(f"{where}: {UNSEALED}")


def _text(bench: Workbench, data: Data) -> Sequences | None:
    path = data_file(data.text, judged=True) if data.text is not None else embedded_text(str(bench.source.path))
    if path is None:
        return None
    if data.max_eval_tokens is not None:
        return bench.sequences(path, max_tokens=data.max_eval_tokens, judged=True)
    limit = tokens_to_evaluate(_weights(bench))
    text = bench.sequences(path, max_tokens=limit + bench.sequence_length, judged=True)
    if text.tokens <= limit:
        return text
    text = text.take(limit)
    bench.steps.remark(
        f"the ladder is measured on the first {text.tokens:,} tokens of {path.name}, which suit a model of this size; "
        "--max-eval-tokens says how many"
    )
    return text


def _weights(bench: Workbench) -> int:
    """Numbers of all products of the model, whatever is open in its place."""
    if bench.stand_in is not None:
        return bench.stand_in.sizes.weights
    return sum(math.prod(site.shape) for site in bench.found.sites)


def measured(bench: Workbench, given: Given, recipe: Recipe) -> tuple[Ranges, Sequences | None]:
    """Ranges, and what to measure decisions on; None for that where ranges were given and no data.

    Raises:
        UsageError: the text holds sequences that were sampled from the model.
        ActivationError: an activation is NaN or infinite, named by site.
    """
    if given.ranges is not None:
        return given.ranges, given.calibration
    sequences = given.calibration
    if sequences is None:
        sequences = sampled(bench, recipe.tokens_asked, recipe.seed, chat=recipe.sample_chat)
        _refuse_overlap(given.text, sequences)
    return bench.calibrate(sequences), sequences


def calibration_data(
    bench: Workbench, calibration: str | Path | None, tokens: int | None = None, seed: int = 0, *, chat: bool = True
) -> Sequences:
    """The calibration data that was named, or text sampled from the model.

    Args:
        bench: the model.
        calibration: text, JSON, JSON lines, Parquet, .npz of input_ids, or a set by name; None to sample.
        tokens: how much of it; None for a recipe's default, or for as much sampled text as settles ranges.
        seed: of the sampling.
        chat: whether conversations are sampled where the model has a chat template.

    Raises:
        DataError: the data cannot be read.
    """
    if calibration is not None:
        return bench.sequences(data_file(calibration), max_tokens=tokens or CALIBRATION_TOKENS)
    return sampled(bench, tokens, seed, chat=chat)


def _refuse_overlap(text: Sequences | None, calibration: Sequences) -> None:
    if text is None:
        return
    seen = {row.tobytes() for row in calibration.ids}
    common = sum(row.tobytes() in seen for row in text.ids)
    if common:
        raise UsageError(
            f"{common} sequences of the evaluation text are calibration data, so its figures would flatter",
            where=text.origin,
            remedy="evaluate on another text",
        )

"""Outliers of one prompt and the weights that make them, as words and tables that fit 80 columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from rich.console import Console
from rich.table import Table
from rich.text import Text

from spq_graph.decisions.outliers import MASSIVE, MASSIVE_TO_MEDIAN, MOST_ZEROED, SPIKE, TAU
from spq_graph.documents.outliers import DownOutliers, Outliers, Peak, SuperWeight
from spq_graph.views import cells, words

_TOKEN_WIDTH = 10
_PROMPT_WIDTH = 50


def show_outliers(found: Outliers, console: Console) -> None:
    """Print what `find_outliers` found; that there is nothing is said, too."""
    _say(console, _heading(found))
    if not found.downs:
        _say(console, "no GLU down projection is among these sites, and outliers are sought there")
        return
    if found.super_weights:
        console.print(_super_weights(found))
        _say(console, "left, KL: with it and those above at zero, what the site gives, and nats a token", "dim")
    else:
        _say(console, _no_super_weight(found))
    for spike in found.unexplained:
        place = _at(found, spike.position)
        told = f"{spike.key} gives {words.number(spike.spike)} in channel {spike.channel}{place}, and {spike.why}"
        _say(console, told)
    if not found.complete:
        _say(console, f"spikes are left: no more than {MOST_ZEROED} weights are zeroed", "yellow")
    extreme = [one for one in found.downs if _systematic(one.input) or _systematic(one.output)]
    if extreme:
        console.print(_table(found, extreme))
        _say(console, f"outlier: over {TAU:,.0f} x mean; column: that of the weight with the largest max / mean", "dim")
    else:
        _say(console, f"no systematic outlier: nothing is over {TAU:,.0f} x its mean |value|")
    for line in _streams(found):
        _say(console, line)


def _say(console: Console, text: str, style: str = "") -> None:
    console.print(Text(words.printable(text), style, overflow="fold"), highlight=False)


def _heading(found: Outliers) -> str:
    count = f"{len(found.tokens)} tokens"
    left_out = f", without {found.left_out:,} more" if found.left_out else ""
    told = f' of "{words.clipped(found.prompt, _PROMPT_WIDTH)}"' if found.prompt is not None else ""
    return f"outliers on {count}{told}{left_out}"


def _no_super_weight(found: Outliers) -> str:
    rule = f"gives more than {SPIKE:g} and {MASSIVE_TO_MEDIAN:,.0f} x its median |value|"
    peaks = [(one, one.output) for one in found.downs if one.output is not None]
    if found.unexplained or not peaks:
        return "no super weight was found"
    one, peak = max(peaks, key=lambda entry: abs(entry[1].value))
    return (
        f"no super weight: no down projection {rule}; the largest, {one.key}, gives {words.number(peak.value)}, "
        f"{words.number(peak.to_median)} x"
    )


def _super_weights(found: Outliers) -> Table:
    table = cells.table("super weight", "row, column", "weight", "spike", "token", "makes", "left", "KL")
    for one in found.super_weights:
        table.add_row(
            cells.name(_place(one)),
            f"{one.row}, {one.column}",
            words.number(one.weight),
            words.number(one.spike),
            _token(found, one),
            f"{one.share:.0%}",
            words.number(one.after),
            words.number(one.kl),
        )
    return table


def _token(found: Outliers, one: SuperWeight) -> Text:
    if one.position is None:
        return Text(words.NOTHING)
    token = found.tokens[one.position]
    return Text(words.clipped(words.token_words(token.id, token.text), _TOKEN_WIDTH))


def _place(one: DownOutliers | SuperWeight) -> str:
    """A down projection by its layer, of which a layer has one; an expert's by its key."""
    return one.key if one.layer is None or one.expert is not None else f"layer {one.layer}"


def _table(found: Outliers, some: Sequence[DownOutliers]) -> Table:
    table = cells.table("outliers in", "takes", "x mean", "ch.", "gives", "x mean", "ch.", "column")
    for one in some:
        column = words.NOTHING
        if one.column is not None:
            column = f"{one.column.channel} ({words.number(one.column.ratio)} x)"
        table.add_row(cells.name(_place(one)), *_peak(one.input), *_peak(one.output), column)
    return table


def _peak(peak: Peak | None) -> Iterable[Text]:
    if peak is None:
        return [Text(words.NOTHING)] * 3
    style = "bold red" if peak.systematic else ""
    return Text(words.number(peak.value), style), Text(words.number(peak.to_mean), style), Text(str(peak.channel))


def _systematic(peak: Peak | None) -> bool:
    return peak is not None and peak.systematic


def _streams(found: Outliers) -> Iterable[str]:
    """What of the residual stream is massive, channel by channel."""
    behind = [(one.layer, one.residual) for one in found.downs if one.residual is not None]
    massive = [(layer, peak) for layer, peak in behind if peak.massive]
    rule = f"over {MASSIVE:g} and {MASSIVE_TO_MEDIAN:,.0f} x the median |value|"
    if not behind:
        yield "which value is the residual stream is not known here, so nothing is told of massive activations"
    elif not massive:
        yield f"no massive activation: nothing in the residual stream is {rule}"
    for channel in dict.fromkeys(peak.channel for _, peak in massive):
        some = [(layer, peak) for layer, peak in massive if peak.channel == channel]
        largest = max((peak for _, peak in some), key=lambda peak: abs(peak.value))
        layers = _stretches([layer for layer, _ in some if layer is not None])
        yield (
            f"massive activation ({rule}): channel {channel} of the residual stream behind {layers}, "
            f"{words.number(largest.value)} at most, {words.number(largest.to_median)} x{_at(found, largest.position)}"
        )


def _at(found: Outliers, position: int | None) -> str:
    if position is None:
        return ""
    token = found.tokens[position]
    return f" on {words.token_words(token.id, token.text)} at {position}"


def _stretches(layers: Sequence[int]) -> str:
    """Layers in words, such as "layers 11 to 27 and 29"."""
    if not layers:
        return "some layer"
    ends = [0, *(at for at, (a, b) in enumerate(pairwise(layers), 1) if b != a + 1), len(layers)]
    parts = [layers[start:end] for start, end in pairwise(ends)]
    told = [str(part[0]) if len(part) == 1 else f"{part[0]} to {part[-1]}" for part in parts]
    said = " and ".join(filter(None, [", ".join(told[:-1]), told[-1]]))
    return f"layer{'' if len(layers) == 1 else 's'} {said}"

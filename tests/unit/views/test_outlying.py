"""Outliers in the terminal: within 80 columns, names as text, and nothing found is said, too."""

from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console

from spq_graph.documents.outliers import Column, DownOutliers, Outliers, Peak, PromptToken, SuperWeight, Unexplained
from spq_graph.views.outlying import show_outliers
from tests.support.samples import HOSTILE

PEAK = Peak(2996.0, 0, 1229, 7476.1, 21500.0, systematic=True, massive=True)
CALM = Peak(8.25, 1, 3, 25.0, 40.0, systematic=False, massive=False)


def down(layer: int, peak: Peak, stream: Peak | None, unread: str | None = None) -> DownOutliers:
    column = Column(1487, 197.6) if unread is None else None
    return DownOutliers(f"model.layers.{layer}.mlp.down_proj", layer, None, peak, peak, stream, column, unread)


def found(word: str = "Apple") -> Outliers:
    return Outliers(
        prompt=f"{word} is",
        tokens=[PromptToken(39080, word), PromptToken(314, " is")],
        left_out=0,
        downs=[down(10, CALM, CALM), down(11, PEAK, PEAK), *(down(n, CALM, PEAK) for n in (12, 13, 15))],
        super_weights=[
            SuperWeight(
                key="model.layers.11.mlp.down_proj",
                layer=11,
                expert=None,
                row=507,
                column=1229,
                weight=5.876,
                spike=24021.9,
                position=0,
                share=0.733,
                after=6418.0,
                kl=5.86,
            )
        ],
        runs=2,
    )


def shown(outliers: Outliers) -> str:
    console = Console(file=io.StringIO(), width=80)
    show_outliers(outliers, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= 80
    return str(text)


def words_of(outliers: Outliers) -> str:
    return " ".join(shown(outliers).split())


GOLDEN = """\
outliers on 2 tokens of "Apple is"

 super weight row, column weight  spike token makes  left   KL
 ─────────────────────────────────────────────────────────────
 layer 11       507, 1229   5.88 24,022 Apple   73% 6,418 5.86

left, KL: with it and those above at zero, what the site gives, and nats a token

 outliers in takes x mean  ch. gives x mean  ch.       column
 ────────────────────────────────────────────────────────────
 layer 11    2,996  7,476 1229 2,996  7,476 1229 1487 (198 x)

outlier: over 1,000 x mean; column: that of the weight with the largest max /
mean
massive activation (over 100 and 1,000 x the median |value|): channel 1229 of
the residual stream behind layers 11 to 13 and 15, 2,996 at most, 21,500 x on
Apple at 0
"""


def lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines()]


def test_what_is_found_is_shown() -> None:
    assert lines(shown(found())) == lines(GOLDEN)


def test_that_nothing_is_found_is_said() -> None:
    calm = replace(found(), downs=[down(0, CALM, CALM), down(1, replace(CALM, value=-9.0), CALM)], super_weights=[])
    assert words_of(calm).endswith(
        "no super weight: no down projection gives more than 50 and 1,000 x its median |value|; the largest, "
        "model.layers.1.mlp.down_proj, gives -9.00, 40.0 x "
        "no systematic outlier: nothing is over 1,000 x its mean |value| "
        "no massive activation: nothing in the residual stream is over 100 and 1,000 x the median |value|"
    )
    assert "no GLU down projection is among these sites" in words_of(replace(calm, downs=[]))


def test_what_is_not_known_is_said() -> None:
    why = "its weight is quantized (MatMulNBits)"
    spike = Unexplained("model.layers.11.mlp.down_proj", 11, -2996.0, 0, 507, why)
    kept = replace(found(), downs=[down(11, PEAK, None, why)], super_weights=[], unexplained=[spike])
    text = words_of(kept)
    assert "no super weight was found" in text
    assert f"down_proj gives -2,996 in channel 507 on Apple at 0, and {why}" in text
    assert "which value is the residual stream is not known here" in text
    assert "1229 –" in text, "the column of a weight that is not read"
    assert "spikes are left: no more than 16" in words_of(replace(kept, complete=False))


def test_experts_are_named_and_their_rows_have_no_token() -> None:
    peak = replace(PEAK, position=None)
    expert = replace(down(2, peak, None), key="model.layers.2.mlp.experts.5.down_proj", expert=5)
    one = replace(found().super_weights[0], key=expert.key, layer=2, expert=5, position=None)
    text = words_of(replace(found(), downs=[expert], super_weights=[one]))
    assert text.replace(" ", "").count("experts.5") == 2
    silent = replace(expert, input=None, output=None)
    assert "no super weight" in words_of(replace(found(), downs=[silent], super_weights=[]))


def test_token_ids_and_what_was_left_out() -> None:
    ids = replace(found(), prompt=None, tokens=[PromptToken(7, None), PromptToken(9, None)], left_out=1200)
    assert "outliers on 2 tokens, without 1,200 more" in words_of(ids)
    assert "#7" in words_of(ids)


def test_names_are_text() -> None:
    outliers = found(HOSTILE)
    site = replace(outliers.downs[1], key=HOSTILE, layer=None)
    spike = Unexplained(HOSTILE, None, 99.0, 0, 1, HOSTILE)
    text = shown(replace(outliers, downs=[site], unexplained=[spike]))
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "[red]" in text

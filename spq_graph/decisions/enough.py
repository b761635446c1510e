"""Whether data is enough: for a range to mean something, for a ladder to be worth its time. Pure, as `decide` is."""

from __future__ import annotations

import math

LEAST_TOKENS = 512
# What a row of the ladder may take by default, in multiplications, and the fewest and the most tokens that it is
# measured on: with fewer a perplexity's standard error is more than a few per cent, and with more little is gained.
ROW_PRODUCTS = 1 << 40
FEWEST_EVALUATED, MOST_EVALUATED = 1 << 12, 1 << 16


def tokens_to_evaluate(weights: int) -> int:
    """How many tokens of a text the ladder is measured on where nobody says, a power of two.

    As many as cost about 2^40 multiplications a row: 65,536 for models of up to 16 million weights, 8,192 for 134
    million, and 4,096, the fewest, from 200 million on.

    Args:
        weights: that a token is multiplied with, in all products of the model.
    """
    tokens: int = 2 ** round(math.log2(ROW_PRODUCTS / max(1, weights)))
    return min(max(tokens, FEWEST_EVALUATED), MOST_EVALUATED)


def too_few(tokens: int, window: int = 0) -> str | None:
    """What speaks against so little calibration data; None where it suffices.

    A range is a maximum over tokens: spikes come at few places (the first token, delimiters), which a few hundred
    tokens may not hold, and places behind the data's end were never seen.

    Args:
        tokens: how many were run.
        window: tokens in one full sequence of the model, as far as that is known.
    """
    least = max(LEAST_TOKENS, window)
    if tokens >= least:
        return None
    why = "one full sequence of this model" if window > LEAST_TOKENS else "the fewest that a range can be read from"
    return (
        f"calibrated on {tokens:,} tokens only, fewer than {least:,} ({why}): spikes on tokens and at places that were "
        f"not among them are not known; calibrate on {least:,} or more"
    )

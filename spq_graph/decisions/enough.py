"""Whether there is enough calibration data for a range to mean something. Pure, as `decide` is."""

from __future__ import annotations

LEAST_TOKENS = 512


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

"""Data sets of the Hugging Face Hub through `datasets`: from its cache alone, and whether the Hub can be asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_SECONDS = 5.0  # that the Hub may take to answer at all


@contextmanager
def from_cache_alone() -> Iterator[None]:
    """Have `datasets` look into its cache and nowhere else: without a network it would try for half a minute first."""
    import datasets

    before, said = datasets.config.HF_HUB_OFFLINE, datasets.utils.logging.get_verbosity()
    datasets.config.HF_HUB_OFFLINE = True
    datasets.utils.logging.set_verbosity_error()  # it warns of every set that it takes from there
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before
        datasets.utils.logging.set_verbosity(said)


def is_absent(error: Exception) -> bool:
    """Whether an error of `datasets` says that its cache does not have what was asked for."""
    words = ("Couldn't find cache for", "There are multiple")  # of another configuration, or of several
    return isinstance(error, ConnectionError) or (isinstance(error, ValueError) and str(error).startswith(words))


def why_unreachable() -> str | None:
    """Why the Hub cannot be asked, in words; None where it answers."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        get_session().head(constants.ENDPOINT, timeout=_SECONDS)
    except Exception as error:  # those of whatever client of HTTP is below it
        return (str(error).splitlines() or [type(error).__name__])[0][:200]
    return None

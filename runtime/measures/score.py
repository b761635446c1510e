"""What a model scores on a text, and how far that may be from what it would score on all text of its kind."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

_LARGEST = sys.float_info.max


@dataclass(slots=True)
class Score:
    """Sums over predicted tokens, and over those of each window.

    Standard errors are clustered by window: tokens of one window share their context, so that what a model makes of
    them goes together, and an error that takes them for independent is too small by a factor of its own for each text.
    For the mean m = S / N of sums s_w over the n_w tokens of each of W windows it is

        se(m) = sqrt(W / (W - 1) * sum_w (s_w - n_w m)^2) / N

    and for perplexity, by the delta method, exp(m) se(m). Windows of one document are taken for independent. One window
    alone tells nothing of how windows differ: the error is then not known, and None.

    Attributes:
        tokens: how many tokens were predicted.
        nll_sum: negative log likelihood, nats.
        kl_sum: KL(reference || model) over the next-token distributions, nats.
        agreed: tokens where model and reference rank the same token first.
        windows: by number of the window: its tokens, and its part of `nll_sum` and of `kl_sum`.
    """

    tokens: int = 0
    nll_sum: float = 0.0
    kl_sum: float = 0.0
    agreed: int = 0
    windows: dict[int, tuple[int, float, float]] = field(default_factory=dict)

    def add(
        self,
        windows: npt.NDArray[np.int64],
        nll: npt.NDArray[np.floating] | None = None,
        kl: npt.NDArray[np.floating] | None = None,
        agreed: int = 0,
    ) -> None:
        """Add tokens.

        Args:
            windows: the number of each token's window, int64 [tokens].
            nll: of each token, nats, floating [tokens]; None where it is not asked for.
            kl: alike.
            agreed: how many of them model and reference agree on.
        """
        none = np.zeros(len(windows))
        nll, kl = none if nll is None else nll, none if kl is None else kl
        self.tokens += len(windows)
        self.nll_sum += float(nll.sum())
        self.kl_sum += float(kl.sum())
        self.agreed += agreed
        for window in np.unique(windows).tolist():
            its = windows == window
            tokens, before, kl_before = self.windows.get(window, (0, 0.0, 0.0))
            sums = before + float(nll[its].sum()), kl_before + float(kl[its].sum())
            self.windows[window] = (tokens + int(its.sum()), *sums)

    @property
    def nll(self) -> float:
        """Mean negative log likelihood, nats a token."""
        return self.nll_sum / self.tokens

    @property
    def perplexity(self) -> float:
        """exp(nll), at most e^700: a report holds finite numbers."""
        return math.exp(min(self.nll, 700.0))

    @property
    def kl(self) -> float:
        """Mean KL(reference || model), nats a token."""
        return self.kl_sum / self.tokens

    @property
    def top1(self) -> float:
        """Share of tokens where model and reference rank the same token first."""
        return self.agreed / self.tokens

    @property
    def nll_stderr(self) -> float | None:
        """Standard error of `nll`, nats a token; None of one window."""
        return self._clustered([(tokens, nll) for tokens, nll, _ in self.windows.values()], self.nll)

    @property
    def perplexity_stderr(self) -> float | None:
        """Standard error of `perplexity`; None of one window."""
        error = self.nll_stderr
        return None if error is None else min(self.perplexity * error, _LARGEST)

    @property
    def kl_stderr(self) -> float | None:
        """Standard error of `kl`, nats a token; None of one window."""
        return self._clustered([(tokens, kl) for tokens, _, kl in self.windows.values()], self.kl)

    def _clustered(self, sums: list[tuple[int, float]], mean: float) -> float | None:
        count = len(sums)
        if count < 2:
            return None
        spread = math.fsum((total - tokens * mean) ** 2 for tokens, total in sums)
        return math.sqrt(count / (count - 1) * spread) / self.tokens

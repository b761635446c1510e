"""What is extreme in a model on one prompt, and which weights make it, as a program gets it and as --json prints it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Peak:
    """The element of an activation, [tokens, channels], that is farthest from zero.

    Attributes:
        value: the element.
        position: of its token in the prompt, from 0; None of an expert, whose rows are not the prompt's tokens.
        channel: its channel.
        to_mean: |value| over the mean |element|; None where all are 0.
        to_median: |value| over the median |element|; None where that is 0.
        systematic: whether it is an outlier as `decisions.outliers` takes that from Systematic Outliers.
        massive: whether it is a massive activation.
    """

    value: float
    position: int | None
    channel: int
    to_mean: float | None
    to_median: float | None
    systematic: bool
    massive: bool


@dataclass(frozen=True, slots=True)
class Column:
    """The weights that read one channel, where the largest |weight| is farthest from their mean |weight|."""

    channel: int
    ratio: float


@dataclass(frozen=True, slots=True)
class DownOutliers:
    """What one down projection of a GLU takes, gives, and leaves in the residual stream.

    Attributes:
        key: of the site; layer, expert: its numbers.
        input: of what it takes; None of an expert that no token was routed to, and where a file has no such value.
        output: of what it gives, alike.
        residual: of the stream behind it; None where nothing tells which value that is.
        column: of its weight; None where that cannot be read.
        unread: why the weight cannot be read; None where it can.
    """

    key: str
    layer: int | None
    expert: int | None
    input: Peak | None
    output: Peak | None
    residual: Peak | None
    column: Column | None
    unread: str | None = None


@dataclass(frozen=True, slots=True)
class SuperWeight:
    """One weight that makes a spike.

    Attributes:
        key: of the site; layer, expert: its numbers.
        row, column: channel of what the site gives, and of what it takes: the coordinate in a weight [out, in].
        weight: the number there.
        spike: the value that it makes most of; position: of its token.
        share: of the spike that the weight's own product is.
        after: the value farthest from zero that the site gives with this weight, and those before it, at zero.
        kl: of what the model then says of the prompt, nats a token; None where it gives no logits.
    """

    key: str
    layer: int | None
    expert: int | None
    row: int
    column: int
    weight: float
    spike: float
    position: int | None
    share: float
    after: float
    kl: float | None


@dataclass(frozen=True, slots=True)
class Unexplained:
    """A spike that no one weight was found for, and why."""

    key: str
    layer: int | None
    spike: float
    position: int | None
    channel: int
    why: str


@dataclass(frozen=True, slots=True)
class PromptToken:
    """A token of the prompt; its text is None without a tokenizer."""

    id: int
    text: str | None


@dataclass(frozen=True, slots=True)
class Outliers:
    """Outliers of a model on one prompt.

    Attributes:
        prompt: its text; None where it was given as token ids.
        tokens: those that were run.
        left_out: how many more the prompt has, which were not.
        downs: the down projections that were looked at, in the order of the graph.
        super_weights: in the order in which they were found.
        unexplained: spikes without one.
        runs: how often the model was run.
        complete: whether no spike was left to look at.
    """

    prompt: str | None
    tokens: Sequence[PromptToken]
    left_out: int
    downs: Sequence[DownOutliers]
    super_weights: Sequence[SuperWeight] = field(default=())
    unexplained: Sequence[Unexplained] = field(default=())
    runs: int = 1
    complete: bool = True

    def to_dict(self) -> dict[str, Any]:
        """What stands below `outliers` in `inspect --json`."""
        return asdict(self)

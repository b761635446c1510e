"""How a rule came to its result: what was measured, on how much, and what was reached."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from spq_graph.documents.strict import Strict


class Search(Strict):
    """How the rule came to its result."""

    rule: Literal["auto", "ratio", "none"] = Field(description="how sites were chosen: by measured KL, or by ratio")
    candidates: int = Field(0, description="sites whose ratio made them candidates")
    evaluations: int = Field(0, description="choices of precisions that were measured")
    tokens: int = Field(0, description="tokens that each of them was measured on")
    alone_tokens: int = Field(0, description="tokens that each candidate alone was measured on, to put them in order")
    fewer: str | None = Field(None, description="why these are fewer than sensitivity_tokens; null where they are not")
    cap: int = Field(0, description="most sites that could be kept")
    kl_everywhere: float | None = Field(None, description="KL with everything quantized, nats a token")
    kl_everywhere_stderr: float | None = Field(None, description="its standard error; null of one window")
    kl: float | None = Field(None, description="KL as planned, nats a token")
    kl_stderr: float | None = Field(None, description="its standard error; null of one window")
    budget: float | None = Field(None, description="KL to reach, nats a token")
    scales: Literal["static", "by_token"] = Field(
        "static", description="what scales integer activations have where nothing else is said of a site"
    )
    kl_by_token: float | None = Field(
        None, description="KL with scales by token and no branch, where kept sites with static ones miss the budget"
    )
    kl_weights: float | None = Field(
        None, description="KL of 8-bit weights alone, where branches came and no budget was given"
    )
    sought: float | None = Field(None, description="KL that was sought by that, where it is below the budget")
    kl_at_cap: float | None = Field(None, description="where it was not reached: KL with as many kept as allowed")
    kl_candidates: float | None = Field(None, description="where it was not reached: KL with all candidates kept")
    kl_peeled: dict[str, float] | None = Field(
        None,
        description="KL with nothing kept and outlier branches at every activation that they narrow, by channels; from "
        "`alone_tokens`, scaled to all",
    )
    kl_smoothed: dict[str, float] | None = Field(
        None,
        description="KL with nothing kept and smoothed channels, by kind of place and exponent, one after the other, "
        "all but the first kind beside outlier branches where such may follow, from `alone_tokens`; and of what is "
        "kept in the end with `all` factors and with `none`, from `tokens`",
    )
    kl_prefixed: dict[str, float] | None = Field(
        None,
        description="KL with nothing kept behind a prefix, by its token ids; from few tokens, with ranges of these",
    )
    kl_behind_prefix: dict[str, float] | None = Field(
        None,
        description="with `auto`: KL of the source itself behind a prefix, by its token ids; one that costs more than "
        "the KL to aim at is not tried",
    )
    formats: dict[str, float] | None = Field(
        None,
        description="with `auto`: KL with all kept sites in a format; `as_is` is what the graph has; beside "
        "branches from `alone_tokens`, scaled to all",
    )

"""Which data a plan's ranges come from."""

from __future__ import annotations

from pydantic import Field

from spq_graph.documents.strict import Strict


class CalibrationRef(Strict):
    """The data that the ranges come from."""

    digest: str = Field(description="of the sequences, in any order")
    tokens: int = Field(description="how many were run")
    sequences: int = Field(description="in how many sequences")
    origin: str = Field("", description="name of the file, or how text was sampled")
    remark: str | None = Field(None, description="what speaks against so little of it")

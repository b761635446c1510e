"""What every part of a document is: a key that it does not know is refused."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """A part of a document, without keys beside its own."""

    model_config = ConfigDict(extra="forbid")

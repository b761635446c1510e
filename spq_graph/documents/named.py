"""A part of a document that tells of one row of the ladder, which JSON calls by its name."""

from __future__ import annotations

from typing import Any

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from spq_graph.documents.strict import Strict
from spq_graph.terms.rows import RowId, with_id


class Named(Strict):
    """What is said of a row.

    Attributes:
        id: which row it is; JSON has its `name`.
    """

    id: RowId = Field(exclude=True)

    @model_validator(mode="before")
    @classmethod
    def _read_name(cls, given: Any) -> Any:
        return with_id(given)

    @model_serializer(mode="wrap")
    def _write_name(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {"name": self.id.name, **write(self)}

"""Which model a plan is for, and where it comes from, as far as that can be told to others."""

from __future__ import annotations

from typing import Any

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from spq_graph.documents.strict import Strict


class ModelRef(Strict):
    """The model that the plan is for."""

    digest: str = Field(description="sha256 of the ONNX file and its external data")
    origin: str = Field(description="name of the folder or file, never its place")
    hub: str | None = Field(None, description="its id on the Hugging Face Hub, where it lies in a cache of that")
    revision: str | None = Field(None, description="which commit of it")
    license: str | None = Field(None, description="as the model's own card names it, by an identifier of the Hub")
    license_name: str | None = Field(None, description="what its owner calls one that the Hub does not know")

    @model_serializer(mode="wrap")
    def _without_what_is_not_known(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in write(self).items() if value is not None}

"""Arrays that belong to a document: a file of their own beside it, which the document knows by its digest."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Arrays:
    """Float32 arrays by name, as the bytes of the safetensors file that holds them.

    Attributes:
        content: of the file.
    """

    content: bytes

    @classmethod
    def of(cls, arrays: Mapping[str, Float32]) -> Arrays:
        """These arrays: the same numbers give the same bytes."""
        return cls(save({name: np.ascontiguousarray(array, np.float32) for name, array in sorted(arrays.items())}))

    @property
    def digest(self) -> str:
        """Of the file."""
        return "sha256:" + hashlib.sha256(self.content).hexdigest()

    def read(self) -> dict[str, Float32]:
        """The arrays.

        Raises:
            ValueError: it is no such file, or a number is not finite; the message says which.
        """
        try:
            found = load(self.content)
        except SafetensorError as cause:
            raise ValueError(f"no safetensors file: {cause}") from cause
        for name, array in found.items():
            if array.dtype != np.float32:
                raise ValueError(f"{name} holds {array.dtype}, not float32")
            if not np.isfinite(array).all():
                raise ValueError(f"{name} holds numbers that are not finite")
        return found

"""Codes of weights that are wrong on purpose."""

from __future__ import annotations

import numpy as np


def flip_one(array: np.ndarray) -> np.ndarray:
    """Another number in the first place, further away than any rounding."""
    flat = array.reshape(-1)
    if flat.dtype in (np.int8, np.uint8):
        flat[0] = flat[0] + 2 if flat[0] < 64 else flat[0] - 2
    else:
        flat[0] = -flat[0] if flat[0] else flat.dtype.type(1)
    return array

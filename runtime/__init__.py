"""What runs: text into tokens, sessions, calibration, evaluation, benchmarks. Never imports torch or transformers."""

from __future__ import annotations

"""What runs, and what comes of it?

What runs: text into tokens, sessions, calibration, evaluation, benchmarks. Never imports torch or transformers.
"""

from __future__ import annotations

import os

# Quantizing a model is nobody else's business: ONNX Runtime is told so before it is first imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

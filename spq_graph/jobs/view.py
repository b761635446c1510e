"""Open a file in Netron, where that is installed."""

from __future__ import annotations

import importlib
import signal
from pathlib import Path

from spq_graph.documents.interrupts import awaited
from spq_graph.models.onnx_folder import onnx_of
from spq_graph.terms.errors import UsageError


def view(path: Path, *, port: int | None = None, browse: bool = True) -> str:
    """Serve a model to Netron until `wait` ends it.

    Args:
        path: an .onnx file or an OUT folder.
        port: on this machine; None for any that is free.
        browse: whether to open a browser.

    Returns:
        The address to open.

    Raises:
        SourceError: there is no such file.
        UsageError: Netron is not installed.
    """
    file = onnx_of(path)
    try:
        netron = importlib.import_module("netron")
    except ImportError as cause:
        raise UsageError(
            "Netron is not installed",
            where=str(file),
            remedy="pip install netron, or open the file at netron.app; `spq-graph inspect` needs neither",
        ) from cause
    host, used = netron.start(str(file), ("localhost", port or 0) if port else None, browse)
    return f"http://{host}:{used}"


def wait() -> None:
    """Serve until the user interrupts, which is how it ends well."""
    with awaited(signal.SIGINT):
        importlib.import_module("netron").wait()

"""Open a file in Netron, where that is installed."""

from __future__ import annotations

import importlib
from pathlib import Path

from spq_graph.documents import artifact
from spq_graph.terms.errors import SourceError, UsageError


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
    file = artifact.model_file(path)
    if not file.is_file():
        raise SourceError("no such file", where=str(file), remedy="name an .onnx file, or the OUT that holds one")
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
    """Serve until the user interrupts."""
    importlib.import_module("netron").wait()

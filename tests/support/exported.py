"""Models that are exported once for the whole run, however often tests name their folder."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest


def shared_folder(factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of a run have, where several do the tests."""
    base = factory.getbasetemp()
    folder = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "exported"
    folder.mkdir(exist_ok=True)
    return folder


@contextmanager
def exported_once(kept: Path) -> Iterator[None]:
    """Exports of one folder's weights and settings after the first are copies of that one.

    That every export is the same has tests of its own.

    Args:
        kept: the folder that holds the first ones.
    """
    from spq_graph.models import export

    first: Callable[..., None] = export.export_folder

    def again(folder: Path, out: Path, **settings: Any) -> None:
        held = kept / _name(folder, settings)
        if not held.is_dir():
            _keep(held, lambda model: first(folder, model, **settings))
        shutil.copytree(held, out.parent, dirs_exist_ok=True)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "export_folder", again)
        yield


def _name(folder: Path, settings: dict[str, Any]) -> str:
    """What an export is made of: config, weights, and what it was asked for."""
    files = [folder / "config.json", *sorted(folder.glob("*.safetensors"))]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files if file.is_file())).hexdigest()
    return "-".join([digest, *(f"{name}={settings[name]}" for name in ("opset", "cache") if name in settings)])


def _keep(held: Path, write: Callable[[Path], None]) -> None:
    """Let an export be written, and move it into place whole; where another process was sooner, its own stays."""
    made = Path(tempfile.mkdtemp(dir=held.parent))
    write(made / "model.onnx")
    with suppress(OSError):
        made.rename(held)

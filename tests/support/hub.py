"""The cache of the Hugging Face Hub, laid out as its own client does."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path


def cached(cache: Path, name: str, files: Mapping[str, str | bytes | Path], revision: str = "0" * 39 + "1") -> Path:
    """Put a model into a cache: files as links into blobs, and a branch that names the commit.

    Args:
        cache: the folder that HF_HUB_CACHE names.
        name: the model's id.
        files: by their path in the repository, what they hold, or which file to copy.
        revision: the commit.

    Returns:
        Its snapshot.
    """
    repository = cache / f"models--{name.replace('/', '--')}"
    snapshot, blobs = repository / "snapshots" / revision, repository / "blobs"
    for folder in (snapshot, blobs, repository / "refs"):
        folder.mkdir(parents=True, exist_ok=True)
    (repository / "refs" / "main").write_text(revision)
    for path, given in files.items():
        content = given.read_bytes() if isinstance(given, Path) else given.encode() if isinstance(given, str) else given
        blob, link = blobs / hashlib.sha256(content).hexdigest(), snapshot / path
        blob.write_bytes(content)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(Path(*[".."] * (len(Path(path).parts) + 1), "blobs", blob.name))
    return snapshot


def of_folder(folder: Path) -> dict[str, Path]:
    """The files of a folder, to be put into a cache."""
    return {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}

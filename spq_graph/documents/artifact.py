"""The OUT folder: what lies in it, and where one may be written."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from spq_graph.documents.leftovers import recover, recover_files, resolved
from spq_graph.terms.errors import OutputError, SourceError, UsageError

MODEL, PLAN, RANGES, REPORT, PAGE = "model.onnx", "plan.json", "ranges.json", "report.json", "report.html"
CARD, RECIPE, PICTURE = "README.md", "recipe.toml", "report.png"
# What a runtime needs beside the weights, as far as the source folder has it.
COMPANIONS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)


def check_out(out: Path, *, force: bool, inputs: tuple[Path, ...] = ()) -> None:
    """Refuse an OUT that must not be written; what a killed run left of it is put right first.

    Args:
        out: the folder to write.
        force: whether an earlier artifact may be replaced.
        inputs: files and folders that are read, and must survive.

    Raises:
        OutputError: OUT exists, or its parent cannot be written.
        UsageError: OUT is, or holds, something that is read.
    """
    recover(out.absolute())
    here = resolved(out)
    for path in (resolved(p) for p in inputs):
        folder = path if path.is_dir() else path.parent
        if here in (path, folder, *path.parents):
            raise UsageError("OUT would replace an input", where=f"{out} and {path}", remedy="choose another OUT")
    if os.path.lexists(out):
        if not force:
            raise OutputError("OUT exists already", where=str(out), remedy="choose another, or replace it with --force")
        if not out.is_dir() or out.is_symlink() or (any(out.iterdir()) and not (out / PLAN).is_file()):
            # --force replaces what we wrote ourselves; anything else may be somebody's only copy.
            raise OutputError(
                "OUT exists and is not an artifact of spq-graph, so --force does not replace it",
                where=str(out),
                remedy="choose another OUT, or remove it yourself",
            )
    _check_parent(out)


def _check_parent(out: Path) -> None:
    """Refuse what `staged` could not make, in its words and before anything takes long."""
    parent = out.absolute().parent
    there = next(folder for folder in (parent, *parent.parents) if os.path.lexists(folder))
    if not there.is_dir():
        code = errno.EEXIST if there == parent else errno.ENOTDIR
    else:
        code = 0 if os.access(there, os.W_OK | os.X_OK) else errno.EACCES
    if code:
        raise OutputError(
            f"OUT cannot be written: {os.strerror(code)}",
            where=str(out),
            remedy="choose an OUT in a folder that you may write to",
        )


def check_file(path: Path, inputs: tuple[Path, ...] = (), *, arrays: bool = False) -> None:
    """Refuse to write a file over anything but an earlier one of ours; what a killed run left of it is put right first.

    Args:
        path: the ranges or plan to write.
        inputs: files that are read, and must survive.
        arrays: whether a .safetensors file is written beside it, which might be a model's weights.

    Raises:
        UsageError: it is an input, or a folder.
        OutputError: it exists and is not ours, or its folder is not there or cannot be written.
    """
    if path.is_dir() or any(resolved(path) == resolved(other) for other in inputs):
        raise UsageError("this would replace an input or a folder", where=str(path), remedy="name another file")
    recover_files([path, *([path.with_suffix(".safetensors")] if arrays else [])])
    if path.exists() and not (path.is_file() and _begins_as_ours(path)):
        raise OutputError("this file exists and is not ours", where=str(path), remedy="name another file")
    if not path.absolute().parent.is_dir():
        raise OutputError("there is no such folder", where=str(path.parent), remedy="make it, or name another file")
    _check_parent(path)
    beside = path.with_suffix(".safetensors")
    if arrays and beside.exists() and not path.exists():
        raise OutputError("this file exists and is not ours", where=str(beside), remedy="name another file")


def _begins_as_ours(path: Path) -> bool:
    with path.open("rb") as stream:
        return b'"schema": "spq-graph/' in stream.read(100)


def companions_in(folder: Path) -> list[Path]:
    """What a folder has of tokenizer and generation files.

    Raises:
        SourceError: one is a link to outside of the folder, and of the Hub cache that the folder may belong to: what it
            holds would be copied, whatever that is.
    """
    home = folder.resolve()
    snapshots = next((parent for parent in home.parents if parent.name == "snapshots"), None)
    homes = [home, *([snapshots.parent / "blobs"] if snapshots is not None else [])]
    found = [folder / name for name in COMPANIONS if (folder / name).is_file()]
    for file in found:
        if not any(file.resolve().is_relative_to(place) for place in homes):
            raise SourceError(
                f"{file.name} is a link to outside of the model's folder",
                where=str(folder),
                remedy="copy the file that it leads to into the folder, or remove the link",
            )
    return found


def copy_companions(source: Path, out: Path) -> None:
    """Copy what a folder has of tokenizer and generation files.

    Raises:
        SourceError: as `companions_in`.
    """
    for file in companions_in(source):
        shutil.copyfile(file, out / file.name)

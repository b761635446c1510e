"""What a killed run left, told apart by locks from what another run still writes: removed, or brought back.

A folder or file in the making is locked by who makes it. The lock goes with the process, however that ends, and tells
the same to processes that do not see each other's numbers, as those in containers over one disk.
"""

from __future__ import annotations

import glob
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from spq_graph.documents.interrupts import begun, ended, held
from spq_graph.terms.errors import OutputError

if sys.platform != "win32":  # where nothing tells a folder in use from one that was left
    import fcntl

TEMPORARY = "spq-graph-"
_HEX = "[0-9a-f]" * 16


def locked(path: Path) -> int | None:
    """Hold a file or folder until the process ends, however it does.

    Returns:
        A descriptor to close; None where that is not possible.

    Raises:
        OSError: another holds it, has removed it meanwhile, or the file system knows no locks.
    """
    if sys.platform == "win32":
        return None
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(descriptor), path.stat()):
            raise FileNotFoundError(path)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def released(lock: int | None) -> None:
    """Give up what `locked` gave."""
    if lock is not None:
        os.close(lock)


def claimed(stem: Path) -> tuple[Path, int | None]:
    """Make a folder whose name begins so, and lock it; its path and the lock.

    Raises:
        OSError: it cannot be made.
    """
    while True:
        folder = stem.with_name(f"{stem.name}{secrets.token_hex(8)}")
        folder.mkdir(mode=0o700)
        try:
            return folder, locked(folder)
        except (BlockingIOError, FileNotFoundError):
            continue  # somebody who cleans up was faster than the lock, and removes it
        except OSError:
            return folder, None


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder among the temporary ones that vanishes at the end; what killed runs left there goes first.

    Raises:
        OutputError: none can be made.
    """
    folder, lock = None, None
    try:
        try:
            place = Path(tempfile.gettempdir())
            _sweep(place)
            with held():
                folder, lock = claimed(place / TEMPORARY)
                begun(folder)
        except OSError as cause:
            raise OutputError(
                f"no temporary folder can be made: {cause.strerror}",
                where=tempfile.tempdir or os.environ.get("TMPDIR", ""),
                remedy="make room there, or name another folder in the environment variable TMPDIR",
            ) from cause
        yield folder
    finally:
        with held():
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
                ended(folder)
            released(lock)


@cache
def _sweep(place: Path) -> None:
    # No wider: a folder of the user, or one of an earlier version that knows no lock, may begin with the same word.
    for left in place.glob(f"{TEMPORARY}{_HEX}"):
        _remove(left)


def _remove(left: Path) -> bool:
    """Remove what no process holds; whether that was so."""
    if sys.platform == "win32":
        return False
    with held():
        try:
            lock = locked(left)
        except OSError:
            return False
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            with suppress(OSError):
                left.unlink(missing_ok=True)
        released(lock)
    return True


def recover(out: Path) -> None:
    """Remove what a killed run left beside OUT, and bring an earlier OUT back that it had moved aside."""
    if sys.platform == "win32" or not out.parent.is_dir():
        return
    gone = [_remove(left) for left in out.parent.glob(f".{glob.escape(out.name)}.partial-*")]
    if not all(gone):  # a run may be between moving the earlier OUT aside and moving its own in
        return
    for old in out.parent.glob(f".{glob.escape(out.name)}.old-*"):
        with suppress(OSError), held():
            if os.path.lexists(out):
                shutil.rmtree(old)
            else:
                old.rename(out)


def resolved(path: Path) -> Path:
    """Where a path leads. Links in a circle lead to themselves, where `Path.resolve` raises before Python 3.13."""
    return Path(os.path.realpath(path))


def part_of(path: Path, token: str) -> Path:
    """Where a file lies until it is complete; one token for all that are written together."""
    return resolved(path).with_name(f".{path.name}.{token}")


def sweep_parts(folder: Path) -> None:
    """Remove what killed runs left in a folder of ours of files that they wrote."""
    for left in folder.glob(f".*.{_HEX}"):
        _remove(left)


def recover_files(files: Sequence[Path]) -> None:
    """Put right what a killed run left of files that are written together, in the order in which they get their names.

    Where the first of them has its name already, all were complete, and the others get theirs. Where it has not, what
    is there may be cut, and is removed.
    """
    found = {
        left.name.rpartition(".")[2]
        for path in files
        for left in resolved(path).parent.glob(f".{glob.escape(path.name)}.{_HEX}")
    }
    for token in sorted(found):
        parts = {resolved(path): part for path in files if (part := part_of(path, token)).exists()}
        named = [resolved(path) for path in files if resolved(path) not in parts]
        if resolved(files[0]) in parts or not _complete(named, list(parts.values())):
            for part in parts.values():
                _remove(part)
            continue
        for path, part in parts.items():
            with suppress(OSError), held():
                lock = locked(part)
                part.replace(path)
                released(lock)


def _complete(named: Sequence[Path], parts: Sequence[Path]) -> bool:
    """Whether files have got their names from the writing that left these parts, and not later from another one."""
    try:
        return max(path.stat().st_mtime_ns for path in named) <= min(part.stat().st_mtime_ns for part in parts)
    except OSError:
        return False

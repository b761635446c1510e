"""Files and folders come into place whole, or not at all.

What is written lies beside its place under a name of its own until it is complete. Whatever ends a run in between, an
exception, a signal, a full disk, leaves what was there before. What a killed run left, the next one removes, or puts
back.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from spq_graph.documents.artifact import check_out
from spq_graph.documents.interrupts import begun, check, completed, ended, held
from spq_graph.documents.leftovers import claimed, locked, part_of, recover_files, released, resolved
from spq_graph.terms.errors import OutputError


def written(files: Mapping[Path, bytes]) -> None:
    """Write files, all or none.

    Raises:
        OutputError: the disk is full, or a folder cannot be written; what was there before is still there.
    """
    recover_files(list(files))
    token = secrets.token_hex(8)
    parts = {path: part_of(path, token) for path in files}
    try:
        with ExitStack() as stack:
            for path, content in files.items():
                begun(parts[path])
                stack.callback(released, _touched(parts[path]))
                parts[path].write_bytes(content)
            check()
            with held():
                for path, part in parts.items():
                    part.replace(resolved(path))
    except OSError as cause:
        raise _told(cause, next(iter(files))) from cause
    finally:
        with held():
            for part in parts.values():
                with suppress(OSError):
                    part.unlink(missing_ok=True)
                ended(part)


def _touched(part: Path) -> int | None:
    """Make a part and hold it, where that is possible, so that no other run takes it for a killed one's."""
    part.touch()
    with suppress(OSError):
        return locked(part)
    return None


@contextmanager
def staged(out: Path, *, force: bool = False) -> Iterator[Path]:
    """A folder beside OUT to write into; it becomes OUT when the block ends well, and vanishes otherwise.

    Args:
        out: the folder.
        force: whether an earlier artifact may be replaced.

    Raises:
        OutputError: the disk is full, the folder cannot be written, or something came to lie at OUT meanwhile: then
            what was made is kept beside it, and the message says where.
    """
    here = out.absolute()
    staging: Path | None = None
    lock: int | None = None
    try:
        try:
            here.parent.mkdir(parents=True, exist_ok=True)
            with held():
                staging, lock = claimed(here.with_name(f".{here.name}.partial-"))
                begun(staging)
        except OSError as cause:
            raise OutputError(
                f"OUT cannot be written: {cause.strerror}",
                where=str(out),
                remedy="choose an OUT in a folder that you may write to",
            ) from cause
        yield staging
        staging.chmod(0o755)
        check()
        with held():
            _move_in(staging, here, force)
            completed(f"{out} is complete")
    except OSError as cause:
        if cause.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _told(cause, out) from cause
        raise
    finally:
        with held():
            if staging is not None:
                shutil.rmtree(staging, ignore_errors=True)
                ended(staging)
            released(lock)


def _told(cause: OSError, path: Path) -> OutputError:
    if cause.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(
            "the disk is full; nothing was left behind", where=str(path), remedy="make room, or choose another disk"
        )
    return OutputError(
        f"this cannot be written: {cause.strerror}", where=str(path), remedy="name a file in a folder that can be"
    )


def _move_in(staging: Path, out: Path, force: bool) -> None:
    """Give OUT its name. An earlier one steps aside for two renames, and comes back whatever happens between them."""
    try:
        check_out(out, force=force)
    except OutputError as cause:
        kept = out.with_name(f"{out.name}-{secrets.token_hex(4)}")
        staging.rename(kept)
        raise OutputError(
            "something came to lie at OUT while this ran",
            where=str(out),
            remedy=f"what was made is complete, and lies in {kept}",
        ) from cause
    if not os.path.lexists(out):
        staging.rename(out)
        return
    old = out.with_name(f".{out.name}.old-{secrets.token_hex(8)}")
    try:
        out.rename(old)
        staging.rename(out)
    finally:
        if old.exists() and not os.path.lexists(out):
            old.rename(out)
        shutil.rmtree(old, ignore_errors=True)

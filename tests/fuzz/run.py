"""Runs cases, each in a process of its own that is forked from one where everything is imported, and judges them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz.cases import MODEL, OUT, Case, make, write_base
from tests.support.command import contents

SECONDS, BYTES = 20.0, 1 << 30
PATIENCE = 120.0  # seconds by the clock: a machine with other work has less of it than a case takes
LONGEST_LINE = 10_000
_ADDRESS_SPACE = 24 << 30  # what is asked for and never touched counts too: an allocator and threads ask for much
_STATUSES = (0, 1, 2, 3)


@dataclass(slots=True)
class Ended:
    """How a case ended.

    Attributes:
        case: what was called.
        folder: where its inputs lie, and what it wrote and said.
        status: exit status, or the negative number of a signal.
        seconds, peak: what it took, of the processor's time and of memory in bytes.
        faults: what is wrong with that; empty where nothing is.
    """

    case: Case
    folder: Path
    status: int
    seconds: float
    peak: int
    faults: list[str] = field(default_factory=list)

    def said(self, name: str) -> str:
        """Standard output or error."""
        return (self.folder / name).read_bytes().decode("utf-8", "replace")


@dataclass(slots=True)
class _Running:
    case: Case
    folder: Path
    before: dict[str, str]
    started: float


def prepare(*, sources: bool) -> None:
    """Import, once, what every case needs, and what exports where sources are asked for."""
    import onnx.reference
    import onnxruntime as ort

    import spq_graph.cli.app
    import spq_graph.jobs.quantize
    import spq_graph.models.source

    if sources:
        from torch import export
        from transformers.models.llama import modeling_llama

        del export, modeling_llama
    del onnx, ort, spq_graph


def base_in(folder: Path, *, sources: bool) -> Path:
    """Sound documents, made by the commands, and sources where they are asked for: those take torch and gguf."""

    def call(arguments: list[str]) -> None:
        made = folder / f"call-{time.monotonic_ns()}"
        (made / "out").mkdir(parents=True)
        child = _fork(Case("base", arguments), made)
        if os.waitpid(child, 0)[1]:
            raise RuntimeError(f"{arguments}: {(made / 'err').read_text()}")

    base = write_base(folder / "base", call)
    if not sources:
        return base
    write = (
        "import sys; from pathlib import Path; from tests.fuzz.sources import write_sources as w; w(Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", write, str(base / "sources")], check=True, capture_output=True)
    return base


def run(
    seed: int, names: Iterable[str], work: Path, base: Path, *, workers: int, keep: bool = False
) -> Iterator[Ended]:
    """Run cases side by side; what ended well is removed unless it is to be kept."""
    running: dict[int, _Running] = {}
    waiting = iter(names)
    while True:
        while len(running) < workers and (name := next(waiting, None)) is not None:
            folder = work / name
            shutil.rmtree(folder, ignore_errors=True)
            case = make(seed, name, folder, base)
            before = contents(folder / "in")
            running[_fork(case, folder)] = _Running(case, folder, before, time.monotonic())
        if not running:
            return
        for ended in _ended(running):
            yield ended
            if not ended.faults and not keep:
                shutil.rmtree(ended.folder, ignore_errors=True)


def _ended(running: dict[int, _Running]) -> Iterator[Ended]:
    child, status, used = os.wait4(-1, os.WNOHANG)
    if child in running:
        one = running.pop(child)
        took = used.ru_utime + used.ru_stime
        peak = used.ru_maxrss * 1024
        yield judged(Ended(one.case, one.folder, os.waitstatus_to_exitcode(status), took, peak), one.before)
        return
    for pid, one in running.items():
        pages = 0
        with contextlib.suppress(OSError, IndexError):
            pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        if time.monotonic() - one.started > PATIENCE or pages * resource.getpagesize() > 2 * BYTES:
            os.kill(pid, signal.SIGKILL)
    time.sleep(0.005)


def _fork(case: Case, folder: Path) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    status = 70
    try:
        status = _call(case, folder)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _call(case: Case, folder: Path) -> int:
    """The command line in this process, with files for what it says."""
    for number, name in ((1, "out.txt"), (2, "err")):
        descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, number)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    (folder / "tmp").mkdir()
    os.chdir(folder / "out")
    os.environ |= {"TMPDIR": str(folder / "tmp"), "COLUMNS": "200", "NO_COLOR": "1"}
    import tempfile

    tempfile.tempdir = None
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.argv = ["spq-graph", *case.arguments]
    from spq_graph.cli.app import main

    try:
        main()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0


# ----------------------------------------------------------------------------------------------------------- judging


def judged(ended: Ended, before: dict[str, str]) -> Ended:
    """Note what is wrong with how a case ended."""
    out, err = ended.said("out.txt"), ended.said("err")
    faults = ended.faults
    if ended.seconds > SECONDS or ended.status == -signal.SIGKILL:
        faults.append("hang")
    if ended.peak > BYTES:
        faults.append(f"memory: {ended.peak >> 20} MiB")
    if ended.status not in _STATUSES and "hang" not in faults:
        faults.append(f"ended with {ended.status}")
    if "Traceback (most recent call last)" in out + err or "fault of spq-graph" in err or "report this" in err:
        faults.append(f"traceback: {_place(ended)}")
    elif ended.status and "error:" not in err.lower() and "─ Error ─" not in err:
        faults.append("no message")
    if acting := sorted({c for c in out + err if not c.isprintable() and c not in "\n\t"} - {"\ufffd"}):
        faults.append(f"control characters: {acting}")
    if max(map(len, err.splitlines()), default=0) > LONGEST_LINE:
        faults.append("a message without an end")
    if contents(ended.folder / "in") != before:
        faults.append("an input was changed")
    faults.extend(_odd_results(ended, out))
    return ended


def _odd_results(ended: Ended, out: str) -> Iterator[str]:
    if ended.status == 0 and "--json" in ended.case.arguments and not _is_json(out):
        yield "no JSON on standard output"
    made = ended.folder / "out"
    left = sorted(entry.name for entry in made.iterdir())
    if any(name.startswith(".") for name in left):
        yield f"left behind: {left}"
    if (ended.folder / "tmp").is_dir() and any(not _expected(f.name) for f in (ended.folder / "tmp").iterdir()):
        yield "left behind in TMPDIR"
    whole = made / OUT
    if whole.exists() and ended.status not in (0, 3):
        yield f"OUT after status {ended.status}"
    needed = (MODEL,) if ended.case.arguments[0] == "export" else (MODEL, "plan.json")
    if whole.exists() and not all((whole / name).is_file() for name in needed):
        yield "half an OUT"
    for file in whole.glob("*.json") if whole.exists() else ():
        if file.name in ("plan.json", "ranges.json", "report.json") and not _is_json(file.read_text("utf-8")):
            yield f"{file.name} is no JSON"


def _expected(name: str) -> bool:
    """Whether a file in TMPDIR is what a fault is reported with, or torch's own cache, which later runs use."""
    return "fault" in name or name.startswith("torchinductor_")


def _is_json(text: str) -> bool:
    def refuse(name: str) -> None:
        raise ValueError(name)

    try:
        json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError):
        return False
    return True


def _place(ended: Ended) -> str:
    """The last line of ours in a traceback, and what was raised."""
    text = ended.said("err") + "".join(f.read_text("utf-8", "replace") for f in (ended.folder / "tmp").glob("*fault*"))
    ours = re.findall(r'File "[^"]*?((?:spq_graph|passes|runtime|models)/[^"]+)", line (\d+)', text)
    raised = re.findall(r"^(?:\w+\.)*(\w+(?:Error|Exception|Interrupt|Warning|Exit)\b.*)", text, flags=re.MULTILINE)
    file, line = ours[-1] if ours else ("?", "?")
    return f"{file}:{line} {raised[-1][:120] if raised else ''}"


def summary(found: Counter[str]) -> list[str]:
    """What was found, the most frequent first."""
    return [f"{count:6} {fault}" for fault, count in found.most_common()]

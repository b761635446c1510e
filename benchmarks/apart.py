"""What a benchmark runs apart from itself: peers in environments of their own, and processes whose cost is measured."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spq-graph"


def python_of(name: str, installs: Sequence[Sequence[str]], environments: Path, *, above: bool = False) -> Path:
    """The Python of a peer's environment, which is made where it is not there.

    Args:
        name: of the environment.
        installs: what goes into it, by call of pip.
        environments: the folder of all of them.
        above: whether it sees what is installed here, torch among it, beneath what goes into it.

    Raises:
        RuntimeError: it cannot be made; why, as pip says it.
    """
    folder = environments / name
    python, done = folder / "bin" / "python", folder / "installed.json"
    beneath = [path for path in sys.path if Path(path).name == "site-packages"] if above else []
    wanted = json.dumps([*installs, *beneath])
    if done.is_file() and done.read_text() == wanted:
        return python
    print(f"installing {name} into {folder}", file=sys.stderr)
    shutil.rmtree(folder, ignore_errors=True)
    _told([sys.executable, "-m", "venv", str(folder)])
    for place in folder.glob("lib/*/site-packages") if beneath else ():
        (place / "beneath.pth").write_text("\n".join(beneath), encoding="utf-8")
    for some in installs:
        _told([str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *some])
    done.write_text(wanted)
    return python


def _told(command: Sequence[str]) -> None:
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise RuntimeError(f"not installed: {last_line(ran.stderr)}")


def last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or ["no message"])[-1].strip()


def run(command: list[str], place: Path) -> dict[str, float]:
    """Wall and processor time of a process, and its peak resident memory, all of it and what no file backs."""
    # The peers have nothing to do with what is here, and our folders have names that could be theirs.
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    here = {"PYTHONPATH": path} if command[0] == sys.executable else {}
    log = place / "stderr.txt"
    with log.open("wb") as errors:
        start = time.perf_counter()
        child = subprocess.Popen(command, cwd=place, env=os.environ | here, stdout=errors, stderr=errors)
        sampler = Sampler(child.pid)
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - start
    child.returncode = os.waitstatus_to_exitcode(status)
    sampler.stop()
    if child.returncode:
        raise RuntimeError(f"failed with status {child.returncode}: {last_line(log.read_text(errors='replace'))}")
    unit = 1 if sys.platform == "darwin" else 1024  # Linux counts in KiB
    return {
        "seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_rss_bytes": usage.ru_maxrss * unit,
        "peak_anonymous_bytes": sampler.peak,
    }


class Sampler:
    """The most anonymous memory that a process was seen to hold, in bytes; 0 where the system does not tell."""

    def __init__(self, pid: int) -> None:
        self.peak = 0
        self._status = Path(f"/proc/{pid}/status")
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()

    def _sample(self) -> None:
        while not self._ended.wait(0.01):
            try:
                lines = self._status.read_text().splitlines()
            except OSError:
                return
            self.peak = max([self.peak, *(int(line.split()[1]) << 10 for line in lines if "RssAnon" in line)])

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

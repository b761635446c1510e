"""The steps of a GPU run in order of worth, each in a process of its own with a limit; a JSON line each, at once.

    python -m benchmarks.gpu.drive UNPACKED RESULTS [STEP ...] [--seconds 400]

RESULTS gets results.jsonl, a line a step, and log.txt, all that steps print, as they print it. A step that fails keeps
what it had found and the end of what it printed; the others go on. Without a device every step ends as "no device", and
the exit status is 0; it is 1 where a step failed. `--stand-in` runs the steps on the CPU, small, to try them: what they
find then says nothing about a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.gpu.place import environment

# By name: the seconds that it may take. A lease has 900 in all, of which every start of a machine takes up to 120: a
# first call of 400 seconds, and a second of 240, fit.
STEPS = {"machine": 40, "product": 40, "tests": 120, "models": 90, "operator": 110, "whole": 120, "sanitizer": 70}
SECONDS = 400
LONGEST = 4000  # characters of what a step printed that are kept in its line
RECORD = "@@ "  # what a step finds on its way begins with this, so that it is kept if the step does not end
GOOD = ("done", "no device", "left out")


def run(name: str, kit: Path, seconds: float, log: Path, *, stand_in: bool = False) -> dict[str, Any]:
    """Run one step.

    Args:
        name: of the step.
        kit: the unpacked kit.
        seconds: that it may take.
        log: file to which is added what it prints.
        stand_in: run it on the CPU.

    Returns:
        The step's name, "result", seconds, records, and what it found; of one that failed, the end of what it printed.
    """
    command = [
        sys.executable,
        "-u",
        "-m",
        "benchmarks.gpu.steps",
        name,
        str(kit),
        *(["--stand-in"] if stand_in else []),
    ]
    start = time.monotonic()
    with log.open("ab") as file:
        file.write(f"\n==== {name}, at most {seconds:.0f} s\n".encode())
        file.flush()
        begin = file.tell()
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True, env=environment()
        )
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    took = round(time.monotonic() - start, 2)
    printed = log.read_bytes()[begin:].decode("utf-8", "replace")
    whole = printed.splitlines(keepends=True)
    records = [json.loads(line.removeprefix(RECORD)) for line in whole if line.startswith(RECORD) and line[-1] == "\n"]
    found: dict[str, Any] = {"step": name, "seconds": took, **_ended(process.returncode, printed, took >= seconds)}
    if stand_in:
        found["stands_in"] = True
    return {**found, "records": records} if records else found


def _ended(status: int, printed: str, late: bool) -> dict[str, Any]:
    lines = [line for line in printed.splitlines() if line.strip() and not line.startswith(RECORD)]
    try:
        found = json.loads(lines[-1])
        if status == 0 and isinstance(found, dict):
            return found
    except (ValueError, IndexError):
        pass
    how = "timed out" if late and status == -signal.SIGKILL else "failed"
    return {"result": how, "status": status, "printed": "\n".join(lines)[-LONGEST:]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kit", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("steps", nargs="*", metavar="STEP", help=f"of {', '.join(STEPS)}; all of them by default")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all steps together")
    parser.add_argument("--stand-in", action="store_true", help="on the CPU, small")
    given = parser.parse_args()
    if unknown := [name for name in given.steps if name not in STEPS]:
        parser.error(f"no step '{unknown[0]}': {', '.join(STEPS)}")
    given.results.mkdir(parents=True, exist_ok=True)
    end, bad = time.monotonic() + given.seconds, False
    date = datetime.now(UTC).date().isoformat()
    with (given.results / "results.jsonl").open("w", encoding="utf-8") as file:
        for name in given.steps or STEPS:
            left = min(STEPS[name], end - time.monotonic())
            found: dict[str, Any] = {"step": name, "result": "no time left"}
            if left > 1:
                found = run(name, given.kit, left, given.results / "log.txt", stand_in=given.stand_in)
            bad |= found["result"] not in GOOD
            line = json.dumps({**found, "date": date})
            print(line, flush=True)
            print(line, file=file, flush=True)
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())

"""The steps of a GPU run in order of worth, each in a process of its own with a limit; a JSON line each, at once.

    python -m benchmarks.gpu.drive UNPACKED RESULTS.jsonl [--seconds 560]

Without a device every step ends as "no device", and the exit status is 0; it is 1 where a step failed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

# By name: the seconds that it may take.
STEPS = {"product": 60, "tests": 200, "reference": 90, "operator": 150, "sanitizer": 120}
LONGEST = 4000  # characters of what a step printed that are kept


def run(name: str, kit: Path, seconds: float) -> dict[str, Any]:
    """Run one step; what it found is its last line, as JSON."""
    command = [sys.executable, "-m", "benchmarks.gpu.steps", name, str(kit)]
    start = time.monotonic()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        try:
            printed, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            printed, _ = process.communicate()
            return {"step": name, "result": "timed out", "limit": seconds, "printed": printed[-LONGEST:]}
    took = round(time.monotonic() - start, 2)
    try:
        found = json.loads(printed.strip().rsplit("\n", 1)[-1])
        if process.returncode == 0 and isinstance(found, dict):
            return {"step": name, "seconds": took, **found}
    except ValueError:
        pass
    failed = {"result": "failed", "status": process.returncode, "printed": printed[-LONGEST:]}
    return {"step": name, "seconds": took, **failed}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kit", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("--seconds", type=float, default=560, help="for all steps together")
    given = parser.parse_args()
    end, bad = time.monotonic() + given.seconds, False
    with given.results.open("w", encoding="utf-8") as file:
        for name, limit in STEPS.items():
            left = end - time.monotonic()
            found = run(name, given.kit, min(limit, left)) if left > 1 else {"step": name, "result": "no time left"}
            bad |= found["result"] not in ("done", "no device", "left out")
            line = json.dumps(found)
            print(line, flush=True)
            print(line, file=file, flush=True)
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())

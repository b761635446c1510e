"""`python -m tests.fuzz`: cases by the thousand, or one of them again."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.fuzz.cases import KINDS
from tests.fuzz.run import base_in, prepare, run, summary

_COUNTS = {"inspect": 10_000, "quantize": 1_000, "others": 1_000, "documents": 2_000, "sources": 300, "options": 1_000}


def main() -> int:
    """Run what was asked for; 1 where something was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the whole run (default 0)")
    parser.add_argument("--case", help="run this one alone, as it is named, and keep it")
    for kind in KINDS:
        parser.add_argument(
            f"--{kind}",
            type=int,
            help=f"how many cases (default {_COUNTS[kind]}, or none of the others where one is given)",
        )
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--keep", type=Path, default=Path("out/fuzz"), help="where failing cases are kept")
    given = parser.parse_args()
    asked = {kind: getattr(given, kind) for kind in KINDS}
    counts = {kind: n or 0 for kind, n in asked.items()} if any(n is not None for n in asked.values()) else _COUNTS
    names = [f"{kind}-{given.first + n}" for kind in KINDS for n in range(counts[kind])]
    keep = given.keep.resolve() / str(given.seed)
    chosen = [given.case] if given.case else names
    sources = any(name.startswith("sources") for name in chosen)
    prepare(sources=sources)
    found: Counter[str] = Counter()
    statuses: Counter[str] = Counter()
    start, done = time.monotonic(), 0
    with TemporaryDirectory(prefix="spq-fuzz-") as folder:
        base = base_in(Path(folder), sources=sources)
        for ended in run(given.seed, chosen, keep, base, workers=given.workers, keep=bool(given.case)):
            done += 1
            found.update(ended.faults)
            statuses[f"{ended.case.name.partition('-')[0]} {ended.status}"] += 1
            if ended.faults or given.case:
                print(
                    f"{ended.case.name}: {'; '.join(ended.faults) or 'well'} ({ended.case.about}; "
                    f"status {ended.status}, {ended.seconds:.1f} s, {ended.peak >> 20} MiB) in {ended.folder}",
                    flush=True,
                )
            if done % 500 == 0:
                print(f"... {done} of {len(chosen)} cases, {time.monotonic() - start:.0f} s", flush=True)
    print(f"{done} cases in {time.monotonic() - start:.0f} s, seed {given.seed}; {found.total()} faults")
    print("statuses: " + ", ".join(f"{status}: {count}" for status, count in sorted(statuses.items())))
    print("\n".join(summary(found)))
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())

"""Calibration shared by two workers on this machine, beside one process: the time, and whether the bytes are the same.

    python benchmarks/cluster.py MODEL.onnx --calibration valid.txt

One worker is killed in the last run, when it has work: its nanny starts it again. How many
threads workers have must change no byte either.
"""

from __future__ import annotations

import argparse
import os
import signal
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from distributed import LocalCluster

from spq_graph import Opening, calibrate


def kill_one(cluster: Any, over: threading.Event) -> None:
    """Kill the first worker that has work."""
    while not over.wait(0.01):
        for state in cluster.scheduler.workers.values():
            if state.processing:
                os.kill(cluster.workers[state.name].pid, signal.SIGKILL)
                return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=65536)
    parser.add_argument("--window", type=int, default=None)
    parser.add_argument("--threads", type=int, default=1, help="of each worker")
    asked = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:

        def measured(name: str, address: str | None = None) -> tuple[float, bytes]:
            out, begun = Path(folder, f"{name}.json"), time.perf_counter()
            model = Opening(asked.model, window=asked.window, dask=address)
            calibrate(model, out, calibration=asked.calibration, tokens=asked.tokens)
            return time.perf_counter() - begun, out.read_bytes() + out.with_suffix(".safetensors").read_bytes()

        alone, expected = measured("alone")
        print(f"one process: {alone:.1f} s")
        with LocalCluster(n_workers=2, threads_per_worker=asked.threads, dashboard_address=":0") as cluster:
            for name, kills in (("two workers", False), ("two workers, one killed", True)):
                over = threading.Event()
                killer = threading.Thread(target=kill_one, args=(cluster, over))
                if kills:
                    killer.start()
                seconds, found = measured(name, cluster.scheduler_address)
                over.set()
                print(f"{name}: {seconds:.1f} s, {'the same bytes' if found == expected else 'OTHER BYTES'}")


if __name__ == "__main__":
    main()

"""The operator spq::Int8MatMul beside ONNX Runtime's integer product: one thread, cold weights, interleaved.

As fp8_matmul.py, whose sessions and rounds it shares; `x qdq` is the time of Q/DQ over the kernel's in the same round,
the median over rounds. Time is that of the processor, of the one thread that computes: others who use the machine count
for less. Of the branch's 16 channels all exceed the range, in the share of the rows that the name gives.
"""

from __future__ import annotations

import argparse
import statistics
import time
from functools import partial
from typing import Any

import fp8_matmul as shared
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from keeping import keep
from onnx import helper, numpy_helper
from rich.console import Console
from rich.table import Table

from spq_graph.passes.base.marks import DOMAIN
from spq_graph.passes.forms.int8_function import Int8Kind, int8_matmul_function
from spq_graph.passes.numbers.int8 import pack_int8_panels
from spq_graph.passes.numbers.scales import absmax_of, scales_to, top_code, weight_codes
from spq_graph.runtime.proof.health import processor
from spq_graph.runtime.sessions.library import library_info

SHAPES = ((576, 1536), (1536, 576), (896, 4864), (2048, 5632))
ROWS = (1, 128, 512)
CHANNELS = 16


def int8(kind: Int8Kind, name: str, weight: shared.Array) -> shared.Product:
    scales = scales_to(absmax_of([weight]), top_code(8), "per_channel")
    channels = np.arange(CHANNELS) * (weight.shape[0] // CHANNELS)
    given: dict[str, shared.Array] = {
        "B": pack_int8_panels(weight_codes(weight, scales, 8)),
        "b_scale": scales,
        "bias": np.zeros(1, np.float32),
        "a_scale": np.asarray(np.float32(8 / 255)),
        "a_zero_point": np.asarray(np.uint8(128)),
        "channels": channels,
        "rows": weight[channels].astype(np.float16),
    }
    names = {key: f"{name}.{key}" for key in kind.inputs[1:]}
    sizes = {"K": weight.shape[0], "N": weight.shape[1]}
    node = helper.make_node(kind.op_type, ["X", *names.values()], [f"{name}.Y"], domain=DOMAIN, **sizes)
    return shared.Product([node], [numpy_helper.from_array(given[key], value) for key, value in names.items()])


KERNELS: dict[str, tuple[shared.Write, float]] = {  # and the share of rows with outliers
    "fp32": (shared.fp32, 0),
    "int8 QDQ": (shared.qdq, 0),
    "static": (partial(int8, Int8Kind()), 0),
    "by token": (partial(int8, Int8Kind(by_token=True)), 0),
    "static, branch, no row": (partial(int8, Int8Kind(branch=True)), 0),
    "static, branch, 1 row of 64": (partial(int8, Int8Kind(branch=True)), 1 / 64),
    "static, branch, every row": (partial(int8, Int8Kind(branch=True)), 1),
    "by token, branch, 1 row of 64": (partial(int8, Int8Kind(by_token=True, branch=True)), 1 / 64),
    "by token, branch, every row": (partial(int8, Int8Kind(by_token=True, branch=True)), 1),
}


def activations(rows: int, depth: int, share: float) -> shared.Array:
    x = np.random.default_rng(1).standard_normal((rows, depth)).astype(np.float32).clip(-4, 3.9)
    channels = np.arange(CHANNELS) * (depth // CHANNELS)
    x[np.ix_(np.arange(0, rows, max(1, round(1 / share)) if share else rows + 1), channels)] = 50.0 if share else 1.0
    return x


def processor_seconds_of(run: ort.InferenceSession, x: shared.Array) -> float:
    start = time.thread_time()
    run.run(None, {"X": x})
    return time.thread_time() - start


def measure(shape: tuple[int, int], rows: tuple[int, ...], rounds: int, cold: int) -> list[dict[str, Any]]:
    size = shape[0] * shape[1]
    copies = {name: max(2, -(-cold // (size * (4 if name == "fp32" else 1)))) for name in KERNELS}
    kinds = [Int8Kind(by_token, branch) for by_token in (False, True) for branch in (False, True)]
    functions = [ir.to_proto(int8_matmul_function(kind, shared.OPSET)) for kind in kinds]
    sessions = {name: shared.session(write, shape, copies[name], functions) for name, (write, _) in KERNELS.items()}
    records = []
    for count in rows:
        inputs = {name: activations(count, shape[0], share) for name, (_, share) in KERNELS.items()}
        taken: dict[str, list[float]] = {name: [] for name in KERNELS}
        for turn in range(rounds + 1):
            for name, run in sessions.items():
                seconds = processor_seconds_of(run, inputs[name]) / copies[name]
                if turn:
                    taken[name].append(seconds)
        for name in KERNELS:
            ratios = {
                f"x {one}": statistics.median(a / b for a, b in zip(taken[key], taken[name], strict=True))
                for one, key in (("fp32", "fp32"), ("qdq", "int8 QDQ"), ("static", "static"))
            }
            record = {"K": shape[0], "N": shape[1], "M": count, "kernel": name, **ratios}
            records.append({**record, "seconds": statistics.median(taken[name])})
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS))
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/")
    given = parser.parse_args()
    cold = max(96 << 20, 2 * shared.last_cache())
    records = [r for shape in SHAPES for r in measure(shape, tuple(given.rows), given.rounds, cold)]
    table = Table("K x N", "M", "kernel", "x fp32", "x qdq", "x static", "ms", box=None)
    for r in records:
        ratios = [f"{r[key]:.2f}" for key in ("x fp32", "x qdq", "x static")]
        table.add_row(f"{r['K']} x {r['N']}", str(r["M"]), r["kernel"], *ratios, f"{r['seconds'] * 1e3:.3f}")
    Console(width=110).print(table)
    if given.save:
        versions = {"onnxruntime": ort.__version__, "numpy": np.__version__}
        about = {"device": processor(), "library": library_info(), "versions": versions}
        keep("int8-matmul", **about, rounds=given.rounds, cold_bytes=cold, records=records)


if __name__ == "__main__":
    main()

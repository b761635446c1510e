"""The operator spq::Int8MatMul beside ONNX Runtime's integer product: one thread, cold weights, interleaved.

As fp8_matmul.py, whose sessions and rounds it shares; `x qdq` is the time of Q/DQ over the kernel's in the same round,
the median over rounds. Time is that of the processor, of the one thread that computes: others who use the machine count
for less. The branch has 16 channels.
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
    codes = weight_codes(weight, scales, 8)
    if kind.branch:
        codes[channels] = 0
    given: dict[str, shared.Array] = {
        "B": pack_int8_panels(codes),
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


KERNELS: dict[str, shared.Write] = {
    "fp32": shared.fp32,
    "int8 QDQ": shared.qdq,
    "static": partial(int8, Int8Kind()),
    "by token": partial(int8, Int8Kind(by_token=True)),
    "static, branch": partial(int8, Int8Kind(branch=True)),
    "by token, branch": partial(int8, Int8Kind(by_token=True, branch=True)),
}


def activations(rows: int, depth: int) -> shared.Array:
    x = np.random.default_rng(1).standard_normal((rows, depth)).astype(np.float32).clip(-4, 3.9)
    x[:, np.arange(CHANNELS) * (depth // CHANNELS)] *= 50.0
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
    sessions = {name: shared.session(write, shape, copies[name], functions) for name, write in KERNELS.items()}
    records = []
    for count in rows:
        x = activations(count, shape[0])
        taken: dict[str, list[float]] = {name: [] for name in KERNELS}
        for turn in range(rounds + 1):
            for name, run in sessions.items():
                seconds = processor_seconds_of(run, x) / copies[name]
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
    # Kernels take turns, so that what outgrows the last cache is all of their weights together.
    cold = max(96 << 20, 2 * shared.last_cache() // len(KERNELS))
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

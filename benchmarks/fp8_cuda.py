"""The operator spq::Fp8MatMul beside ONNX Runtime's own products on a CUDA device, float16 in and out.

Every kernel has a session with as many copies of the weight as outgrow twice the device's cache, so each product reads
its weight from memory, as in a model, and what a run costs beside its products is shared by many. Inputs and outputs
stay on the device. Rounds take turns through all kernels; what is shown is the median over rounds, and a ratio is the
median of the ratios within a round.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort
from cuda_products import FLOAT, KERNELS, Array, Write
from keeping import keep
from onnx import TensorProto, helper
from rich.console import Console
from rich.table import Table

from spq_graph.passes.base.marks import DOMAIN, VERSION
from spq_graph.runtime.sessions.library import library_info, register

PROVIDER = "CUDAExecutionProvider"
SHAPES = ((2048, 5632), (5632, 2048), (4096, 14336))
ROWS = (1, 16, 512, 4096)
COLD = 256 << 20  # bytes of weights in a session: no cache of a device of today holds half of it
OPSET = 21


class Timed(Protocol):
    """Products of one input and several weights of the same size, `width` bytes an element, that are run together."""

    copies: int
    width: int

    def bind(self, x: Array) -> None:
        """Take an input, float16 [M, K]."""

    def seconds(self, repeats: int) -> float:
        """What one product takes, of so many runs of all of them; waits for them."""


@dataclass(slots=True)
class Running:
    """A session with its input bound: a call runs all its products and waits for them."""

    session: ort.InferenceSession
    copies: int
    width: int
    device: str = "cuda"
    binding: Any = None

    def bind(self, x: Array) -> None:
        self.binding = self.session.io_binding()
        self.binding.bind_ortvalue_input("X", ort.OrtValue.ortvalue_from_numpy(x, self.device, 0))
        for output in self.session.get_outputs():
            self.binding.bind_output(output.name, self.device, 0)

    def seconds(self, repeats: int) -> float:
        start = time.perf_counter()
        for _ in range(repeats):
            self.session.run_with_iobinding(self.binding)
        return (time.perf_counter() - start) / repeats / self.copies


def session(write: Write, weight: Array, copies: int, provider: str = PROVIDER) -> ort.InferenceSession:
    """One session over so many products of the same size, each with a weight of its own."""
    one = write(weight)
    products = [one.copy(number) for number in range(copies)]
    graph = helper.make_graph(
        [node for product in products for node in product.nodes],
        "products",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT16, ["M", weight.shape[0]])],
        [helper.make_tensor_value_info(p.nodes[-1].output[0], TensorProto.FLOAT16, ["M", None]) for p in products],
        [tensor for product in products for tensor in product.initializers],
    )
    imports = [helper.make_opsetid(*pair) for pair in (("", OPSET), (DOMAIN, VERSION), ("com.microsoft", 1))]
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if provider == PROVIDER:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    register(options)
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    return ort.InferenceSession(model.SerializeToString(), options, providers=[provider])


def copies_of(weight: Array, width: int, cold: int = COLD) -> int:
    """How many weights outgrow the cache."""
    return max(2, -(-cold // (weight.size * width)))


def sessions(
    weight: Array, console: Console, provider: str = PROVIDER, device: str = "cuda", cold: int = COLD
) -> dict[str, Timed]:
    found: dict[str, Timed] = {}
    for name, (write, width) in KERNELS.items():
        copies = copies_of(weight, width, cold)
        try:
            found[name] = Running(session(write, weight, copies, provider), copies, width, device)
        except Exception as error:  # an ONNX Runtime without that operator raises a class of its own
            console.print(f"{name}: left out, {str(error).splitlines()[0][:200]}")
    return found


def random_weight(shape: tuple[int, int]) -> Array:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def measure(
    shape: tuple[int, int], rows: tuple[int, ...], rounds: int, running: dict[str, Timed], console: Console
) -> Iterator[dict[str, Any]]:
    """One record for every M and kernel, of those that take such an input."""
    size = shape[0] * shape[1]
    for count in rows:
        x = np.random.default_rng(1).standard_normal((count, shape[0])).clip(-4, 4).astype(np.float16)
        taken: dict[str, list[float]] = {}
        repeats = {}
        for name, one in running.items():
            try:
                one.bind(x)
                one.seconds(3)  # warms up: lays weights out, chooses algorithms
                repeats[name] = max(1, int(0.05 / (one.seconds(3) * one.copies)))
                taken[name] = []
            except Exception as error:  # of ONNX Runtime or of torch: others are measured all the same
                console.print(f"{name}, M = {count}: left out, {str(error).splitlines()[0][:200]}")
        for _ in range(rounds):
            for name, seconds in taken.items():
                seconds.append(running[name].seconds(repeats[name]))
        for name, seconds in taken.items():
            middle = statistics.median(seconds)
            over = taken.get(FLOAT, seconds)
            yield {
                "K": shape[0],
                "N": shape[1],
                "M": count,
                "kernel": name,
                "seconds": middle,
                "ratio": statistics.median(a / b for a, b in zip(over, seconds, strict=True)),
                "gigabytes_per_second": size * running[name].width / middle / 1e9,
                "teraflops": 2 * count * size / middle / 1e12,
            }


def show(records: list[dict[str, Any]], console: Console) -> None:
    table = Table("K x N", "M", "kernel", "x fp16", "us", "GB/s", "TFLOP/s", box=None)
    for r in records:
        table.add_row(
            f"{r['K']} x {r['N']}",
            str(r["M"]),
            r["kernel"],
            f"{r['ratio']:.2f}",
            f"{r['seconds'] * 1e6:.1f}",
            f"{r['gigabytes_per_second']:.0f}",
            f"{r['teraflops']:.1f}",
        )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS))
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/")
    given = parser.parse_args()
    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()  # CUDA's own wheels are not where the loader looks
    cuda = (library_info() or {}).get("cuda")
    if PROVIDER not in ort.get_available_providers() or cuda is None or not cuda["usable"]:
        sys.exit(f"nothing to measure: onnxruntime has {ort.get_available_providers()}, the library's CUDA is {cuda}")
    console = Console()
    console.print(f"{cuda['device']}, {cuda['cublaslt'] or 'no cuBLASLt'}, onnxruntime {ort.__version__}")
    records = []
    for shape in SHAPES:
        running = sessions(random_weight(shape), console)
        records += measure(shape, tuple(given.rows), given.rounds, running, console)
    show(records, console)
    if given.save:
        versions = {"onnxruntime": ort.__version__, "numpy": np.__version__}
        path = keep(
            "fp8-cuda",
            device=cuda["device"],
            cuda=cuda,
            rounds=given.rounds,
            cold_bytes=COLD,
            versions=versions,
            records=records,
        )
        console.print(f"written to {path.name}")


if __name__ == "__main__":
    main()

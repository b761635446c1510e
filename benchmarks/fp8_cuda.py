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
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from keeping import keep
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.table import Table

from spq_graph.passes.base.marks import DOMAIN, OP, VERSION
from spq_graph.passes.numbers.fp8 import E4M3, E5M2, Fp8Format, fp8_weight_codes, pack_panels
from spq_graph.passes.numbers.scales import absmax_of, scales_to
from spq_graph.runtime.sessions.library import library_info, register

PROVIDER = "CUDAExecutionProvider"
SHAPES = ((2048, 5632), (5632, 2048), (4096, 14336))
ROWS = (1, 16, 512, 4096)
COLD = 256 << 20  # bytes of weights in a session: no cache of a device of today holds half of it
OPSET = 21
BLOCK = 128
Array = npt.NDArray[Any]


@dataclass(slots=True)
class Product:
    """One product of the input X and one weight, as a node and initializers."""

    node: onnx.NodeProto
    initializers: list[onnx.TensorProto]


@dataclass(slots=True)
class Running:
    """A session with its input bound: a call runs all its products and waits for them."""

    session: ort.InferenceSession
    copies: int
    binding: Any = None

    def bind(self, x: Array) -> None:
        self.binding = self.session.io_binding()
        self.binding.bind_ortvalue_input("X", ort.OrtValue.ortvalue_from_numpy(x, "cuda", 0))
        for output in self.session.get_outputs():
            self.binding.bind_output(output.name, "cuda", 0)

    def seconds(self, repeats: int) -> float:
        start = time.perf_counter()
        for _ in range(repeats):
            self.session.run_with_iobinding(self.binding)
        return (time.perf_counter() - start) / repeats / self.copies


Write = Callable[[str, Array], Product]


def fp16(name: str, weight: Array) -> Product:
    tensor = numpy_helper.from_array(weight.astype(np.float16), name)
    return Product(helper.make_node("MatMul", ["X", name], [f"{name}.Y"]), [tensor])


def _codes(name: str, array: Array) -> onnx.TensorProto:
    return helper.make_tensor(name, E4M3.element_type, array.shape, np.ascontiguousarray(array).tobytes(), raw=True)


def blocks(a_scale: float | None) -> Write:
    """ONNX Runtime's own FP8 product, with the same scale in every block of a column: the same numbers as ours."""

    def write(name: str, weight: Array) -> Product:
        scales = scales_to(absmax_of([weight]), E4M3.largest, "per_channel")
        tensors = [
            _codes(f"{name}.B", fp8_weight_codes(weight, scales).T),
            numpy_helper.from_array(np.repeat(scales[:, None], -(-weight.shape[0] // BLOCK), axis=1), f"{name}.scale"),
        ]
        inputs = ["X", f"{name}.B", f"{name}.scale"]
        if a_scale is not None:
            tensors.append(numpy_helper.from_array(np.float32(a_scale), f"{name}.a_scale"))
            inputs.append(f"{name}.a_scale")
        node = helper.make_node(
            "MatMulBlockQuantizedFp8Weight", inputs, [f"{name}.Y"], domain="com.microsoft", block_size=BLOCK
        )
        return Product(node, tensors)

    return write


def ours(form: Fp8Format | None) -> Write:
    def write(name: str, weight: Array) -> Product:
        scales = scales_to(absmax_of([weight]), E4M3.largest, "per_channel")
        a_scale = 1.0 if form is None else 4.0 / form.largest
        tensors = [
            _codes(f"{name}.B", pack_panels(fp8_weight_codes(weight, scales))),
            numpy_helper.from_array(scales, f"{name}.scale"),
            numpy_helper.from_array(np.float32(a_scale), f"{name}.a_scale"),
        ]
        node = helper.make_node(
            OP,
            ["X", *(tensor.name for tensor in tensors)],
            [f"{name}.Y"],
            domain=DOMAIN,
            K=weight.shape[0],
            N=weight.shape[1],
            fast=1,
            a_type=form.element_type if form else TensorProto.FLOAT,
        )
        return Product(node, tensors)

    return write


KERNELS: dict[str, tuple[Write, int]] = {  # and bytes a weight
    "fp16 MatMul": (fp16, 2),
    "ORT fp8 x fp16": (blocks(None), 1),
    "ORT fp8 x e4m3": (blocks(4.0 / 448), 1),
    "spq w8fp8a16": (ours(None), 1),
    "spq fp8_e4m3": (ours(E4M3), 1),
    "spq fp8_e5m2": (ours(E5M2), 1),
}


def session(write: Write, shape: tuple[int, int], copies: int) -> ort.InferenceSession:
    """One session over so many products of the same size, each with a weight of its own."""
    weight = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    products = [write(f"w{i}", np.roll(weight, i, axis=1)) for i in range(copies)]  # no two can be shared
    graph = helper.make_graph(
        [product.node for product in products],
        "products",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT16, ["M", shape[0]])],
        [helper.make_tensor_value_info(f"w{i}.Y", TensorProto.FLOAT16, ["M", shape[1]]) for i in range(copies)],
        [tensor for product in products for tensor in product.initializers],
    )
    imports = [helper.make_opsetid(*pair) for pair in (("", OPSET), (DOMAIN, VERSION), ("com.microsoft", 1))]
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    register(options)
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    return ort.InferenceSession(model.SerializeToString(), options, providers=[PROVIDER])


def sessions(shape: tuple[int, int], console: Console) -> dict[str, Running]:
    found = {}
    for name, (write, width) in KERNELS.items():
        copies = max(2, -(-COLD // (shape[0] * shape[1] * width)))
        try:
            found[name] = Running(session(write, shape, copies), copies)
        except Exception as error:  # an ONNX Runtime without that operator raises a class of its own
            console.print(f"{name}: left out, {str(error).splitlines()[0][:200]}")
    return found


def measure(shape: tuple[int, int], rows: tuple[int, ...], rounds: int, console: Console) -> list[dict[str, Any]]:
    """One record for every M and kernel."""
    size, running, records = shape[0] * shape[1], sessions(shape, console), []
    for count in rows:
        x = np.random.default_rng(1).standard_normal((count, shape[0])).clip(-4, 4).astype(np.float16)
        taken: dict[str, list[float]] = {name: [] for name in running}
        repeats = {}
        for name, one in running.items():
            one.bind(x)
            one.seconds(3)  # warms up: lays weights out, chooses algorithms
            repeats[name] = max(1, int(0.05 / (one.seconds(3) * one.copies)))
        for _ in range(rounds):
            for name, one in running.items():
                taken[name].append(one.seconds(repeats[name]))
        for name in running:
            middle = statistics.median(taken[name])
            ratio = statistics.median(a / b for a, b in zip(taken["fp16 MatMul"], taken[name], strict=True))
            records.append(
                {
                    "K": shape[0],
                    "N": shape[1],
                    "M": count,
                    "kernel": name,
                    "seconds": middle,
                    "ratio": ratio,
                    "gigabytes_per_second": size * KERNELS[name][1] / middle / 1e9,
                    "teraflops": 2 * count * size / middle / 1e12,
                }
            )
    return records


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
    records = [r for shape in SHAPES for r in measure(shape, tuple(given.rows), given.rounds, console)]
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

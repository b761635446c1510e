"""The operator spq::Fp8MatMul beside ONNX Runtime's own products: one thread, cold weights, interleaved.

Every kernel has a session with as many copies of the weight as outgrow twice the last cache, so each product reads its
weight from memory, as in a model. Rounds take turns through all kernels; a ratio is the median over rounds of the
float32 time over the kernel's time in the same round.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort
from keeping import keep
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.table import Table

from spq_graph.passes.base.marks import DOMAIN, OP, VERSION
from spq_graph.passes.base.operand import Operand
from spq_graph.passes.base.values import Weight
from spq_graph.passes.forms.fp8_function import fp8_matmul_function
from spq_graph.passes.forms.storages import Blocks
from spq_graph.passes.numbers.fp8 import E4M3, fp8_weight_codes, pack_panels
from spq_graph.passes.numbers.scales import absmax_of, scales_to, top_code, weight_codes
from spq_graph.runtime.proof.health import processor
from spq_graph.runtime.sessions.library import library_info, register

SHAPES = ((5632, 2048), (2048, 5632))
ROWS = (1, 8, 32, 128, 512)
OPSET = 21
# Times float32: M, kernel, at least.
TARGETS = {(1, "fp8 fast"): 4.0, (32, "fp8 fast"): 1.8, (128, "fp8 fast"): 1.8, (128, "fp8 exact"): 1.0}
Array = npt.NDArray[Any]
Write = Callable[[str, Array], "Product"]


@dataclass(slots=True)
class Product:
    """One product of the input X and one weight, as nodes and initializers."""

    nodes: list[onnx.NodeProto]
    initializers: list[onnx.TensorProto]


def fp32(name: str, weight: Array) -> Product:
    return Product([helper.make_node("MatMul", ["X", name], [f"{name}.Y"])], [numpy_helper.from_array(weight, name)])


def qdq(name: str, weight: Array) -> Product:
    scales = scales_to(absmax_of([weight]), top_code(8), "per_channel")
    tensors = {
        f"{name}.codes": weight_codes(weight, scales, 8),
        f"{name}.scale": scales,
        f"{name}.zero": np.zeros_like(scales, dtype=np.int8),
        f"{name}.a_scale": np.float32(8 / 255),
        f"{name}.a_zero": np.uint8(128),
    }
    a, w = ["X", f"{name}.a_scale", f"{name}.a_zero"], [f"{name}.codes", f"{name}.scale", f"{name}.zero"]
    return Product(
        [
            helper.make_node("QuantizeLinear", a, [f"{name}.q"]),
            helper.make_node("DequantizeLinear", [f"{name}.q", *a[1:]], [f"{name}.a"]),
            helper.make_node("DequantizeLinear", w, [f"{name}.w"], axis=1),
            helper.make_node("MatMul", [f"{name}.a", f"{name}.w"], [f"{name}.Y"]),
        ],
        [numpy_helper.from_array(np.asarray(array), key) for key, array in tensors.items()],
    )


def nbits(name: str, weight: Array) -> Product:
    stored = Blocks(Operand(Weight(ir.Value(name=name, const_value=ir.tensor(weight)), ()), flipped=False))
    return Product(
        [
            helper.make_node(
                "MatMulNBits",
                ["X", f"{name}.codes", f"{name}.scale"],
                [f"{name}.Y"],
                domain="com.microsoft",
                K=weight.shape[0],
                N=weight.shape[1],
                bits=8,
                block_size=stored.block,
                accuracy_level=4,
            )
        ],
        [
            numpy_helper.from_array(stored.tensor(f"{name}.codes", name).numpy(), f"{name}.codes"),
            numpy_helper.from_array(stored.scales, f"{name}.scale"),
        ],
    )


def fp8(*, fast: int, a_type: int = TensorProto.FLOAT, a_scale: float = 1.0) -> Write:
    def write(name: str, weight: Array) -> Product:
        scales = scales_to(absmax_of([weight]), E4M3.largest, "per_channel")
        panels = pack_panels(fp8_weight_codes(weight, scales))
        codes = helper.make_tensor(f"{name}.B", E4M3.element_type, panels.shape, panels.tobytes(), raw=True)
        return Product(
            [
                helper.make_node(
                    OP,
                    ["X", f"{name}.B", f"{name}.scale", f"{name}.a_scale"],
                    [f"{name}.Y"],
                    domain=DOMAIN,
                    K=weight.shape[0],
                    N=weight.shape[1],
                    fast=fast,
                    a_type=a_type,
                )
            ],
            [
                codes,
                numpy_helper.from_array(scales, f"{name}.scale"),
                numpy_helper.from_array(np.float32(a_scale), f"{name}.a_scale"),
            ],
        )

    return write


KERNELS: dict[str, tuple[Write, int]] = {  # and bytes a weight
    "fp32": (fp32, 4),
    "int8 QDQ": (qdq, 1),
    "MatMulNBits-8": (nbits, 1),
    "fp8 fast": (fp8(fast=1), 1),
    "fp8 exact": (fp8(fast=0), 1),
    "fp8 e4m3 x e4m3": (fp8(fast=1, a_type=TensorProto.FLOAT8E4M3FN, a_scale=4 / 448), 1),
}


def session(
    write: Write, shape: tuple[int, int], copies: int, functions: Sequence[onnx.FunctionProto]
) -> ort.InferenceSession:
    """One session over so many products of the same size, each with a weight of its own."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal(shape).astype(np.float32)
    # Rolled, so that no two are the same and none can be shared.
    products = [write(f"w{i}", np.roll(weight, i, axis=1)) for i in range(copies)]
    # One row of a result leaves the graph: the runtime then reuses the memory of the whole of it, as in a model, where
    # it is neither fresh nor copied.
    rows = [helper.make_node("Gather", [f"w{i}.Y", "first"], [f"w{i}.row"]) for i in range(copies)]
    graph = helper.make_graph(
        [node for product, row in zip(products, rows, strict=True) for node in (*product.nodes, row)],
        "products",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, ["M", shape[0]])],
        [helper.make_tensor_value_info(f"w{i}.row", TensorProto.FLOAT, [shape[1]]) for i in range(copies)],
        [tensor for product in products for tensor in product.initializers]
        + [numpy_helper.from_array(np.asarray(0), "first")],
    )
    imports = [helper.make_opsetid(*pair) for pair in (("", OPSET), (DOMAIN, VERSION), ("com.microsoft", 1))]
    model = helper.make_model(graph, opset_imports=imports, functions=functions, ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    register(options)
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def last_cache() -> int:
    """Bytes of the largest cache that the system tells of."""
    sizes = [
        int(text[:-1]) * {"K": 1 << 10, "M": 1 << 20}[text[-1]]
        for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
        if (text := file.read_text(encoding="ascii").strip())
    ]
    return max(sizes, default=32 << 20)


def seconds_of(run: ort.InferenceSession, x: Array, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        run.run(None, {"X": x})
    return (time.perf_counter() - start) / repeats


def measure(shape: tuple[int, int], rows: tuple[int, ...], rounds: int, cold: int) -> list[dict[str, Any]]:
    """One record for every M and kernel."""
    size = shape[0] * shape[1]
    copies = {name: max(2, -(-cold // (size * width))) for name, (_, width) in KERNELS.items()}
    functions = [ir.to_proto(fp8_matmul_function(OPSET))]
    sessions = {name: session(write, shape, copies[name], functions) for name, (write, _) in KERNELS.items()}
    records = []
    for count in rows:
        x = np.random.default_rng(1).standard_normal((count, shape[0])).astype(np.float32).clip(-4, 3.9)
        taken: dict[str, list[float]] = {name: [] for name in KERNELS}
        for run in sessions.values():
            run.run(None, {"X": x})
        for _ in range(rounds):
            for name, run in sessions.items():
                taken[name].append(seconds_of(run, x, 1) / copies[name])
        for name, (_, width) in KERNELS.items():
            ratio = statistics.median(a / b for a, b in zip(taken["fp32"], taken[name], strict=True))
            middle = statistics.median(taken[name])
            records.append(
                {
                    "K": shape[0],
                    "N": shape[1],
                    "M": count,
                    "kernel": name,
                    "ratio": ratio,
                    "seconds": middle,
                    "gigabytes_per_second": size * width / middle / 1e9,
                    "gigaflops": 2 * count * size / middle / 1e9,
                }
            )
    return records


def show(records: list[dict[str, Any]], console: Console) -> None:
    table = Table("K x N", "M", "kernel", "x fp32", "ms", "GB/s", "GFLOP/s", "asked", box=None)
    for r in records:
        asked = TARGETS.get((r["M"], r["kernel"]))
        verdict = "" if asked is None else f">= {asked}: {'met' if r['ratio'] >= asked else 'MISSED'}"
        table.add_row(
            f"{r['K']} x {r['N']}",
            str(r["M"]),
            r["kernel"],
            f"{r['ratio']:.2f}",
            f"{r['seconds'] * 1e3:.3f}",
            f"{r['gigabytes_per_second']:.1f}",
            f"{r['gigaflops']:.0f}",
            verdict,
        )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS))
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/")
    given = parser.parse_args()
    info = library_info()
    cold = max(96 << 20, 2 * last_cache())
    records = [r for shape in SHAPES for r in measure(shape, tuple(given.rows), given.rounds, cold)]
    console = Console()
    console.print(f"{processor()}, operator library {info['isa'] if info else 'absent: the function runs'}, 1 thread")
    show(records, console)
    if given.save:
        versions = {"onnxruntime": ort.__version__, "numpy": np.__version__}
        path = keep(
            "fp8-matmul",
            device=processor(),
            library=info,
            rounds=given.rounds,
            cold_bytes=cold,
            versions=versions,
            records=records,
        )
        console.print(f"written to {path.name}")


if __name__ == "__main__":
    main()

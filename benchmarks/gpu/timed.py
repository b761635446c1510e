"""The FP8 operator's times beside ONNX Runtime's own products and what cuBLASLt takes, as torch calls it.

torch's products are replayed as one CUDA graph, so that theirs is the kernels' time alone, and their input is in their
type already; sessions of ONNX Runtime launch every kernel, and quantize their input themselves.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.gpu.place import Place

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import fp8_cuda
from cuda_products import Array

ROUNDS = 5
COLD = 160 << 20  # bytes of weights that take turns: more than twice the cache of an H200, of 60 MB
SMALL = (64, 96)  # K and N on a stand-in
Found = dict[str, Any]


@dataclass(slots=True)
class Cublaslt:
    """Products of one input and several weights by torch; replayed as one graph where there is a GPU.

    Attributes:
        copies: weights.
        width: bytes of an element of a weight.
        device: as torch calls it.
        to: what makes an operand of a float16 [M, K] tensor.
        multiply: what multiplies an operand by a weight.
        weights: of the shape that `multiply` takes.
        results, operand: of the latest run.
    """

    copies: int
    width: int
    device: str
    to: Callable[[Any], Any]
    multiply: Callable[[Any, Any], Any]
    weights: list[Any]
    results: list[Any] = field(default_factory=list)
    operand: Any = None
    _replay: Callable[[], None] | None = None

    def bind(self, x: Array) -> None:
        """Take an input, and record all products."""
        import torch

        self.operand = self.to(torch.from_numpy(x).to(self.device))  # a graph reads it where it lies

        def all_of_them() -> None:
            self.results = [self.multiply(self.operand, weight) for weight in self.weights]

        if self.device == "cpu":
            self._replay = all_of_them
            return
        stream = torch.cuda.Stream()  # warmed up beside, as torch's own page on graphs has it
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                all_of_them()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            all_of_them()
        self._replay = graph.replay

    def seconds(self, repeats: int) -> float:
        """What one product takes."""
        import torch

        assert self._replay is not None
        wait = torch.cuda.synchronize if self.device != "cpu" else _nothing
        wait()
        start = time.perf_counter()
        for _ in range(repeats):
            self._replay()
        wait()
        return (time.perf_counter() - start) / repeats / self.copies


def _nothing() -> None:
    """There is nothing to wait for."""


def by_torch(weight: Array, device: str, cold: int) -> Iterator[tuple[str, Cublaslt]]:
    """By name, products of a weight [K, N] in float16, in FP8 E4M3 with one scale, and in int8 to int32 sums."""
    import torch

    if device != "cpu":
        torch.backends.cuda.preferred_blas_library("cublaslt")
    half = torch.from_numpy(weight).to(device).half()
    one = torch.ones((), dtype=torch.float32, device=device)
    e4m3 = torch.float8_e4m3fn

    def copies(made: Any, width: int) -> list[Any]:
        return [made.roll(number, 0).t() for number in range(fp8_cuda.copies_of(weight, width, cold))]

    def fp8(x: Any, w: Any) -> Any:
        return torch._scaled_mm(x, w, scale_a=one, scale_b=one, out_dtype=torch.float16, use_fast_accum=True)

    by_column = half.t().contiguous()  # [N, K]: cuBLASLt has 8-bit products of this arrangement only
    bytes_of = by_column.to(e4m3).view(torch.uint8)
    fp8_weights = [w.t().contiguous().view(e4m3).t() for w in copies(bytes_of, 1)]
    codes = (by_column * 30).round().clamp(-127, 127).to(torch.int8)
    rows: list[tuple[str, int, Callable[[Any], Any], Callable[[Any, Any], Any], list[Any]]] = [
        ("cuBLASLt fp16", 2, lambda x: x, torch.matmul, copies(by_column, 2)),
        ("cuBLASLt fp8_e4m3", 1, lambda x: x.to(e4m3), fp8, fp8_weights),
        ("cuBLASLt int8", 1, lambda x: (x * 30).round().to(torch.int8), torch._int_mm, copies(codes, 1)),
    ]
    for name, width, to, multiply, weights in rows:
        yield name, Cublaslt(len(weights), width, device, to, multiply, weights)


def operator(where: Place, record: Callable[[Found], None]) -> Found:
    """Every kernel at every number of rows, and a table of them."""
    console = Console(stderr=True, width=120)
    shape, rows = (SMALL, (1, 32)) if where.stands_in else (fp8_cuda.SHAPES[0], fp8_cuda.ROWS)
    cold, rounds = (1 << 16, 1) if where.stands_in else (COLD, ROUNDS)
    weight = fp8_cuda.random_weight(shape)
    running = fp8_cuda.sessions(weight, console, where.provider, where.device, cold)
    try:
        running.update(by_torch(weight, where.device, cold))
    except Exception as error:  # a torch that is absent, or older than what is asked of it
        record({"kernel": "cuBLASLt", "left out": f"{type(error).__name__}: {str(error)[:500]}"})
    records = []
    for found in fp8_cuda.measure(shape, rows, rounds, running, console):
        record(found)
        records.append(found)
    fp8_cuda.show(records, console)
    return {"kernels": sorted({found["kernel"] for found in records}), "cold_bytes": cold, "rounds": rounds}

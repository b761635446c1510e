"""What quantizers of ONNX Runtime make of a float model: `python -m benchmarks.published.workers METHOD MODEL OUT`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path


def dynamic(model: Path, out: Path) -> None:
    """Weights by channel in 8 bits, activations as they come."""
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(model, out / "model.onnx", per_channel=True, use_external_data_format=True)


def weight_only(model: Path, out: Path, bits: int) -> None:
    """MatMulNBits in blocks of 32, with the fast kernel (`accuracy_level` 4)."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(onnx.load(model), bits=bits, block_size=32, is_symmetric=True, accuracy_level=4)
    quantizer.process()
    quantizer.model.save_model_to_file(str(out / "model.onnx"), use_external_data_format=True)


WORKERS: dict[str, Callable[[Path, Path], None]] = {
    "ort_dynamic": dynamic,
    "ort_weights_8": lambda model, out: weight_only(model, out, 8),
    "ort_weights_4": lambda model, out: weight_only(model, out, 4),
}

if __name__ == "__main__":
    WORKERS[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))

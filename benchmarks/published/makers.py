"""What quantizers make of a float model: `python makers.py METHOD WORK OUT`, run by the method's own Python.

WORK holds `fp32/model.onnx`, `hf` (the same weights as a Hugging Face folder), `model.gguf` (the source, whose weights
of 4 bits stand for exactly those numbers) and `ids.npz` (calibration, int64 [rows, length]). Each method imports what
it needs itself, since the environments know nothing of this project, and has the settings that its own documentation
names for a language model.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


class Batches:
    """The calibration rows as feeds of the exported graph; as ONNX Runtime's readers, None at the end."""

    def __init__(self, work: Path, *, cache: bool = True) -> None:
        import numpy as np

        self._ids = np.load(work / "ids.npz")["input_ids"]
        self._past = self._inputs(work / "fp32" / "model.onnx") if cache else {}
        self.rewind()

    @staticmethod
    def _inputs(model: Path) -> dict[str, tuple[int, int]]:
        import onnx

        graph = onnx.load(model, load_external_data=False).graph
        shapes = {given.name: [d.dim_value for d in given.type.tensor_type.shape.dim] for given in graph.input}
        return {name: (shape[1], shape[3]) for name, shape in shapes.items() if name.startswith("past")}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        import numpy as np

        past = {name: np.zeros((1, heads, 0, size), np.float32) for name, (heads, size) in self._past.items()}
        for row in self._ids:
            positions = np.arange(len(row))[None]
            yield {"input_ids": row[None], "attention_mask": np.ones_like(row[None]), "position_ids": positions, **past}

    def __len__(self) -> int:
        return len(self._ids)

    def rewind(self) -> None:
        self._feeds = iter(self)

    def get_next(self) -> dict[str, Any] | None:
        return next(self._feeds, None)

    def get_first(self) -> dict[str, Any]:
        return next(iter(self))


def dynamic(work: Path, out: Path) -> None:
    """Weights by channel in 8 bits, activations as they come."""
    from onnxruntime.quantization import quantize_dynamic

    model = work / "fp32" / "model.onnx"
    quantize_dynamic(model, out / "model.onnx", per_channel=True, use_external_data_format=True)


def static(work: Path, out: Path) -> None:
    """MinMax and QDQ, as by default, with weights by channel."""
    from onnxruntime.quantization import quantize_static

    model = work / "fp32" / "model.onnx"
    quantize_static(model, out / "model.onnx", Batches(work), per_channel=True, use_external_data_format=True)


def weight_only(work: Path, out: Path, bits: int) -> None:
    """MatMulNBits in blocks of 32, with the fast kernel (`accuracy_level` 4)."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    model = onnx.load(work / "fp32" / "model.onnx")
    quantizer = MatMulNBitsQuantizer(model, bits=bits, block_size=32, is_symmetric=True, accuracy_level=4)
    quantizer.process()
    quantizer.model.save_model_to_file(str(out / "model.onnx"), use_external_data_format=True)


def gguf(work: Path, out: Path, kind: int) -> None:
    """llama.cpp's own quantizer: it takes each tensor to float first, so a source of 4 bits is the float model."""
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread, params.allow_requantize = kind, os.cpu_count() or 1, True
    status = llama_cpp.llama_model_quantize(str(work / "model.gguf").encode(), str(out / "model.gguf").encode(), params)
    if status:
        raise RuntimeError(f"llama_model_quantize gave {status}")


def stateful(work: Path) -> Any:
    """The exported graph in OpenVINO's form for language models, whose cache is state of the request."""
    import openvino as ov
    from openvino import passes

    model = ov.Core().read_model(work / "fp32" / "model.onnx")
    # One sequence: a cache of no tokens has a shape then, and the states begin as it.
    model.reshape({port: [1, *list(port.get_partial_shape())[1:]] for port in model.inputs})
    given = [port.get_any_name() for port in model.inputs if port.get_any_name().startswith("past")]
    kept = [port.get_any_name() for port in model.outputs if port.get_any_name() != "logits"]
    manager = passes.Manager()
    manager.register_pass(passes.MakeStateful(dict(zip(given, kept, strict=True))))
    manager.run_passes(model)
    return model


def openvino(work: Path, out: Path, how: Callable[[Any, Any], Any]) -> None:
    """NNCF on OpenVINO's model; `how` is given that and the calibration data."""
    import nncf
    import openvino as ov

    model = stateful(work)
    names = {port.get_any_name() for port in model.inputs}
    rows = [{name: array for name, array in feeds.items() if name in names} for feeds in Batches(work, cache=False)]
    ov.save_model(how(model, nncf.Dataset(rows)), out / "model.xml")


def nncf_int8(model: Any, data: Any) -> Any:
    """Post-training quantization with the settings for transformers, SmoothQuant among them."""
    import nncf

    return nncf.quantize(model, data, model_type=nncf.ModelType.TRANSFORMER, subset_size=data.get_length())


def nncf_weights_8(model: Any, data: Any) -> Any:
    import nncf

    return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)


def nncf_weights_4(model: Any, data: Any) -> Any:
    """Groups of 64, since the default of 128 does not divide every width here; AWQ on the data.

    Scales estimated on the data, as its documentation has it too, leave nothing of SmolLM2: KL 12.5, to 0.3 without.
    """
    import nncf

    mode = nncf.CompressWeightsMode.INT4_SYM
    return nncf.compress_weights(model, mode=mode, group_size=64, dataset=data, awq=True)


def genai(work: Path, out: Path) -> None:
    """The builder's INT4 for the CPU, as its README has it."""
    builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(work / "hf"), "-o", str(out)]
    subprocess.run([*builder, "-p", "int4", "-e", "cpu", "-c", str(out / "cache")], check=True)


def torchao(work: Path, out: Path, dynamic: bool) -> None:
    """Linear layers in 8 bits through transformers' door to torchao, which leaves the head as it is."""
    import torch
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig
    from transformers import AutoModelForCausalLM, TorchAoConfig

    config = TorchAoConfig(Int8DynamicActivationInt8WeightConfig() if dynamic else Int8WeightOnlyConfig())
    model = AutoModelForCausalLM.from_pretrained(work / "hf", dtype=torch.float32, quantization_config=config)
    model.save_pretrained(out)


def olive(work: Path, out: Path) -> None:
    """The k-quants that Olive brings itself, in 4 bits; its other passes for ONNX call what has rows of its own."""
    from olive import run

    with tempfile.TemporaryDirectory(dir=work) as cache:
        run(
            {
                "input_model": {"type": "ONNXModel", "model_path": str(work / "fp32" / "model.onnx")},
                "passes": {"quantized": {"type": "OnnxKQuantQuantization"}},
                "output_dir": str(out),
                "cache_dir": cache,
            }
        )


def quark(work: Path, out: Path) -> None:
    """Its ready INT8 for transformers, which is of products with weights, after SmoothQuant, its remedy for these."""
    from quark.onnx import ModelQuantizer, QConfig

    config = QConfig.get_default_config("INT8_TRANSFORMER_DEFAULT")
    config.global_quant_config.include_sq = True
    config.global_quant_config.use_external_data_format = True
    model = str(work / "fp32" / "model.onnx")
    ModelQuantizer(config).quantize_model(model, str(out / "model.onnx"), Batches(work))


def modelopt(work: Path, out: Path) -> None:
    """INT8 of products on the CPU, with largest values as the others have it, on a copy, since it writes to its source.

    Everything that it can quantize, as by default, takes the squares in the norms too, and leaves nothing of the model.
    """
    from modelopt.onnx.quantization import quantize

    with tempfile.TemporaryDirectory(dir=work) as folder:
        place, written = Path(folder), Path(folder) / "out"
        written.mkdir()
        for file in (work / "fp32").glob("model.onnx*"):
            shutil.copyfile(file, place / file.name)
        quantize(
            str(place / "model.onnx"),
            quantize_mode="int8",
            calibration_method="max",
            calibration_data_reader=Batches(work),
            calibration_eps=["cpu"],
            op_types_to_quantize=["MatMul"],
            high_precision_dtype="fp32",  # what it makes of the rest by default is float16, which a CPU only stores
            use_external_data_format=True,
            output_path=str(written / "model.onnx"),
        )
        for file in written.glob("model.onnx*"):  # and not the gigabytes that it leaves beside
            shutil.move(file, out / file.name)


MAKERS: dict[str, Callable[[Path, Path], None]] = {
    "ort_dynamic": dynamic,
    "ort_static": static,
    "ort_weights_8": lambda work, out: weight_only(work, out, 8),
    "ort_weights_4": lambda work, out: weight_only(work, out, 4),
    "llama_q8_0": lambda work, out: gguf(work, out, 7),  # LLAMA_FTYPE_MOSTLY_Q8_0
    "llama_q4_k_m": lambda work, out: gguf(work, out, 15),  # LLAMA_FTYPE_MOSTLY_Q4_K_M
    "openvino_int8": lambda work, out: openvino(work, out, nncf_int8),
    "openvino_weights_8": lambda work, out: openvino(work, out, nncf_weights_8),
    "openvino_weights_4": lambda work, out: openvino(work, out, nncf_weights_4),
    "genai_4": genai,
    "torchao_dynamic": lambda work, out: torchao(work, out, dynamic=True),
    "torchao_weights_8": lambda work, out: torchao(work, out, dynamic=False),
    "olive": olive,
    "quark": quark,
    "modelopt": modelopt,
}


if __name__ == "__main__":
    MAKERS[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))

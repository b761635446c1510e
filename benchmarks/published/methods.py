"""What a user may pick for a decoder on a CPU: how each is called, where it lives, and what runs what it makes."""

from __future__ import annotations

from dataclasses import dataclass

OURS = ("ours", "ours_static")


@dataclass(frozen=True, slots=True)
class Environment:
    """Where a peer is installed.

    Attributes:
        installs: what goes into it, by call of pip.
        above: whether it sees what is installed here, torch and ONNX Runtime among it, beneath that.
        packages: those whose versions are kept with the figures.
    """

    installs: tuple[tuple[str, ...], ...]
    above: bool = True
    packages: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Method:
    """A way to make a float model small and fast.

    Attributes:
        label: for people.
        short: for a picture.
        engine: of `serving.py`, that runs what comes of it.
        files: of the folder that it writes, what makes the size on disk.
        environment: by its name in ENVIRONMENTS; None for the one that this runs in.
    """

    label: str
    short: str
    engine: str = "onnx"
    files: str = "model.onnx*"
    environment: str | None = None


ENVIRONMENTS = {
    "openvino": Environment((("nncf==3.4.0",),), packages=("nncf", "openvino")),
    "llama.cpp": Environment((("llama-cpp-python==0.3.36",),), above=False, packages=("llama-cpp-python",)),
    "genai": Environment((("onnxruntime-genai==0.18.0",),), packages=("onnxruntime-genai", "onnxruntime")),
    "torchao": Environment((("--no-deps", "torchao==0.18.0"),), packages=("torchao", "torch", "transformers")),
    "olive": Environment((("olive-ai==0.13.0",),), packages=("olive-ai", "onnxruntime")),
    "quark": Environment((("amd-quark==0.13",),), packages=("amd-quark", "onnxruntime")),
    "modelopt": Environment(
        (
            # Without what its extra names for GPUs, gigabytes that nothing here runs on.
            ("--no-deps", "nvidia-modelopt==0.47.0"),
            ("cppimport", "lief", "nvidia-ml-py", "omegaconf", "pulp<4"),
            ("--no-deps", "onnx-graphsurgeon", "onnxconverter-common", "onnxslim", "polygraphy"),
        ),
        packages=("nvidia-modelopt", "onnxruntime"),
    ),
}
_GGUF = {"engine": "llama", "files": "model.gguf", "environment": "llama.cpp"}
_OPENVINO = {"engine": "openvino", "files": "model.*", "environment": "openvino"}
_TORCH = {"engine": "torchao", "files": "model*.safetensors", "environment": "torchao"}

# In the order in which they are measured and told.
METHODS = {
    "fp32": Method("FP32, ONNX Runtime", "FP32"),
    "ours": Method("**spq-graph**", "spq-graph"),
    "ours_static": Method("**spq-graph**, `--preset w8a8-static`", "spq-graph static"),
    "ort_dynamic": Method("ONNX Runtime, dynamic INT8", "ORT dynamic"),
    "ort_static": Method("ONNX Runtime, static INT8 (QDQ)", "ORT static"),
    "ort_weights_8": Method("ONNX Runtime, 8-bit weights (`MatMulNBits`)", "MatMulNBits 8"),
    "ort_weights_4": Method("ONNX Runtime, 4-bit weights (`MatMulNBits`)", "MatMulNBits 4"),
    "llama_q8_0": Method("llama.cpp, Q8_0", "Q8_0", **_GGUF),
    "llama_q4_k_m": Method("llama.cpp, Q4_K_M", "Q4_K_M", **_GGUF),
    "openvino_int8": Method("OpenVINO, NNCF INT8 with SmoothQuant", "NNCF INT8", **_OPENVINO),
    "openvino_weights_8": Method("OpenVINO, NNCF 8-bit weights", "NNCF weights 8", **_OPENVINO),
    "openvino_weights_4": Method("OpenVINO, NNCF 4-bit weights", "NNCF weights 4", **_OPENVINO),
    "genai_4": Method("onnxruntime-genai's builder, INT4", "genai INT4", "genai", "model.onnx*", "genai"),
    "torchao_dynamic": Method("torchao, dynamic INT8", "torchao dynamic", **_TORCH),
    "torchao_weights_8": Method("torchao, 8-bit weights", "torchao weights 8", **_TORCH),
    "olive": Method("Olive, 4-bit k-quants", "Olive k-quant 4", environment="olive"),
    "quark": Method("Quark, static INT8 with SmoothQuant", "Quark", environment="quark"),
    "modelopt": Method("ModelOpt, static INT8", "ModelOpt", environment="modelopt"),
}

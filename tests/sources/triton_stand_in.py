"""Triton's ONNX Runtime backend as far as one model goes, with Triton's own protocol and config schema.

`python triton_stand_in.py MODEL`, in the environment of its client, takes a model of a repository, prints a port,
and serves until it is ended.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from math import prod
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnxruntime as ort
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc
from tritonclient.utils import np_to_triton_dtype, triton_to_np_dtype

ONNX_TYPES = {"TYPE_INT64": "tensor(int64)", "TYPE_FP32": "tensor(float)", "TYPE_FP16": "tensor(float16)"}


class Model(service_pb2_grpc.GRPCInferenceServiceServicer):
    """One model, with the states of its sequences.

    Args:
        folder: holds config.pbtxt and the folder of version 1.
    """

    def __init__(self, folder: Path) -> None:
        self.config = text_format.Parse((folder / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
        assert self.config.backend == "onnxruntime"
        assert self.config.sequence_batching.oldest.max_candidate_sequences > 0
        self.states = self.config.sequence_batching.state
        options = ort.SessionOptions()
        for library in self.config.model_operations.op_library_filename:
            options.register_custom_ops_library(library)
        model = folder / "1" / "model.onnx"
        self.session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.sequences: dict[int, dict[str, Any]] = {}
        self.name = folder.name
        self.check()

    def check(self) -> None:
        """As the backend's ValidateInputs and ValidateOutputs: all inputs, with types and sizes that fit."""
        inputs = {one.name: one for one in self.session.get_inputs()}
        outputs = {one.name: one for one in self.session.get_outputs()}
        given = {one.name: one for one in self.config.input}
        assert {*given} | {state.input_name for state in self.states} == {*inputs}
        assert len(given) + len(self.states) == len(inputs)
        for one in self.config.input:
            self.fits(one, inputs[one.name])
        for one in self.config.output:
            self.fits(one, outputs[one.name])
        for state in self.states:
            self.fits(state, inputs[state.input_name])
            self.fits(state, outputs[state.output_name])
            (first,) = state.initial_state
            # As SequenceStates::Initialize: sizes that vary are 1 in the first request, whatever this says.
            assert [*first.dims] == [max(size, 1) for size in state.dims]
            assert first.zero_data
            assert first.data_type == state.data_type
            assert first.name

    def fits(self, asked: Any, has: Any) -> None:
        assert ONNX_TYPES[model_config_pb2.DataType.Name(asked.data_type)] == has.type
        assert self.config.max_batch_size > 0
        assert not isinstance(has.shape[0], int)
        assert len(asked.dims) == len(has.shape) - 1
        for size, own in zip(asked.dims, has.shape[1:], strict=True):
            assert size == (own if isinstance(own, int) else -1)

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        """One request of a sequence."""
        assert request.model_name == self.name
        number, start, end = (request.parameters[f"sequence_{name}"] for name in ("id", "start", "end"))
        assert number.int64_param > 0
        if start.bool_param:
            self.sequences[number.int64_param] = {
                state.input_name: np.zeros([1, *state.initial_state[0].dims], np.float32) for state in self.states
            }
        feeds = {}
        for one, raw in zip(request.inputs, request.raw_input_contents, strict=True):
            assert prod(one.shape) > 0
            assert one.shape[0] <= self.config.max_batch_size
            feeds[one.name] = np.frombuffer(raw, triton_to_np_dtype(one.datatype)).reshape(one.shape)
        assert {*feeds} == {one.name for one in self.config.input}
        names = [one.name for one in self.config.output] + [state.output_name for state in self.states]
        found = dict(zip(names, self.session.run(names, feeds | self.sequences[number.int64_param]), strict=True))
        self.sequences[number.int64_param] = {state.input_name: found[state.output_name] for state in self.states}
        if end.bool_param:
            del self.sequences[number.int64_param]
        response = service_pb2.ModelInferResponse(model_name=self.name, model_version="1")
        for one in self.config.output:
            array = found[one.name]
            response.outputs.add(name=one.name, datatype=np_to_triton_dtype(array.dtype), shape=array.shape)
            response.raw_output_contents.append(array.tobytes())
        return response


def main() -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Model(Path(sys.argv[1])), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main()

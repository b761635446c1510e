"""Graph in, graph out: passes on onnx_ir and onnxscript patterns. No torch, no onnxruntime."""

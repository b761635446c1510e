"""What is in a graph, and what becomes of it?

Graph in, graph out: passes on onnx_ir and onnxscript patterns. No torch, no onnxruntime.
"""

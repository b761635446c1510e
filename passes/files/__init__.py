"""How does an ONNX file come in, and go out?"""

"""Where does a model come from, and how does it become ONNX?

Model sources: resolving them, exporting them to ONNX, sampling from them, planting spikes in them.

The only part of spq-graph that imports torch and transformers, and only inside the functions that need them: importing
these modules costs nothing and works where neither is installed.
"""

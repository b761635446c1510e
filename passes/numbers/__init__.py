"""How is a number quantized, in numpy and without a graph?"""

"""What runs a graph, whole or in pieces?"""

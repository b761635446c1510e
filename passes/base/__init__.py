"""What do all passes ask of a graph, do to it, and mark in it?"""

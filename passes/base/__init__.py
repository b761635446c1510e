"""How is a pass run, and what do all of them ask of a graph, do to it, and mark in it?"""

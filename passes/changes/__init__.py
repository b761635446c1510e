"""How is an edit that a remedy asks for made in a graph, and taken back?"""

"""How does a graph from anywhere get the one form that passes expect, with the same numbers?"""

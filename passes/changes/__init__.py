"""The reversible edits that remedies are made of: each is applied, and held against the graph, in one file."""

"""`python -m spq_graph`."""

from __future__ import annotations

from spq_graph.cli.app import main

if __name__ == "__main__":
    main()

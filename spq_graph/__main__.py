"""`python -m spq_graph`, and the command `spq-graph`."""

from __future__ import annotations

import sys

from spq_graph.documents.interrupts import Interrupted, leave, told, watch


def main() -> None:
    """Watch for signals from the first moment: to import the command line takes a while."""
    watch()
    try:
        from spq_graph.cli.app import main as run

        run()
    except Interrupted as stop:
        sys.stderr.write(f"interrupted; {told(stop)}\n")
        leave(stop.status)


if __name__ == "__main__":
    main()

"""Whether this machine can build the operator library."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

# A compiler may be there without the headers of the language.
PROGRAM = "#include <vector>\nint main() { return std::vector<int>(1)[0]; }\n"


@cache
def compiler() -> str | None:
    """The C++ compiler that CMake would find and that works, or None."""
    names = [os.environ["CXX"]] if "CXX" in os.environ else ["c++", "g++", "clang++"]
    return next((name for name in names if compiles(name)), None)


def compiles(name: str, *options: str) -> bool:
    """Whether a compiler is there and makes a program that runs."""
    if shutil.which(name) is None:
        return False
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder, "program.cpp"), Path(folder, "program")
        source.write_text(PROGRAM, encoding="utf-8")
        commands = [name, *options, str(source), "-o", str(program)], [str(program)]
        return all(subprocess.run(command, capture_output=True).returncode == 0 for command in commands)

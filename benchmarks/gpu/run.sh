#!/usr/bin/env bash
# The GPU run, in one command: bash benchmarks/gpu/run.sh KIT RESULTS [STEP ...] [--seconds N]
# KIT is what `make gpu-kit` wrote; RESULTS gets results.jsonl and log.txt. PYTHON names the interpreter.
set -euo pipefail
kit=$(cd "$1" && pwd) && mkdir -p "$2" && results=$(cd "$2" && pwd) && shift 2
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" -c 'import sys; from pathlib import Path; from benchmarks.gpu.parts import unpack
unpack(Path(sys.argv[1]), Path(sys.argv[2]))' "$kit" "$work"
export PYTHONPATH="$work/site:$PWD" PYTHONDONTWRITEBYTECODE=1 ORT_DISABLE_TELEMETRY=1
[ ! -f "$work/libspq_graph_ops.so" ] || export SPQ_GRAPH_LIBRARY="$work/libspq_graph_ops.so"
"$python" -m benchmarks.gpu.drive "$work" "$results" "$@"

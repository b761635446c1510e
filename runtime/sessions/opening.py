"""Open a session of ONNX Runtime, with what every session here is opened with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime as ort

from spq_graph.runtime.sessions.cores import threads_of
from spq_graph.runtime.sessions.library import cannot_load, register
from spq_graph.runtime.sessions.sums import keep_exact
from spq_graph.terms.targets import CPU_PROVIDER


def session_options(threads: int = 0, profile: Path | None = None) -> Any:
    """What every session here is opened with.

    Args:
        threads: intra-op threads; 0 takes all cores.
        profile: where to write a profile of the kernels; None for no profile.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads_of(threads)
    options.log_severity_level = 4  # what it would log it raises, too; its log has names as they are in the file
    # The runtime keeps a plan and an arena for every shape of a batch that it meets, and text has many: a quarter
    # of the peak, for no time that could be measured.
    options.enable_mem_pattern = False
    # Nodes in the order of the file: by default reductions wait until the end, and what they read waits with them.
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    # Several sessions live side by side here: spinning threads of one would steal the cores of the next.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    register(options)
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    return options


def open_session(model: str | bytes, options: Any, where: Path, provider: str = CPU_PROVIDER) -> Any:
    """A session over a file or a serialized model; what the provider has no kernel for runs on the CPU.

    Raises:
        SourceError: ONNX Runtime cannot load it.
    """
    try:
        keep_exact(options, model)
        return ort.InferenceSession(model, options, providers=list(dict.fromkeys([provider, CPU_PROVIDER])))
    except Exception as cause:  # the binding raises a class of its own for every status code
        raise cannot_load(str(cause).splitlines()[0], where) from cause

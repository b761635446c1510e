"""Dask clusters on this machine."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


@contextmanager
def cluster(workers: int, *, processes: bool = False, **settings: object) -> Iterator[Any]:
    """A scheduler and its workers, of one thread each: processes of their own, or threads of this one.

    Args:
        workers: how many.
        processes: whether a nanny starts each as a process, and again where it dies.
        settings: of Dask, by the last part of their name under `distributed.scheduler`.
    """
    distributed = pytest.importorskip("distributed")
    from dask import config

    from spq_graph.runtime.sessions import cores

    named = {f"distributed.scheduler.{name.replace('_', '-')}": value for name, value in settings.items()}
    with (
        config.set(named),
        distributed.LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=processes,
            protocol="tcp",
            dashboard_address=":0",
            silence_logs=logging.CRITICAL,
        ) as made,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(cores, "_share", cores._Share())  # workers that are threads of this process limit it
        yield made

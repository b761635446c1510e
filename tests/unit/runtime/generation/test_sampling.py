from __future__ import annotations

import numpy as np
import pytest

from spq_graph.runtime.generation.sampling import Sampling, choose
from spq_graph.terms.errors import UsageError

LOGITS = np.log([0.5, 0.05, 0.3, 0.15])


def shares(sampling: Sampling, draws: int = 4000) -> list[float]:
    (generator,) = sampling.generators(1)
    found = [int(choose(LOGITS[None], sampling, [generator])[0]) for _ in range(draws)]
    return [found.count(token) / draws for token in range(4)]


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(1.0), [0.5, 0.05, 0.3, 0.15]),
        (Sampling(1.0, top_k=2), [0.625, 0, 0.375, 0]),
        (Sampling(1.0, top_p=0.7), [0.625, 0, 0.375, 0]),
        (Sampling(1.0, top_p=0.85), [0.526, 0, 0.316, 0.158]),
        (Sampling(1.0, top_p=1.0), [0.5, 0.05, 0.3, 0.15]),
        (Sampling(1.0, top_k=3, top_p=0.5), [1, 0, 0, 0]),
        (Sampling(0.5), [0.685, 0.007, 0.247, 0.062]),
        (Sampling(), [1, 0, 0, 0]),
        (Sampling(1e-300), [1, 0, 0, 0]),
    ],
)
def test_shares(sampling: Sampling, expected: list[float]) -> None:
    assert shares(sampling) == pytest.approx(expected, abs=0.03)


def test_what_is_ruled_out_is_never_drawn() -> None:
    sampling = Sampling(1.0)
    logits = np.array([[-np.inf, 0.0, -np.inf, -np.inf]] * 2)
    assert choose(logits, sampling, sampling.generators(2)).tolist() == [1, 1]


@pytest.mark.parametrize(
    ("values", "option"),
    [
        ({"temperature": -1.0}, "--temperature"),
        ({"temperature": float("nan")}, "--temperature"),
        ({"top_k": 0}, "--top-k"),
        ({"top_p": 0.0}, "--top-p"),
        ({"top_p": 1.5}, "--top-p"),
    ],
)
def test_values_that_mean_nothing(values: dict[str, float], option: str) -> None:
    with pytest.raises(UsageError, match=option):
        Sampling(**values)  # type: ignore[arg-type]

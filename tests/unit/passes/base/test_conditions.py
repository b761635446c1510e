"""Every pass states what it takes and what it leaves, so that an error in their order is told where it is made."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator

import onnx_ir as ir
import pytest

import spq_graph.passes
from spq_graph.passes.base.run import run
from spq_graph.passes.canon.canonicalize import Canonicalize
from spq_graph.passes.observe import ObserveFaults
from spq_graph.terms.errors import CheckError
from tests.support.decoder_graphs import decoder

STATE_NOTHING = {
    "LiftOld": "it takes any graph, and leaves what it cannot lift: that is refused where the opset is asked for",
    "VerifyPlan": "it changes nothing, and takes any graph: what is not as planned is what it tells",
    "VerifyTarget": "it changes nothing, and takes any graph: what the target does not take is what it tells",
}


def passes() -> Iterator[type[ir.passes.PassBase]]:
    for module in pkgutil.walk_packages(spq_graph.passes.__path__, "spq_graph.passes."):
        for _, one in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if issubclass(one, ir.passes.PassBase) and one.__module__ == module.name:
                yield one


def test_every_pass_states_something() -> None:
    base = ir.passes.PassBase
    silent = {one.__name__ for one in passes() if one.requires is base.requires and one.ensures is base.ensures}
    assert silent == set(STATE_NOTHING)


class Idle(ObserveFaults):
    def call(self, model: ir.Model) -> ir.passes.PassResult:
        return ir.passes.PassResult(model, modified=False)


def test_what_is_not_left_as_promised_is_told() -> None:
    model = ir.from_proto(decoder())
    Canonicalize()(model)
    with pytest.raises(CheckError, match="Idle: the graph returns something else than what it observes") as caught:
        run(model, [Idle(["x"])])
    assert caught.value.remedy == "please report this"

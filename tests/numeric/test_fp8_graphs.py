"""Whole graphs with FP8 sites, without any library: what they compute, what is in the file, and what is refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.external_data_helper import ExternalDataInfo
from onnx.reference import ReferenceEvaluator

from spq_graph.passes.apply import apply_plan
from spq_graph.terms.errors import GraphError
from spq_graph.terms.precision import Precision
from spq_graph.terms.site import Role, Site
from tests.support.decoder_graphs import Decoder, decoder, token_feeds
from tests.support.graphs import Glu
from tests.support.inserting import activations, applied, kernels, plan_for, run
from tests.support.inserting_fp8 import EACH, product


def mixed(site: Site) -> Precision:
    chosen = {
        Role.GLU_DOWN: Precision.FP8_E5M2,
        Role.ATTN_O: Precision.W8FP8A16,
        Role.GLU_UP: Precision.FP8_E4M3,
        Role.GLU_GATE: Precision.W8A8_BLOCK,
        Role.LM_HEAD: Precision.FP32,
    }
    return chosen.get(site.role, Precision.INT8)


class TestWholeGraphs:
    @pytest.fixture
    def source(self, tmp_path: Path) -> Path:
        path = tmp_path / "model.onnx"
        onnx.save(decoder(Decoder(glu=Glu(width=32, inner=50))), path)
        return path

    @EACH
    def test_qkv_share_one_input(self, source: Path, precision: Precision) -> None:
        feeds = token_feeds()
        made = applied(source, plan_for(source, feeds, precision))
        [y], [reference] = run(made, feeds), ReferenceEvaluator(onnx.load(made)).run(None, feeds)
        before = run(source, feeds)[0]
        # Float32 sums in another order, through two layers; were any code another, it would be 1e-2.
        np.testing.assert_allclose(y, reference, atol=1e-5)
        assert 0 < np.abs(y - before).max() < 0.3 * np.abs(before).max()

    def test_beside_integers(self, source: Path) -> None:
        feeds = token_feeds()
        plan = plan_for(source, feeds, mixed)
        made = applied(source, plan)
        found = Counter(node.op_type for node in onnx.load(made).graph.node)
        assert (found["Fp8MatMul"], found["MatMulNBits"]) == (6, 2)
        assert kernels(made)["MatMulIntegerToFloat"] == len(plan.integer_sites) == 6
        before, after = run(source, feeds)[0], run(made, feeds)[0]
        assert 0 < np.abs(before - after).max() < 0.3 * np.abs(before).max()

    def test_nothing_of_it_where_no_site_is_fp8(self, source: Path) -> None:
        model = onnx.load(applied(source, plan_for(source, token_feeds(), Precision.INT8)))
        assert not model.functions
        assert {o.domain for o in model.opset_import} == {"", "com.microsoft"}
        assert "spq_graph.no_scale" not in {t.name for t in model.graph.initializer}

    def test_one_function_for_all(self, source: Path) -> None:
        model = onnx.load(applied(source, plan_for(source, token_feeds(), mixed)))
        assert [(f.domain, f.name) for f in model.functions] == [("spq", "Fp8MatMul")]
        assert len({o.domain for o in model.opset_import}) == len(model.opset_import)

    def test_without_a_library_weights_are_folded(self, source: Path) -> None:
        found = kernels(applied(source, plan_for(source, token_feeds(), Precision.W8FP8A16)))
        assert not {"Transpose", "Slice", "Flatten", "Concat"} & (set(found) - set(kernels(source)))

    def test_the_same_bytes_twice(self, source: Path) -> None:
        plan = plan_for(source, token_feeds(), mixed)
        one, two = applied(source, plan, "one.onnx"), applied(source, plan, "two.onnx")
        assert one.read_bytes().replace(b"one.onnx", b"two.onnx") == two.read_bytes()
        assert (source.parent / "one.onnx.data").read_bytes() == (source.parent / "two.onnx.data").read_bytes()

    def test_panels_start_at_cache_lines(self, tmp_path: Path) -> None:
        """Among scales, codes and weights of odd sizes, which lie in the same file."""
        path = tmp_path / "model.onnx"
        onnx.save(decoder(Decoder(glu=Glu(width=36, inner=301, bias=True), vocab=77)), path)
        made = applied(path, plan_for(path, token_feeds(), mixed))
        tensors = [t for t in onnx.load(made, load_external_data=False).graph.initializer if t.external_data]
        offsets = {t.name: ExternalDataInfo(t).offset for t in tensors}
        panels = [t.name for t in tensors if t.data_type == onnx.TensorProto.FLOAT8E4M3FN]
        assert len(panels) == 6
        assert all((offsets[name] or 0) % 64 == 0 for name in panels)
        assert any((offset or 0) % 64 for offset in offsets.values())  # nothing but the order aligns them


class TestRefused:
    def check(self, source: Path, message: str, changed: Mapping[str, Any]) -> None:
        plan = plan_for(source, {"x": activations(3, 4)}, Precision.FP8_E4M3)
        for name, value in changed.items():
            setattr(plan.sites[0], name, value)
        with pytest.raises(GraphError, match=message):
            apply_plan(source, plan)

    def test_no_range(self, tmp_path: Path) -> None:
        self.check(product(tmp_path, 4, 4)[0], "holds no range", {"range": None})

    @EACH
    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_weight_that_is_not_finite(self, tmp_path: Path, value: float, precision: Precision) -> None:
        weight = np.ones((4, 4))
        weight[1, 2] = value
        path, _ = product(tmp_path, 4, 4, weight=weight)
        self.check(path, "product: the weight holds NaN or infinity", {"precision": precision})

"""Which rules belong to which form."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from spq_graph.passes.forms.floating import Computed, StoredHalf
from spq_graph.passes.forms.fp8_operator import Fp8Operator
from spq_graph.passes.forms.fp8_pair import Fp8Pair
from spq_graph.passes.forms.int8_operator import Int8Operator
from spq_graph.passes.forms.integer import IntegerQdq, MatMulInteger
from spq_graph.passes.forms.nbits import ACCURACY_LEVELS, NBits
from spq_graph.passes.forms.rules import FormRules
from spq_graph.passes.forms.weight import Fp8Weight, IntegerWeight
from spq_graph.terms.form import Form

FORM_RULES: Mapping[Form, FormRules] = MappingProxyType(
    {
        Form.QDQ: IntegerQdq(),
        Form.MATMUL_INTEGER: MatMulInteger(),
        **{form: NBits(level) for form, level in ACCURACY_LEVELS.items()},
        Form.FP8_QDQ: Fp8Pair(),
        Form.FP8_QDQ_WIDENED: Fp8Pair(widened_weight=True),
        Form.OPERATOR: Fp8Operator(),
        Form.WITH_BRANCH: Int8Operator(by_token=False),
        Form.BY_TOKEN: Int8Operator(by_token=True),
        Form.WEIGHT: IntegerWeight(),
        Form.FP8_WEIGHT: Fp8Weight(),
        Form.FP8_WEIGHT_WIDENED: Fp8Weight(widened_weight=True),
        Form.STORED: StoredHalf(),
        Form.AS_IS: StoredHalf(),
        Form.COMPUTED: Computed(),
        Form.ROUNDED: Computed(rounded=True),
    }
)

"""What every precision becomes on a target, and what is legal there, as data.

Decisions, the passes that write and check, and the proof of what ran read the same tables, so that what a target cannot
do is refused or replaced with a reason and never written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal

from spq_graph.terms.errors import UsageError
from spq_graph.terms.form import STAND_INS, Form
from spq_graph.terms.missing import MISSING
from spq_graph.terms.precision import Precision
from spq_graph.terms.site import Role

Target = Literal["cpu", "cuda", "tensorrt", "openvino", "portable"]
Use = Literal["balanced", "prefill", "decode"]

CPU_PROVIDER = "CPUExecutionProvider"
ONNX, CONTRIB, OURS = "", "com.microsoft", "spq"
LARGEST_HALF = 65504.0
OLDEST_LIFTED = 7  # opset of ONNX: a graph from here on comes to what a target needs, the same in numbers


@dataclass(frozen=True, slots=True)
class Profile:
    """What a target executes.

    Attributes:
        name: of the target.
        device: what it stands for, in words.
        runtime: what runs it; `provider` is ONNX Runtime's, where that is the runtime.
        forms: by precision, what a site becomes. What is not here is not legal.
        branched: by precision, what a site with an outlier branch becomes, where one operator has both.
        missing: by precision that is not here, why.
        signed: integer activations in int8 with zero point 0; otherwise in uint8.
        domains: of the operators that may be in the file.
        functions: whether the file may hold model-local functions.
        fp8_per_channel: whether FP8 weights have a scale for each output channel, or one.
        tiers: what kept sites may become by measured error: the first tier where one is good enough, and of a tier
            the most exact. One row for each use.
        compared: what the ladder tries kept sites in beside each other, in the order of its rows.
        everywhere: what it quantizes all sites in beside static integers.
        oldest_opset: of ONNX that the integer form needs; FP8 needs 19 anywhere.
        divided_norms: whether norms are written as the quotient that the runtime fuses.
        fused_attention: whether attention written out becomes operators of opset 23, and what is around it.
        lookup: what an embedding in 8 bits becomes; None where the target has none.
    """

    name: Target
    device: str
    runtime: Literal["onnxruntime", "openvino"]
    provider: str | None
    forms: Mapping[Precision, Form]
    missing: Mapping[Precision, str]
    branched: Mapping[Precision, Form] = field(default_factory=dict)
    signed: bool = False
    domains: frozenset[str] = frozenset({ONNX})
    functions: bool = False
    fp8_per_channel: bool = True
    tiers: Mapping[Use, tuple[tuple[Precision, ...], ...]] = field(default_factory=dict)
    compared: tuple[Precision, ...] = ()
    everywhere: tuple[Precision, ...] = ()
    oldest_opset: int = 13
    divided_norms: bool = False
    fused_attention: bool = False
    lookup: Form | None = Form.LOOKUP_NODES

    @property
    def emulation(self) -> Profile:
        """What ONNX Runtime's CPU provider runs with the numbers of this target; itself where that is what runs it.

        For measuring what a plan costs on a device that is not here, and never for delivery. Signed integers around 0
        become unsigned ones around 128, with the same steps.
        """
        if self.provider == CPU_PROVIDER:
            return self
        forms = {precision: STAND_INS.get(form, form) for precision, form in self.forms.items()}
        return replace(self, runtime="onnxruntime", provider=CPU_PROVIDER, forms=forms, signed=False)

    def allows(self, precision: Precision) -> bool:
        """Whether the target can run a precision."""
        return precision in self.forms

    def allows_at(self, role: Role, precision: Precision) -> bool:
        """Whether a site of a role can have a precision: an embedding is in 8 bits by block, or stays as it is."""
        if role is not Role.EMBEDDING:
            return self.allows(precision)
        return precision in _FLOATING or (precision is Precision.W8A16 and self.lookup is not None)

    def form_at(self, role: Role, precision: Precision, *, branch: bool = False) -> Form:
        """What a site of a role becomes in a precision that the target has for it, with an outlier branch or without.

        An embedding in a form of its own aside, what is not in `branched` has its branch beside it in plain nodes.
        """
        if role is Role.EMBEDDING and precision.row.by_block and self.lookup is not None:
            return self.lookup
        return (self.branched.get(precision) if branch else None) or self.forms[precision]

    def why_not(self, precision: Precision, role: Role = Role.OTHER) -> str:
        """Why the target cannot run a precision."""
        if role is Role.EMBEDDING:
            one = f"an embedding is {Precision.W8A16} or stays as it is"
            return one if self.lookup is not None else f"{self.device} has no lookup in 8-bit codes"
        return self.missing.get(precision, f"target '{self.name}' has no form for it")

    @property
    def ran_on(self) -> str:
        """What a file for this target is run on."""
        if self.runtime == "openvino":
            return self.device
        return f"ONNX Runtime's {(self.provider or '').removesuffix('ExecutionProvider')} provider"

    @property
    def high(self) -> tuple[Precision, ...]:
        """What kept sites may be asked to become."""
        return tuple(p for p in Precision if p in self.forms and p.bits is None)

    @property
    def head_formats(self) -> tuple[Precision, ...]:
        """What 8-bit weights by block are for a head, the fastest first; without what has no fast kernel."""
        return tuple(p for p in _BY_BLOCK if self.forms.get(p, Form.NBITS_FLOAT) is not Form.NBITS_FLOAT)

    @property
    def weight_only(self) -> tuple[Target, Precision]:
        """Where, and in what, a model runs of which weights alone are quantized: on the CPU, where this has no such."""
        own = next(iter(self.head_formats), None)
        return (self.name, own) if own is not None else ("cpu", _BY_BLOCK[0])

    def tiers_for(self, use: Use) -> tuple[tuple[Precision, ...], ...]:
        """The tiers of a use; the balanced ones where it has none of its own."""
        return self.tiers.get(use, self.tiers["balanced"])

    def settle(self, precision: Precision, largest: float | None = None) -> tuple[Precision, str | None]:
        """What a site becomes that is to have a precision, and why it is another where it is.

        Args:
            precision: what is planned.
            largest: largest absolute activation that its product reads or gives; None where it is not known.
        """
        if not self.allows(precision):
            reason = f"{precision} was planned: {self.why_not(precision)}"
            # Half precision is what every target has, and float32 where activations do not fit it.
            near = next(filter(self.allows, precision.row.nearest), Precision.FP16)
            instead, _ = self.settle(near, largest)
            return instead, f"{reason}; {instead} instead"
        too_large = largest is not None and largest > LARGEST_HALF
        if precision is Precision.FP16 and self.forms[precision] is Form.COMPUTED and too_large:
            instead = Precision.BF16 if self.allows(Precision.BF16) else Precision.FP32
            return instead, f"its activations reach {largest:.4g}, beyond float16; {instead} instead"
        return precision, None


def target_named(name: str) -> Target:
    """The target of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in PROFILES:
        raise UsageError(f"no target '{name}'", where="--target", remedy=f"one of {', '.join(PROFILES)}")
    return PROFILES[name].name


_FLOATING = frozenset({Precision.FP32, Precision.FP16, Precision.BF16})
_INTEGERS = tuple(p for p in Precision if p.bits is not None)
_FP8 = tuple(p for p in Precision if p.is_fp8)
_BY_BLOCK = tuple(p for p in Precision if p.row.by_block)
_HALF = (Precision.FP16,)


def _forms(integer: Form, others: Mapping[Precision, Form]) -> Mapping[Precision, Form]:
    return MappingProxyType({**dict.fromkeys(_INTEGERS, integer), **others, Precision.FP32: Form.AS_IS})


_OPERATOR = dict.fromkeys(_FP8, Form.OPERATOR)
_ALL = frozenset({ONNX, CONTRIB, OURS})

PROFILES: Mapping[str, Profile] = MappingProxyType(
    {
        "cpu": Profile(
            name="cpu",
            device="ONNX Runtime's CPU provider",
            runtime="onnxruntime",
            provider=CPU_PROVIDER,
            forms=_forms(
                Form.QDQ,
                {
                    **_OPERATOR,
                    Precision.W8A8_TOKEN: Form.BY_TOKEN,
                    Precision.W8A8_BLOCK: Form.NBITS,
                    Precision.W8A8_BLOCK32: Form.NBITS,
                    Precision.W8A16: Form.NBITS_FLOAT,
                    Precision.FP16: Form.STORED,
                },
            ),
            branched=MappingProxyType({Precision.INT8: Form.WITH_BRANCH}),
            missing=MISSING["cpu"],
            domains=_ALL,
            functions=True,
            divided_norms=True,
            fused_attention=True,
            lookup=Form.LOOKUP,
            # w8a16 is up to 35 times as slow as float32: only who asks for it gets it.
            tiers={
                "balanced": ((*_FP8, Precision.W8A8_TOKEN, Precision.W8A8_BLOCK), _HALF),
                # At length 128 and float32 = 1, on an Intel Xeon with AMX: the FP8 operator 0.23 to 0.30, MatMulNBits
                # 0.59 to 0.67; the operator by token, on an AMD EPYC with VNNI, 0.25 to 0.31. At length 1 all of them
                # wait for memory (0.26 to 0.33): no order of its own.
                "prefill": ((Precision.W8A8_TOKEN,), _FP8, (Precision.W8A8_BLOCK,), _HALF),
            },
            compared=(*_FP8, Precision.W8A8_TOKEN, Precision.W8A8_BLOCK, Precision.FP16),
            everywhere=(Precision.W8A8_TOKEN, Precision.FP8_E4M3),
        ),
        "cuda": Profile(
            name="cuda",
            device="ONNX Runtime's CUDA provider",
            runtime="onnxruntime",
            provider="CUDAExecutionProvider",
            # Its MatMulNBits computes in floating point, whatever `accuracy_level` tells a CPU's.
            forms=_forms(
                Form.MATMUL_INTEGER,
                {
                    **_OPERATOR,
                    Precision.W8A16: Form.NBITS,
                    Precision.FP16: Form.COMPUTED,
                    Precision.BF16: Form.COMPUTED,
                },
            ),
            missing=MISSING["cuda"],
            signed=True,
            domains=_ALL,
            functions=True,
            divided_norms=True,
            tiers={"balanced": ((*_FP8, Precision.W8A16), _HALF)},
            compared=(*_FP8, Precision.W8A16, Precision.FP16),
            everywhere=(Precision.FP8_E4M3,),
        ),
        "tensorrt": Profile(
            name="tensorrt",
            device="TensorRT, strongly typed",
            runtime="onnxruntime",
            provider="TensorrtExecutionProvider",
            forms=_forms(
                Form.QDQ,
                {Precision.FP8_E4M3: Form.FP8_QDQ, Precision.FP16: Form.COMPUTED, Precision.BF16: Form.COMPUTED},
            ),
            missing=MISSING["tensorrt"],
            signed=True,
            fp8_per_channel=False,
            lookup=None,
            tiers={"balanced": ((Precision.FP8_E4M3,), _HALF)},
            compared=(Precision.FP8_E4M3, Precision.FP16),
        ),
        "openvino": Profile(
            name="openvino",
            device="OpenVINO's CPU plugin",
            runtime="openvino",
            provider=None,
            forms=_forms(
                Form.QDQ,
                {Precision.W8A16: Form.WEIGHT, Precision.W8FP8A16: Form.FP8_WEIGHT, Precision.FP16: Form.STORED},
            ),
            missing=MISSING["openvino"],
            # Operators of com.microsoft may come with the source, as far as OpenVINO reads them; none is inserted.
            domains=frozenset({ONNX, CONTRIB}),
            # FP8 weights run at the speed and in the memory of float32 there; the kernel decompresses integer ones.
            tiers={"balanced": ((Precision.W8A16,), _HALF)},
            compared=(Precision.W8FP8A16, Precision.W8A16, Precision.FP16),
        ),
        "portable": Profile(
            name="portable",
            device="any runtime that has the opset",
            runtime="onnxruntime",
            provider=CPU_PROVIDER,
            forms=_forms(Form.QDQ, {**_OPERATOR, Precision.FP16: Form.STORED}),
            missing=MISSING["portable"],
            domains=frozenset({ONNX, OURS}),
            functions=True,
            tiers={"balanced": (_FP8, _HALF)},
            compared=(*_FP8, Precision.FP16),
        ),
    }
)

"""What `doctor` found on a machine, as a program gets it and as --json prints it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from spq_graph.terms.form import Form


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU of NVIDIA's: its name, its architecture, such as sm_90, and its driver's version."""

    name: str
    architecture: str
    driver: str


@dataclass(frozen=True, slots=True)
class Machine:
    """What a model can run on here.

    Attributes:
        processor: as the system calls it.
        cores: None where the system does not tell.
        instruction_sets: those that products are made of, oldest first; empty where the system does not tell.
        gpus: as their driver lists them.
        system: and the kind of machine.
        providers: of ONNX Runtime.
    """

    processor: str
    cores: int | None
    instruction_sets: Sequence[str]
    gpus: Sequence[Gpu]
    system: str
    providers: Sequence[str]


@dataclass(frozen=True, slots=True)
class LibraryBuild:
    """What the operator library says of itself.

    Attributes:
        version: of the package that it was built with; operator_version: of the operators in it.
        isa: the instruction set in use.
        available: all instruction sets that it has and this machine too.
        cuda: what CUDA kernels were compiled in, and what of CUDA is here; None without any.
    """

    version: str
    operator_version: int
    isa: str
    available: Sequence[str]
    cuda: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class Library:
    """The operator library.

    Attributes:
        path: where it lies; None where there is none.
        problem: why it does not serve; None where it does.
        build: what it says of itself, where it can be loaded.
    """

    path: str | None
    problem: str | None = None
    build: LibraryBuild | None = None

    def to_dict(self) -> dict[str, Any]:
        """As `library` in what `doctor --json` prints."""
        build = asdict(self.build) if self.build is not None else {}
        return {"path": self.path, **build, "problem": self.problem}


class ProbeStatus(StrEnum):
    """How far a small product came."""

    RAN = "ran"  # as a kernel of the target's runtime, or of the operator library
    FUNCTION = "function"  # as the standard operators that a file carries for operators of ours
    NOT_HERE = "not executed here"  # it was written, and the target's runtime is not here
    UNSUPPORTED = "unsupported"  # the target cannot run it in this precision
    ERROR = "error"  # it ought to have run


@dataclass(frozen=True, slots=True)
class Probed:
    """What a small product became in one precision, on one target.

    Attributes:
        status: how far it came.
        kernel: of what ran, its operator type, and of a function that of its product where that is in integers; None
            where the runtime does not tell.
        form: of what is not executed here, what it was written as.
        why: of what is unsupported or an error, the reason.
    """

    status: ProbeStatus
    kernel: str | None = None
    form: Form | None = None
    why: str | None = None

    @property
    def name(self) -> str:
        """How JSON has it, in one text."""
        match self.status:
            case ProbeStatus.RAN:
                return self.kernel or "not found"
            case ProbeStatus.FUNCTION:
                return self.status.value
            case ProbeStatus.NOT_HERE:
                return f"{self.status}; written as {self.form.words if self.form else 'nothing'}"
        return f"{self.status}: {self.why}"


@dataclass(frozen=True, slots=True)
class Holds:
    """What graphs a target takes.

    Attributes:
        opsets: of ONNX, the oldest and the newest; None for the newest where the runtime takes any, or is not here.
        operators: by domain, how many the runtime has; None where it is not here, or only tells of a graph.
    """

    opsets: tuple[int, int | None]
    operators: Mapping[str, int | None]


@dataclass(frozen=True, slots=True)
class Examination:
    """What is installed on a machine, and what runs there.

    Attributes:
        versions: of what takes part, by package.
        machine: processor, GPUs and providers.
        library: of operators.
        targets: by target and precision what a small product became.
        absent: by target why it is not here; None where it is.
        holds: by target, which opsets it takes, and how many operators.
        warnings: what would make results on this machine differ from those elsewhere.
    """

    versions: Mapping[str, str]
    machine: Machine
    library: Library
    targets: Mapping[str, Mapping[str, Probed]]
    absent: Mapping[str, str | None]
    warnings: Sequence[str]
    holds: Mapping[str, Holds] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """What `doctor --json` prints."""
        return {
            "versions": dict(self.versions),
            "machine": asdict(self.machine),
            "library": self.library.to_dict(),
            "targets": {
                target: {precision: probed.name for precision, probed in by_precision.items()}
                for target, by_precision in self.targets.items()
            },
            "absent": dict(self.absent),
            "warnings": list(self.warnings),
            "holds": {name: asdict(held) | {"opsets": list(held.opsets)} for name, held in self.holds.items()},
        }

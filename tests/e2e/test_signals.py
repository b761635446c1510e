"""Signals at any instant: no OUT is lost or half, none that was stopped says it is done, and nothing is left for long.

What counts as done: the files have their names, and the answer was printed. A signal that comes later finds nothing to
stop, and the status may be 0; one that comes before gives 128 and its number, also where the files have their names
already, and says that they are complete.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
if os.name == "nt":
    pytest.skip("signals work otherwise there", allow_module_level=True)

from tests.support.command import contents
from tests.support.decoders import write_decoder, write_ids
from tests.support.outs import earlier
from tests.support.signalled import Ended, Run, Signalled

KINDS: list[tuple[signal.Signals, ...]] = [
    (signal.SIGINT,),
    (signal.SIGTERM,),
    (signal.SIGHUP,),
    (signal.SIGKILL,),
    (signal.SIGINT, signal.SIGINT),
    (signal.SIGTERM, signal.SIGINT),
    (signal.SIGHUP, signal.SIGTERM),
    (signal.SIGINT, signal.SIGKILL),
]
SOME = range(8)
ALL = range(200)


@pytest.fixture(scope="module")
def fork() -> Iterator[Signalled]:
    process = Signalled()
    yield process
    process.close()


@dataclass(frozen=True)
class Job:
    """A command that writes OUT, and what comes of it undisturbed."""

    fork: Signalled
    command: tuple[str, ...]
    whole: dict[str, str]
    seconds: float

    def at(self, place: Path) -> Run:
        """The command, with folders of its own."""
        for name in ("outputs", "temporary"):
            (place / name).mkdir(exist_ok=True)
        arguments = (*self.command, "-o", str(place / "outputs" / "out"))
        return Run(arguments, str(place / "temporary"), str(place / "log"))


def job(fork: Signalled, place: Path, *command: object) -> Job:
    plain = Job(fork, tuple(map(str, command)), {}, 0.0)
    for _ in range(2):  # what is read for the first time takes longer
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        ended = fork.run(plain.at(place))
        assert ended.status == 0, ended.said
    assert left_in(place / "temporary") == []
    return replace(plain, whole=written_in(place / "outputs" / "out"), seconds=ended.seconds)


@pytest.fixture(scope="module")
def of_a_file(fork: Signalled, tmp_path_factory: pytest.TempPathFactory) -> Job:
    inputs = tmp_path_factory.mktemp("inputs")
    model = write_decoder(inputs / "model.onnx", layers=2, spikes={1: 1000.0})
    data = write_ids(inputs / "calibration.npz", rows=64)
    place = tmp_path_factory.mktemp("file") / "plain"
    # How fast it is stands in its card, and no two runs are of one speed.
    return job(fork, place, "quantize", model, "--force", "--calibration", data, "--no-eval", "--no-bench")


@pytest.fixture(scope="module")
def of_a_folder(fork: Signalled, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    place = tmp_path_factory.mktemp("folder") / "plain"
    return job(fork, place, "export", tiny_llama, "--force")


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def written_in(out: Path) -> dict[str, str]:
    """What has the same bytes each time; the report holds times."""
    found = {Path(name).relative_to(out).as_posix(): digest for name, digest in contents(out).items()}
    return {name: digest if not name.startswith("report") else "" for name, digest in found.items()}


def signalled(job: Job, place: Path, what: Run, *, before: bool) -> Ended:
    """Run it with its signals, and hold what it left against what may be; then run it undisturbed."""
    out = place / "outputs" / "out"
    if before:
        earlier(out)
    was = written_in(out) if before else {}
    ended = job.fork.run(what)
    killed = ended.status == -signal.SIGKILL
    assert ended.status in {0, *(128 + n for n in what.signals if n != signal.SIGKILL), *([-9] if killed else [])}
    assert "Traceback" not in ended.said
    assert "Exception ignored" not in ended.said
    found = written_in(out) if out.exists() else {}
    if killed and before and not found:
        [old] = (place / "outputs").glob(".out.old-*")
        found = written_in(old)
    assert found in (was, job.whole)
    if ended.status == 0:
        assert found == job.whole
    elif not killed:
        assert "interrupted" in ended.said
        twice = "interrupted twice" in ended.said
        assert twice or ("is complete" in ended.said) == (found == job.whole), ended.said
    if not killed:
        assert left_in(place / "outputs") == (["out"] if found else [])
        assert left_in(place / "temporary") == []
        return ended
    again = job.fork.run(replace(what, signals=(), after=None, rename=None))
    assert again.status == 0, again.said
    assert written_in(out) == job.whole
    assert left_in(place / "outputs") == ["out"]
    assert left_in(place / "temporary") == []
    return ended


def at_random(job: Job, place: Path, seed: int) -> None:
    chance = np.random.default_rng(seed)
    what = replace(
        job.at(place),
        signals=tuple(map(int, KINDS[seed % len(KINDS)])),
        after=float(chance.uniform(0, 1.1 * job.seconds)),
        gap=float(chance.choice([0.0, 0.001, 0.02, 0.1])),
    )
    signalled(job, place, what, before=chance.random() < 0.5)


@pytest.mark.parametrize("seed", SOME)
def test_a_file(of_a_file: Job, tmp_path: Path, seed: int) -> None:
    at_random(of_a_file, tmp_path, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", SOME[:4])
def test_a_folder(of_a_folder: Job, tmp_path: Path, seed: int) -> None:
    at_random(of_a_folder, tmp_path, seed)


@pytest.mark.signals
@pytest.mark.parametrize("seed", ALL)
def test_a_file_two_hundred_times(of_a_file: Job, tmp_path: Path, seed: int) -> None:
    at_random(of_a_file, tmp_path, 1000 + seed)


@pytest.mark.signals
@pytest.mark.parametrize("seed", ALL)
def test_a_folder_two_hundred_times(of_a_folder: Job, tmp_path: Path, seed: int) -> None:
    at_random(of_a_folder, tmp_path, 1000 + seed)


# Where an earlier OUT is replaced: weights, plan, ranges and their arrays, report; then the earlier OUT moves
# aside, and the new one in.
ASIDE, IN = 5, 6


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("rename", range(IN + 1))
def test_every_rename(of_a_file: Job, tmp_path: Path, rename: int, behind: bool) -> None:
    """Once the earlier OUT moves aside, the new one moves in before the signal is honoured."""
    what = replace(of_a_file.at(tmp_path), signals=(int(signal.SIGTERM),), rename=rename, behind=behind)
    ended = signalled(of_a_file, tmp_path, what, before=True)
    assert ended.status == 128 + signal.SIGTERM
    assert ("is complete" in ended.said) == (rename >= ASIDE)


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("rename", [ASIDE, IN])
@pytest.mark.parametrize("kind", [(signal.SIGKILL,), (signal.SIGINT, signal.SIGINT)], ids=["killed", "twice"])
def test_what_no_handler_sees_and_two_signals_at_the_last_renames(
    of_a_file: Job, tmp_path: Path, rename: int, behind: bool, kind: Sequence[signal.Signals]
) -> None:
    what = replace(of_a_file.at(tmp_path), signals=tuple(map(int, kind)), rename=rename, behind=behind)
    assert signalled(of_a_file, tmp_path, what, before=True).status != 0


def test_there_are_no_more_renames(of_a_file: Job, tmp_path: Path) -> None:
    what = replace(of_a_file.at(tmp_path), signals=(int(signal.SIGTERM),), rename=IN + 1)
    assert signalled(of_a_file, tmp_path, what, before=True).status == 0


@pytest.mark.parametrize(
    ("kind", "rename", "says"),
    [
        ((signal.SIGTERM,), 0, "ranges.json is complete"),
        ((signal.SIGINT, signal.SIGINT), 1, "interrupted twice; "),
        ((signal.SIGKILL,), 1, ""),
    ],
)
def test_two_files_get_their_names_together(
    fork: Signalled, tmp_path: Path, kind: Sequence[signal.Signals], rename: int, says: str
) -> None:
    """Ranges and their arrays: what was killed between the two renames is ended by whoever reads them next."""
    inputs, temporary, written = (tmp_path / name for name in ("inputs", "temporary", "written"))
    for folder in (inputs, temporary, written):
        folder.mkdir()
    model = write_decoder(inputs / "model.onnx", layers=1, spikes={0: 1000.0})
    data, ranges = write_ids(inputs / "calibration.npz"), str(written / "ranges.json")
    command = ("calibrate", str(model), "-o", ranges, "--calibration", str(data))
    what = Run(command, str(temporary), str(tmp_path / "log"), tuple(map(int, kind)), rename=rename)
    ended = fork.run(what)
    assert ended.status == (-signal.SIGKILL if signal.SIGKILL in kind else 128 + kind[0])
    assert says in ended.said
    assert len(left_in(written)) == 2
    plan = ("plan", str(model), ranges, "-o", str(written / "plan.json"))
    read = fork.run(Run(plan, str(temporary), str(tmp_path / "log")))
    assert read.status == 0, read.said
    assert left_in(written) == ["plan.json", "ranges.json", "ranges.safetensors"]
    assert left_in(temporary) == []


def test_a_calibration_says_how_to_go_on_and_does(fork: Signalled, tmp_path: Path) -> None:
    """What was measured so far is kept, and the same command ends it."""
    inputs, temporary = tmp_path / "inputs", tmp_path / "temporary"
    for folder in (inputs, temporary):
        folder.mkdir()
    model = write_decoder(inputs / "model.onnx", layers=2, spikes={1: 1000.0})
    data = write_ids(inputs / "calibration.npz", rows=2000)
    out = tmp_path / "ranges.json"
    command = ("calibrate", str(model), "-o", str(out), "--calibration", str(data))
    plain = Run(command, str(temporary), str(tmp_path / "log"))
    # Of about 34 batches; those in front of the first, and what runs ahead of what is counted, are fewer.
    stopped = fork.run(replace(plain, signals=(int(signal.SIGHUP),), tick=20))
    assert stopped.status == 128 + signal.SIGHUP, stopped.said
    assert "of 2000 sequences were measured: the same command goes on from there" in stopped.said
    assert left_in(temporary) == []
    assert not out.exists()
    ended = fork.run(plain)
    assert ended.status == 0, ended.said
    assert left_in(tmp_path) == ["inputs", "log", "ranges.json", "ranges.safetensors", "temporary"]

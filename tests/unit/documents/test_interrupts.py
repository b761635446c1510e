"""A signal is honoured where nothing is half done, whatever swallows it on the way; two end at once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

if os.name == "nt":
    pytest.skip("signals work otherwise there", allow_module_level=True)

HEAD = """
import os, signal, sys, time, weakref
from pathlib import Path
from spq_graph.documents.interrupts import Interrupted, awaited, begun, check, heard, held, leave, never_unwound, watch

def send(number=signal.SIGTERM):
    os.kill(os.getpid(), number)

class Thing:
    pass

watch()
"""


def run(program: str, *arguments: object) -> tuple[int, str, str]:
    """Status and what was printed."""
    done = subprocess.run(
        [sys.executable, "-c", HEAD + program, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
        preexec_fn=_hear,
    )
    return done.returncode, done.stdout, done.stderr


def _hear() -> None:
    import signal

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_it_unwinds_what_runs(name: str, status: int) -> None:
    program = f"""
try:
    send(signal.{name})
    time.sleep(9)
finally:
    print("left")
"""
    assert run(program) == (status, "left\n", "")


def test_what_a_callback_swallows_comes_again() -> None:
    program = """
thing = Thing()
seen = weakref.ref(thing, lambda _: send())
del thing
print("swallowed")
for _ in range(1000):
    time.sleep(0.02)
print("done")
"""
    assert run(program) == (143, "swallowed\n", "")


def test_a_finalizer_swallows_it_at_the_end() -> None:
    """Nothing comes after it that would run into the repetition: the run is asked before it says that it is done."""
    program = """
Thing.__del__ = lambda self: send()
with heard():
    thing = Thing()
    del thing
    sys.exit(0)
"""
    assert run(program) == (143, "", "")


def test_a_block_that_is_held_comes_to_its_end() -> None:
    program = """
with held():
    with held():
        send()
    print("whole")
print("done")
"""
    assert run(program) == (143, "whole\n", "")


def test_unwinding_is_not_cut_short() -> None:
    program = """
try:
    send()
finally:
    check()
    with held():
        print("cleaned")
    print("all")
"""
    assert run(program) == (143, "cleaned\nall\n", "")


@pytest.mark.parametrize("block", ["held()", "open(os.devnull)"])
def test_two_end_at_once_and_remove_what_is_in_the_making(tmp_path: Path, block: str) -> None:
    program = f"""
folder, file = Path(sys.argv[1], "folder"), Path(sys.argv[1], "file")
begun(folder), begun(file)
folder.mkdir()
(folder / "part").touch()
file.touch()
try:
    with {block}:
        send(signal.SIGINT)
        send()
finally:
    time.sleep(0.2)
    send()
    time.sleep(30)
"""
    status, _, said = run(program, tmp_path)
    assert (status, said) == (130, "interrupted twice; nothing half done was left behind\n")
    assert list(tmp_path.iterdir()) == []


def test_what_is_never_unwound_ends_with_the_process(tmp_path: Path) -> None:
    program = """
file = Path(sys.argv[1], "file")
begun(file)
file.touch()
try:
    with never_unwound():
        send()
finally:
    print("unwound")
"""
    assert run(program, tmp_path) == (143, "", "interrupted; nothing half done was left behind\n")
    assert list(tmp_path.iterdir()) == []


def test_what_is_held_within_it_comes_to_its_end_first() -> None:
    program = """
with never_unwound():
    with held():
        send()
        print("whole", flush=True)
    print("left")
"""
    assert run(program) == (143, "whole\n", "interrupted; nothing half done was left behind\n")


def test_behind_it_all_is_unwound_as_ever() -> None:
    program = """
with never_unwound():
    pass
try:
    send()
    time.sleep(9)
finally:
    print("left")
"""
    assert run(program) == (143, "left\n", "")


@pytest.mark.parametrize("error", ["AssertionError", "SystemExit(1)"])
def test_what_comes_of_being_unwound_is_no_error_of_its_own(error: str) -> None:
    """As torch's modes, which look for frames that the signal took away."""
    program = f"""
with heard():
    try:
        send()
        time.sleep(9)
    finally:
        raise {error}
"""
    assert run(program)[0] == 143


def test_a_signal_in_front_of_the_clearing_up(tmp_path: Path) -> None:
    program = """
file = Path(sys.argv[1], "file")
begun(file)
file.touch()
try:
    try:
        raise ValueError
    finally:
        send()
        file.unlink()
except Interrupted as stop:
    leave(stop.status)
"""
    assert run(program, tmp_path) == (143, "", "")
    assert list(tmp_path.iterdir()) == []


def test_what_is_ignored_stays_ignored() -> None:
    """As nohup has it of HUP, and a shell of INT in the background."""
    program = """
signal.signal(signal.SIGTERM, signal.SIG_DFL)
signal.signal(signal.SIGHUP, signal.SIG_IGN)
watch()
send(signal.SIGHUP)
print("done")
"""
    assert run(program) == (0, "done\n", "")


def test_after_the_end_there_is_nothing_to_stop() -> None:
    program = """
import atexit
atexit.register(send)
with heard():
    sys.exit(0)
"""
    assert run(program) == (0, "", "")


def test_other_errors_of_callbacks_are_told() -> None:
    program = """
thing = Thing()
seen = weakref.ref(thing, lambda _: 1 / 0)
del thing
"""
    status, _, said = run(program)
    assert status == 0
    assert "ZeroDivisionError" in said


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 0), ("SIGTERM", 143)])
@pytest.mark.parametrize("caught", [True, False])
def test_one_that_is_waited_for(name: str, status: int, caught: bool) -> None:
    """As Netron does, which catches whatever ends its waiting."""
    program = f"""
with heard():
    with awaited(signal.SIGINT):
        try:
            send(signal.{name})
            time.sleep(9)
        except SystemExit:
            if not {caught}:
                raise
    sys.exit(0)
"""
    assert run(program)[0] == status


def test_who_interrupts_twice_is_told_so_while_standard_error_is_led_away() -> None:
    """As where what libraries print is listened to."""
    status, _, err = run("""
from spq_graph.models.chatter import quiet
with quiet(descriptors=True):
    try:
        send()
    except Interrupted:
        send()
""")
    assert status == 128 + 15
    assert err == "interrupted twice; nothing half done was left behind\n"

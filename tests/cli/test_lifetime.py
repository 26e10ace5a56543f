"""The command's own process: its start, and all that has to happen at its end."""

import gc
import os
import subprocess
import sys

import pytest

from vlad.cli import main

COMMAND = """
import vlad.cli
vlad.cli.VERBS["try"] = ("", "verb:run")
vlad.cli.command()
"""
LEFT = """
import atexit, threading, time
class Kept:
    def __del__(self): print("freed")
kept = Kept()
def run(arguments):
    atexit.register(print, "at exit")
    threading.Thread(target=lambda: (time.sleep(0.3), print("thread"))).start()
    return 4
"""  # what a verb may leave to the end of the process


@pytest.fixture
def command(tmp_path):
    def command(verb, *, before="", stdout=subprocess.PIPE, **environment):
        """Runs the command with a verb of the test's own."""
        (tmp_path / "verb.py").write_text(verb)
        inherited = {name: value for name, value in os.environ.items() if name != "VLAD_DEBUG"}
        return subprocess.run(
            [sys.executable, "-c", before + COMMAND, "try"],
            env={**inherited, "PYTHONPATH": str(tmp_path), **environment},
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )

    return command


def test_threads_and_all_who_asked_come_to_their_end(command):
    done = command(LEFT)
    assert (done.returncode, done.stderr) == (4, "")
    assert done.stdout.split("\n") == ["thread", "at exit", ""]  # and nothing is freed one by one


@pytest.mark.parametrize(
    ("settings", "others"),
    [({"before": "import atexit; atexit.register(print, 'coverage')"}, ["coverage"]), ({"VLAD_DEBUG": "1"}, [])],
)
def test_python_ends_in_full_where_somebody_waits_for_it(command, settings, others):
    done = command(LEFT, **settings)
    assert (done.returncode, done.stderr) == (4, "")
    assert done.stdout.split("\n") == ["thread", "at exit", *others, "freed", ""]


def test_files_that_nobody_has_closed_are_written_out(command, tmp_path):
    done = command(
        f"def run(arguments):\n    global kept\n    kept = open({str(tmp_path / 'left')!r}, 'w')\n"
        "    kept.write('whole')\n"
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "left").read_text() == "whole"


def test_an_error_in_the_code_has_its_traceback(command):
    done = command("def run(arguments): raise KeyError('x')")
    assert done.returncode == 1
    assert done.stderr.endswith("KeyError: 'x'\n")


def test_late_output_that_cannot_be_written_is_told_as_ever(command):
    with open("/dev/full", "w") as full:
        done = command("def run(arguments): print('late')", stdout=full, PYTHONUNBUFFERED="")
    assert done.returncode == 120  # Python's own
    assert "No space left" in done.stderr


def test_a_forked_process_ends_by_itself(command):
    done = command(
        "import os, sys\n"
        "def run(arguments):\n"
        "    child = os.fork()\n"
        "    if not child: sys.exit(7)\n"
        "    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])\n"
    )
    assert (done.returncode, done.stderr) == (7, "")


def test_the_collector_waits_while_torch_is_imported_and_leaves_it_alone(command, tmp_path):
    (tmp_path / "torch.py").write_text("import gc\nprint(gc.isenabled())")
    verb = """
import gc
from vlad.cli.lifetime import importing
def tell(): print(gc.isenabled(), gc.get_freeze_count() > 0)
print(gc.isenabled())
def run(arguments):
    tell()
    with importing(): import torch
    tell()
    gc.unfreeze()
    with importing(): tell()
"""
    assert command(verb).stdout.splitlines() == ["False", "True False", "False", "True True", "True False"]


def test_within_another_program_the_collector_is_left_alone():
    before = gc.isenabled(), gc.get_freeze_count()
    assert main(["methods"]) == 0
    assert (gc.isenabled(), gc.get_freeze_count()) == before

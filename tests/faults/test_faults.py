"""A seeded sample of the fault suite: no traceback, no hang, nothing silently wrong. The long part: ``make faults``."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from faults.cases import damaged, special
from faults.judge import FAULTS, judge
from faults.kinds import KINDS
from faults.mutate import MUTATIONS, mutated
from faults.special import bombs

pytestmark = pytest.mark.slow

_QUICK_BOMBS = (
    "40 gigapixels",
    "4 billion",
    "huge",
    "aliases, 9",
    "contains itself",
    "row_crops",
    "folder",
    "expanded",
    "code",
    "endless",
    "deep.json",
    "long",
    "30 million",
)


@pytest.fixture(autouse=True)
def _cache():
    before = os.environ.get("VLAD_CACHE")  # the cached index has one of its own
    yield
    if before is not None:
        os.environ["VLAD_CACHE"] = before


def check(cases):
    faults = []
    for case in cases:
        outcome = judge(case.run, *case.names, seconds=case.seconds)
        if outcome.kind in FAULTS:
            faults.append(f"{case.name}: {outcome.kind}: {outcome.detail}")
    assert not faults, "\n".join(faults[:10])


@pytest.mark.parametrize("name", KINDS)
def test_damaged_files_are_read_right_or_told(name, tmp_path):
    check(damaged(tmp_path / "work", name, range(1000, 1000 + (8 if KINDS[name].quick else 2))))


@pytest.mark.parametrize("name", [name for name in KINDS if KINDS[name].quick])
def test_what_is_no_file_is_told_and_does_not_hang(name, tmp_path):
    check(special(tmp_path / "work", name))


def test_small_files_without_end_are_told(tmp_path):
    for name, case, file in bombs(tmp_path):
        if name.startswith(_QUICK_BOMBS):
            outcome = judge(case, file.parent.name, "config", seconds=60)
            assert outcome.kind not in FAULTS, f"{name}: {outcome}"


@pytest.mark.parametrize("seed", range(2 * len(MUTATIONS)))
def test_a_mutation_changes_something_and_is_the_same_for_one_seed(seed):
    data = b'{"name": "a", "number": 12.5, "list": [1, 2, 3]}' * 3
    assert mutated(data, seed) != data
    assert mutated(data, seed) == mutated(data, seed)


def test_kills_hostile_names_and_the_report(tmp_path):
    script = Path(__file__).with_name("report.py")
    command = [
        sys.executable,
        str(script),
        "--runs",
        "1",
        "--only",
        "killed",
        "hostile",
        "--output",
        str(tmp_path / "r.md"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    report = (tmp_path / "r.md").read_text()
    assert done.returncode == 0, report
    assert "| killed prediction, continued | 1 | 1 |" in report
    assert "| hostile names, whole runs | 3 | 3 |" in report

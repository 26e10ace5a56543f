"""All cases of the fault suite, one after another, each in a folder that was made anew."""

from __future__ import annotations

import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from faults.judge import judge
from faults.kinds import KINDS
from faults.mutate import mutated
from faults.runs import full_disk, hostile_runs, kill_prediction, kill_rendering, small_disk
from faults.special import bombs, special_cases

__all__ = ["Case", "all_cases", "damaged", "special"]


class Case(NamedTuple):
    """A case.

    Attributes:
        kind: Its line of the report.
        name: Which one it is.
        run: Raises what is to be judged.
        names: One of them is named by an error; none where that does not matter.
        seconds: What takes longer hangs.
    """

    kind: str
    name: str
    run: Callable[[], Any]
    names: tuple[str, ...] = ()
    seconds: float = 30.0


def _good(work: Path, name: str) -> tuple[Path, Path]:
    """Makes a good file in a folder, reads it, and keeps a copy of the folder; returns file and copy."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    file = KINDS[name].make(work)
    copy = work.with_name(f"{work.name}.copy")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(work, copy, symlinks=True)
    outcome = judge(lambda: KINDS[name].read(file), seconds=120)
    if outcome.kind != "right":
        raise AssertionError(f"the undamaged {name} is not read: {outcome}")
    return file, copy


def damaged(work: Path, name: str, seeds: Sequence[int]) -> Iterator[Case]:
    """Yields damaged copies of a kind of file."""
    file, copy = _good(work, name)
    content = (copy / file.relative_to(work)).read_bytes()
    for seed in seeds:

        def case(seed: int = seed) -> None:
            shutil.rmtree(work)
            shutil.copytree(copy, work, symlinks=True)
            file.write_bytes(mutated(content, seed))
            KINDS[name].read(file)

        yield Case(name, f"seed {seed}", case)


def special(work: Path, name: str) -> Iterator[Case]:
    """Yields what may stand in the place of a kind of file."""
    file, copy = _good(work, name)
    for what, case in special_cases(copy, work, name, file):
        yield Case("no file: FIFO, device, link, folder, nothing", f"{what} for {name}", case)


def all_cases(work: Path, seeds: Sequence[int], runs: int, only: Sequence[str] = ()) -> Iterator[Case]:
    """Yields every case.

    Args:
        work: A folder for all that is made.
        seeds: Seeds of damaged bytes.
        runs: How many whole runs are killed, or run out of disk, of each kind.
        only: Words of which a kind's name holds one; all by default.
    """

    def wanted(kind: str) -> bool:
        return not only or any(word in kind for word in only)

    for name in filter(wanted, KINDS):
        some = seeds if KINDS[name].quick else seeds[: -(-len(seeds) // 4)]
        yield from damaged(work / "damaged", name, some)
    if wanted("no file"):
        for name in KINDS:
            yield from special(work / "special", name)
    if wanted("bomb"):
        for name, case, file in bombs(work / "bombs"):
            yield Case("bomb", name, case, (file.parent.name, "config"), 120)
    if wanted("hostile names"):
        for name, case in hostile_runs(work / "names"):
            yield Case("hostile names, whole runs", name, case, (), 600)
    if wanted("killed"):
        for seed in range(runs):
            yield Case(
                "killed prediction, continued",
                f"seed {seed}",
                lambda s=seed: kill_prediction(work / "kill", s),
                (),
                300,
            )
        for seed in range(runs):
            yield Case(
                "killed rendering", f"seed {seed}", lambda s=seed: kill_rendering(work / "render" / "c", s), (), 100
            )
    if wanted("full disk"):
        with small_disk(work / "disk", "2m") as disk:
            for seed in range(runs if disk is not None else 0):
                assert disk is not None
                _clear(disk)
                yield Case(
                    "full disk, continued",
                    f"seed {seed}",
                    lambda s=seed, d=disk: full_disk(work / "full", d, s),
                    (),
                    300,
                )


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if stat.S_ISDIR(path.lstat().st_mode):
            shutil.rmtree(path)
        else:
            path.unlink()

"""Runs the long part of the fault suite and writes what became of every kind of case.

make faults                                     # 3,800 cases, some minutes
python tests/faults/report.py --seeds 100 --output faults.md --only image table
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from faults.cases import Case, all_cases
from faults.judge import FAULTS, judge

_COLUMNS = ("right", "told", *FAULTS)


def run(cases: Iterator[Case]) -> tuple[dict[str, Counter[str]], list[str]]:
    """Runs cases; returns the outcomes by kind, and a line for each fault."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    faults, kind, began = [], "", time.monotonic()
    for case in cases:
        if case.kind != kind:
            kind = case.kind
            print(f"{time.monotonic() - began:6.0f} s  {kind}", file=sys.stderr, flush=True)
        outcome = judge(case.run, *case.names, seconds=case.seconds)
        counts[case.kind][outcome.kind] += 1
        if outcome.kind in FAULTS:
            faults.append(f"{case.kind}, {case.name}: {outcome.kind}: {outcome.detail}")
            print(f"          {faults[-1]}", file=sys.stderr, flush=True)
    return counts, faults


def table(counts: dict[str, Counter[str]]) -> str:
    """Returns the outcomes as a Markdown table."""
    lines = [f"| kind | cases | {' | '.join(_COLUMNS)} |", f"|---|---:|{'---:|' * len(_COLUMNS)}"]
    whole = sum(counts.values(), Counter())
    for kind, found in [*counts.items(), ("**all**", whole)]:
        cells = [str(found[one] or "") if one not in FAULTS else str(found[one]) for one in _COLUMNS]
        lines.append(f"| {kind} | {sum(found.values())} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    """Runs the suite; returns 1 where there is a fault."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=100, help="damaged copies of each kind of file")
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--runs", type=int, default=10, help="kills of each kind, and full disks")
    parser.add_argument("--only", nargs="*", default=[], help="kinds whose names hold one of these words")
    parser.add_argument("--output", type=Path, help="the report, in Markdown; printed by default")
    options = parser.parse_args()
    import torch

    import vlad.cli.lightning  # noqa: F401 - before anything is forked

    torch.set_num_threads(1)
    work = Path(tempfile.mkdtemp(prefix="vlad_faults_"))
    os.environ["VLAD_CACHE"] = str(work / "cache")
    os.environ["OPENCV_FFMPEG_LOGLEVEL"] = "-8"  # what it thinks of damaged videos
    began = time.monotonic()
    try:
        seeds = range(options.first, options.first + options.seeds)
        counts, faults = run(all_cases(work, seeds, options.runs, options.only))
    finally:
        shutil.rmtree(work, ignore_errors=True)
    text = f"# Faults: {sum(sum(found.values()) for found in counts.values()):,} cases\n\n{table(counts)}\n\n"
    text += (
        "right: the result is that of the undamaged file, or what can be read of it. told: one short line that names "
    )
    text += "the file.\n" + "".join(f"\n- {line}" for line in faults)
    text += f"\nSeeds {seeds.start} to {seeds.stop - 1}, {time.monotonic() - began:.0f} s.\n"
    if options.output:
        options.output.write_text(text, encoding="utf-8")
        print(json.dumps({kind: dict(found) for kind, found in counts.items()}), file=sys.stderr)
    else:
        print(text)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())

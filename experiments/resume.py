"""Kills `vlad fit` at random moments and goes on with it: the trained weights must be those of an uninterrupted run.

    python experiments/resume.py --kills 20 --workers 2
    python experiments/resume.py --methods clip_ada --signal TERM

Every attempt is a process of its own, forked when the imports are done, with its workers in a group that is killed as
one. Prints what each kill left, and whether all tensors agree bit by bit. Expected: every line ends in "equal".
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch

import vlad.cli.lightning  # noqa: F401 - imported once, for all attempts
from vlad.checkpoint import read_checkpoint
from vlad.cli import main as vlad_main
from vlad.runs.pointers import newest_first

METHODS = ("sdp_plus", "adaclip", "clip_ada", "anomalyclip", "april_gan", "af_clip", "faprompt", "crane",
           "crane_plus", "aa_clip", "bayes_pfl", "mrad", "visualad")  # fmt: skip
CONFIG = {
    "*": ["--model.backbone", "vlad-tiny", "--data.train", "{name: synthetic_aux, categories: [striped_disc, skin]}",
          "--data.batch_size", "8", "--model.image_size", "96",
          "--data.augment", "[{name: HorizontalFlip, p: 0.5}, {name: RandomBrightnessContrast, p: 0.5}]"],
    "adaclip": ["--model.depth", "2"],
    "april_gan": ["--model.layers", "[3, 6, 9, 12]"],
    "af_clip": ["--model.layers", "[3, 6, 9, 12]"],
    "visualad": ["--model.layers", "[3, 6, 9, 12]"],
    "aa_clip": ["--model.layers", "[3, 6, 9, 12]", "--model.text_epochs", "2"],
    "bayes_pfl": ["--model.layers", "[3, 6, 9, 12]", "--model.samples", "3", "--model.prompt_epochs", "2"],
    "crane_plus": ["--model.dino", "vlad-tiny"],
    "mrad": ["--model.variant", "ft"],
    "clip_ada": ["--model.full_size", "128", "--model.synthesis.recipe", "mixed"],
}  # fmt: skip
QUIET = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false",
         "--trainer.enable_model_summary", "false"]  # fmt: skip


def start(arguments: list[str], log: Path) -> int:
    """Runs a command in a process group of its own; returns its process id."""
    process = os.fork()
    if process:
        return process
    os.setsid()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    status = 70
    try:
        status = vlad_main(arguments)
    finally:
        sys.stdout.flush()
        os._exit(status)


def wait(process: int, seconds: float) -> int | None:
    """Returns the exit status of a process; None where it still runs after so long."""
    end = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            return None
        time.sleep(0.02)


def differences(one: Path, other: Path) -> list[str]:
    """Returns the names of the tensors in which two checkpoints differ by a bit."""
    first, second = (read_checkpoint(file)["state_dict"] for file in (one, other))
    names = sorted({*first, *second})
    return [name for name in names if name not in first or name not in second or not first[name].equal(second[name])]


def attempt(method: str, options: argparse.Namespace, work: Path, draw: random.Random) -> bool:
    """Trains without and with interruptions; returns whether the weights agree."""
    own = [*CONFIG["*"], *CONFIG.get(method, []), *QUIET, "--data.num_workers", str(options.workers)]
    fit = ["fit", "--model", method, *own, "--trainer.max_epochs", str(options.epochs)]
    if options.every_n_steps:
        fit += [
            "--trainer.callbacks+=ModelCheckpoint",
            f"--trainer.callbacks.every_n_train_steps={options.every_n_steps}",
        ]
    log = work / f"{method}.txt"
    began = time.monotonic()
    status = wait(start([*fit, "--output", str(work / method / "whole")], log), 3600)
    if status != 0:
        print(f"{method}: the uninterrupted run ended with {status}\n{log.read_text()[-2000:]}")
        return False
    seconds = time.monotonic() - began
    number, kills, run = getattr(signal, f"SIG{options.signal}"), 0, Path()
    for count in range(10 * options.kills + 1):
        target = work / method / f"run{count}"
        # A start that was killed before it began a folder leaves nothing to go on with.
        command = ["fit", "--ckpt_path", str(run), *QUIET] if run != Path() else fit
        process = start([*command, "--output", str(target)], log)
        moment = draw.uniform(0.1 * seconds, seconds) if kills < options.kills else 3600
        status = wait(process, moment)
        if status is None:
            (os.killpg if number == signal.SIGKILL else os.kill)(process, number)
            status = wait(process, 60)
            kills += 1
        has_any = bool(newest_first(target))
        run = target if has_any else run
        left = newest_first(target)[0].stem if has_any else "nothing"
        print(f"{method}: attempt {count} after {moment:5.1f} s: status {status}, left {left}", flush=True)
        if status == 0 and kills >= options.kills:
            break
        if status == 0:
            run = Path()  # done before it was killed: from the start again
    files = [newest_first(folder)[0] for folder in (work / method / "whole", run)]
    found = differences(*files)
    print(f"{method}: {kills} kills, {len(read_checkpoint(files[0])['state_dict'])} tensors: "
          + (f"{len(found)} differ: {found[:4]}" if found else "equal"), flush=True)  # fmt: skip
    return not found


def main() -> int:
    """Runs the experiment; returns 0 where all weights agree."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--every-n-steps", type=int, default=0, help="save so often, not at the end of every epoch")
    parser.add_argument("--signal", choices=("KILL", "TERM", "INT"), default="KILL")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    work, draw = Path(tempfile.mkdtemp(prefix="resume_")), random.Random(options.seed)
    print(work)
    agree = [attempt(method, options, work, draw) for method in options.methods]
    return int(not all(agree))


if __name__ == "__main__":
    sys.exit(main())

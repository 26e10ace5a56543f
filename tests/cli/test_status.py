"""Exit statuses and streams of the command, as a shell, a scheduler and a pipe see them."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests_support import write_picture

from vlad.cli import main
from vlad.cli.signals import Terminated, hold, release, terminable

TINY = ["--model.backbone", "vlad-tiny", "--data.num_workers", "0", "--trainer.enable_progress_bar", "false"]
NO_MAPS = ["--heatmaps.enabled", "false"]


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i in range(3):
        write_picture(Path("photos") / f"{i}.png", seed=i)
    return Path("photos")


def test_all_scored_is_0_and_the_default_method_is_said(photos, capsys):
    assert main(["predict", "photos", *TINY, *NO_MAPS]) == 0
    out = capsys.readouterr().out
    assert "method: sdp (default)\nimage_size: 96 (of vlad-tiny)\n" in out


def test_error_rows_are_3_and_nothing_usable_is_1(photos, capsys):
    (photos / "0.png").write_bytes(b"no image")
    assert main(["predict", "photos", *TINY, *NO_MAPS]) == 3
    for file in photos.glob("*.png"):
        file.write_bytes(b"no image")
    assert main(["predict", "photos", *TINY, *NO_MAPS]) == 1
    assert main(["predict", "nothere", *TINY]) == 1


def test_anomalous_is_4_where_that_is_asked_for(photos):
    predict = ["predict", "photos", *TINY, *NO_MAPS]
    assert main([*predict, "--decision", "-1e9"]) == 0
    assert main([*predict, "--decision", "-1e9", "--fail-on-anomaly"]) == 4
    assert main([*predict, "--decision", "1e9", "--fail-on-anomaly"]) == 0


def test_a_trial_says_that_it_evaluates_nothing(mvtec, monkeypatch, capsys):
    monkeypatch.chdir(mvtec)
    test = ["test", "--model", "sdp", *TINY, *NO_MAPS, "--data.test", "mvtec_ad/bottle/"]
    assert main([*test, "--trainer.fast_dev_run", "true"]) == 0
    assert "fast_dev_run: a trial of 1 batch; nothing is evaluated or written" in capsys.readouterr().out
    assert not Path("runs").exists()
    assert main(["predict", "mvtec_ad/bottle/test/good", *TINY, *NO_MAPS, "--trainer.fast_dev_run", "true"]) == 0
    assert "fast_dev_run: a trial of 1 batch" in capsys.readouterr().out
    assert main([*test, "--trainer.limit_test_batches", "0"]) == 0
    assert "limit_test_batches is 0: nothing is evaluated" in capsys.readouterr().out
    assert main([*test, "--trainer.limit_test_batches", "1"]) == 0
    assert "limit_test_batches: only the first 1 batches are evaluated" in capsys.readouterr().out


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_letters_that_the_encoding_lacks_are_escaped(photos, encoding):
    write_picture(Path("部品") / "日本.png")
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    command = [sys.executable, "-m", "vlad", "predict", "部品", *TINY, *NO_MAPS]
    done = subprocess.run(command, env=environment, capture_output=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert rb"\u65e5\u672c.png" in done.stdout


def wait_for(check, seconds=120):
    end = time.time() + seconds
    while not check():
        assert time.time() < end
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("verb", "number", "status", "line"),
    [
        ("test", signal.SIGTERM, 143, "vlad test: stopped by SIGTERM"),
        ("predict", signal.SIGTERM, 143, "vlad predict: stopped by SIGTERM"),
        ("predict", signal.SIGINT, 130, "vlad predict: stopped"),
        ("fit", signal.SIGTERM, 143, "vlad fit: stopped by SIGTERM"),
    ],
)
def test_signals(photos, verb, number, status, line):
    for kind in ("good", "bad"):
        write_picture(Path("s") / kind / "0.png", seed=len(kind))
        for i in range(1, 1000):
            os.link(f"s/{kind}/0.png", f"s/{kind}/{i}.png")
    if verb == "fit":
        data = ["--model", "sdp_plus", "--data.train", "s/", "--data.images_per_category", "8"]
        data += ["--trainer.max_epochs", "100000"]
    else:
        data = [*NO_MAPS, *(["s"] if verb == "predict" else ["--model", "sdp", "--data.test", "s/"])]
    slow = ["--data.batch_size", "1", "--allow-overlap"]
    run = subprocess.Popen(
        [sys.executable, "-m", "vlad", verb, *data, *TINY, *slow], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    wait_for(lambda: list(Path("runs").rglob("run.json")) or run.poll() is not None)
    time.sleep(1)
    run.send_signal(number)
    _, err = run.communicate(timeout=60)
    assert run.returncode == status, err
    assert err.decode().strip().splitlines()[-1] == line
    assert b"Traceback" not in err


def test_sigterm_is_raised_and_handed_back():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated), terminable():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGTERM, Terminated), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_waits_while_it_is_held(number, raised):
    done = []
    with pytest.raises(raised), terminable():  # noqa: PT012 - what comes after the signal is the point
        hold()
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)  # what is being ended is not ended twice
        done.append("held")
        release()
        done.append("never")
    assert done == ["held"]


def test_a_signal_that_is_ignored_from_outside_stays_so():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with terminable():
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_disk_that_cannot_be_written_is_one_line(photos, monkeypatch, capsys, number):
    monkeypatch.delenv("VLAD_DEBUG", raising=False)

    def write(*_, **__):
        raise OSError(number, os.strerror(number), "out/predictions.csv")

    monkeypatch.setattr("vlad.callbacks.predictions.RowStore.add", write, raising=False)
    monkeypatch.setattr("vlad.cli.early.refuse_missing", write)
    assert main(["predict", "photos", *TINY]) == 1
    assert capsys.readouterr().err == f"vlad predict: out/predictions.csv: {os.strerror(number)}\n"


def test_a_reader_that_has_left_is_no_fault(photos):
    command = f"{sys.executable} -m vlad methods --json | head -c 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, b"")

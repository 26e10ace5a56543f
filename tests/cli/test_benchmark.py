"""``vlad benchmark``: cells that are independent, resumed, and shared by processes."""

import json
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import yaml

from vlad.benchmark.run import run_cells
from vlad.cli import main

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def plan(mvtec, tiny, tmp_path, monkeypatch):
    """Two methods, one of them trained, on a little data set."""
    content = {
        "title": "little",
        "datasets": ["mvtec_ad"],
        "seeds": [0, 1],
        "metrics_shown": ["image_auroc", "pixel_auroc"],
        "common": {
            "model": {"backbone": tiny, "image_size": 64, "layers": [2, 4]},
            "data": {"num_workers": 0, "root": str(mvtec)},
        },
        "methods": [
            {"method": "sdp", "shots": [0, 1]},
            {"method": "sdp_plus", "train": "mvtec_ad", "fit": {"trainer": {"max_epochs": 1}},
             "data": {"allow_overlap": True}},
        ],
    }  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(content))
    return content


def results(folder="benchmarks_plan"):
    from pathlib import Path

    return {path.name: path.stat().st_mtime_ns for path in Path(folder, "results").glob("*.json")}


def test_a_plan_is_run_once_and_gathered_in_every_format(plan, tmp_path, capsys):
    assert main(["benchmark", "plan.yaml"]) == 0
    out, err = capsys.readouterr()
    assert "little: mvtec_ad" in out
    assert "sdp draws nothing at random with 0 shots: one seed is enough" in err
    lines = [line.split() for line in out.splitlines() if line.startswith("sdp")]
    assert [line[:3] for line in lines] == [["sdp", "0", "1"], ["sdp", "1", "2"], ["sdp_plus", "0", "2"]]
    assert all("±" in line for line in lines[1:])
    before = results()
    assert len(before) == 5
    folder = tmp_path / "benchmarks_plan"
    assert len(list((folder / "fits").glob("*.json"))) == 2
    assert r"\toprule" in (folder / "tables.tex").read_text()
    assert "<table>" in (folder / "tables.html").read_text()
    numbers = pd.read_csv(folder / "results.csv")
    assert set(numbers["category"].dropna()) == {"bottle", "metal_nut"}
    content = json.loads(next(folder.glob("results/sdp_plus*.json")).read_text())
    assert content["seconds"].keys() == {"fit", "test"}
    assert main(["benchmark", "plan.yaml", "--results", "all.parquet", "--format", "markdown"]) == 0
    assert results() == before  # nothing ran again
    out = capsys.readouterr().out
    assert "| sdp_plus | 0 | 2 |" in out
    pd.testing.assert_frame_equal(pd.read_parquet("all.parquet")[["metric"]], numbers[["metric"]])


def test_what_was_cut_off_runs_again_and_the_rest_does_not(plan, tmp_path, capsys):
    assert main(["benchmark", "plan.yaml", "--cell", "1/2"]) == 0
    assert "cells are not finished" in capsys.readouterr().err
    before = results()
    assert 0 < len(before) < 5
    folder = tmp_path / "benchmarks_plan"
    lost = next(iter(sorted(before)))
    content = json.loads((folder / "results" / lost).read_text())
    (folder / "results" / lost).unlink()  # a kill during its test
    (folder / "runs" / lost.removesuffix(".json") / "test_metrics.json").write_text("half")
    assert main(["benchmark", "plan.yaml", "--cell", "1/2"]) == 0
    after = results()
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] != before[name]} == {lost}
    assert json.loads((folder / "results" / lost).read_text())["mean"] == content["mean"]


def test_a_cell_that_fails_does_not_stop_the_others(plan, tmp_path, capsys):
    plan["methods"].insert(0, {"method": "sdp", "name": "wrong", "model": {"sigmaa": 3}})
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    assert main(["benchmark", "plan.yaml", "--cell", "1/3"]) == 1
    err = capsys.readouterr().err
    assert "failed: vlad test: no option 'model.sigmaa'" in err.replace("--", "") or "sigmaa" in err
    assert len(results()) == 1


def test_a_cell_at_which_another_process_is_is_left_to_it(plan, tmp_path, capsys):
    import fcntl

    from vlad.benchmark import read_plan

    cells = read_plan(tmp_path / "plan.yaml").cells[:1]
    lock = tmp_path / "out/locks" / f"{cells[0].key}.lock"
    lock.parent.mkdir(parents=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert run_cells(cells, tmp_path / "out") == 0
    assert "another process is at it" in capsys.readouterr().out
    assert results(tmp_path / "out") == {}


def test_options_lie_over_the_plan_and_the_plans_own_are_refused(plan, capsys):
    assert main(["benchmark", "plan.yaml", "--list", "--model.sigma", "1.5"]) == 0
    other = capsys.readouterr().out
    assert main(["benchmark", "plan.yaml", "--list"]) == 0
    first = capsys.readouterr().out
    assert first.count("to do") == other.count("to do") == 5
    assert not set(first.split()) & set(other.split()) - {"to", "do"}
    for arguments, told in (
        (["--data.test", "visa"], "--data.test is the plan's own"),
        (["--cell", "3/2"], "--cell is a share such as 2/8"),
        (["--model.sigma"], "--model.sigma needs a value"),
        (["--tables-only", "--results", "x.json"], ""),
    ):
        assert main(["benchmark", "plan.yaml", *arguments]) in ({2} if told else {0})
        assert told in capsys.readouterr().err
    assert main(["reproduce", "adaclap"]) == 2
    assert "did you mean adaclip" in capsys.readouterr().err
    assert main(["reproduce", "clip_ad", "--print"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["published"]


def test_three_processes_share_a_folder_and_one_of_them_is_killed(plan, tmp_path, capsys):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "vlad", "benchmark", "plan.yaml", "-o", "shared"]

    def start(share):
        return subprocess.Popen([*command, "--cell", share], env=environment, stdout=subprocess.DEVNULL)

    processes = [start(f"{i}/3") for i in (1, 2, 3)]
    deadline = time.monotonic() + 120
    while not list((tmp_path / "shared").glob("locks/*.lock")) and time.monotonic() < deadline:
        time.sleep(0.05)
    processes[0].send_signal(signal.SIGKILL)
    assert [process.wait() for process in processes] == [-signal.SIGKILL, 0, 0]
    assert main(["benchmark", "plan.yaml", "-o", "shared"]) == 0
    table = (tmp_path / "shared/tables.txt").read_text()
    assert main(["benchmark", "plan.yaml", "-o", "alone"]) == 0
    assert (tmp_path / "alone/tables.txt").read_text() == table
    assert len(results("shared")) == 5

"""The help fits a screen, is quick, and names options that are there."""

import subprocess
import sys

import pytest

from vlad.cli import main
from vlad.cli.help import HELP
from vlad.cli.names import FLAGS, SHORT


@pytest.mark.parametrize("verb", ["fit", "validate", "test", "predict"])
def test_help_fits_a_screen(verb, capsys):
    for arguments in ([verb, "--help"], [verb, "-h"], [verb, "--model", "sdp", "--help"]):
        assert main(arguments) == 0
        lines = capsys.readouterr().out.splitlines()
        assert 24 <= len(lines) <= 40
        assert max(map(len, lines)) <= 120
        assert lines[0].startswith(f"usage: vlad {verb} ")
        assert "--help-all" in lines[-1]


@pytest.mark.parametrize("verb", ["fit", "validate", "test", "predict"])
def test_every_option_of_the_help_is_one(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help-all"])
    assert stop.value.code == 0
    everything = capsys.readouterr().out
    assert len(everything.splitlines()) > 200
    for _, options in HELP[verb][1]:
        for text in options:
            option = text.split()[0]
            option = {**SHORT, **FLAGS}.get(option, option)
            if not option.startswith(("--model.", "--weights-dir")):  # of the method; taken off before the parser
                assert f"{option} " in everything or f"{option}," in everything or f"[{option}" in everything, option


def test_help_imports_nothing_heavy():
    code = "import sys; from vlad.cli import main; main(['predict', '--help']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    loaded = set(done.stdout.split())
    assert not {"torch", "lightning", "pandas", "numpy", "jsonargparse", "yaml"} & loaded


def test_what_is_not_there_is_told_without_torch(tmp_path):
    code = (
        "import sys; from vlad.cli import main; status = main(['predict', 'nothere/'])\n"
        "assert status == 1 and 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "vlad predict: no image, folder or pattern nothere/: nothing is there\n"

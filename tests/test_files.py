import os
import subprocess
import sys
import time

import pytest

from vlad import files
from vlad.errors import OutputError
from vlad.files import cache_folder, open_plain, read_plain, scratch_folder, write_atomic, write_json, write_text


def test_whole_or_not_there(tmp_path):
    target = tmp_path / "sub" / "a.txt"
    assert write_text(target, "old").read_text() == "old"

    def fails(partial):
        partial.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomic(target, fails)
    assert target.read_text() == "old"
    assert [p.name for p in target.parent.iterdir()] == ["a.txt"]


def test_json_refuses_nan(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert not (tmp_path / "a.json").exists()


# -- what killed processes leave, and what others have laid out ------------------------------------------------------

KILLED = """
import os, sys, time
from pathlib import Path
from vlad.files import scratch_folder, write_atomic

def write(partial):
    partial.write_text("half")
    with scratch_folder(Path(sys.argv[1]) / "set") as folder:
        (folder / "a").write_text("half")
        print("there", flush=True)
        time.sleep(60)

write_atomic(Path(sys.argv[1]) / "a.txt", write)
"""


def test_what_a_killed_process_leaves_goes_with_the_next_file_and_what_a_live_one_writes_stays(tmp_path):
    with subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        left = sorted(tmp_path.iterdir())
        assert len(left) == 2
        for path in left:
            os.utime(path, (0, 0))
        files._sweep(tmp_path)
        assert sorted(tmp_path.iterdir()) == left  # its writer lives
        process.kill()
    write_text(tmp_path / "b.txt", "b")
    assert [path.name for path in tmp_path.iterdir()] == ["b.txt"]


def test_a_young_file_and_files_of_others_are_not_swept(tmp_path):
    young, other = tmp_path / f".{'0' * 16}.a.part", tmp_path / "data.part"
    for path in (young, other):
        path.write_text("")
    os.utime(other, (0, 0))
    files._sweep(tmp_path)
    assert young.exists()
    assert other.exists()
    os.utime(young, (time.time() - 60,) * 2)
    files._sweep(tmp_path)
    assert not young.exists()


def test_temporary_names_cannot_be_foreseen_and_are_new(tmp_path):
    seen = []
    for _ in range(2):
        write_atomic(tmp_path / "a", lambda partial: seen.append(partial) or partial.write_text("x"))
    assert seen[0] != seen[1]
    assert all(path.name.startswith(".") and path.name.endswith(".part") for path in seen)
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_link_at_the_target_is_replaced_and_not_followed(tmp_path):
    (tmp_path / "precious").write_text("old")
    (tmp_path / "a").symlink_to("precious")
    write_text(tmp_path / "a", "new")
    assert (tmp_path / "precious").read_text() == "old"
    assert not (tmp_path / "a").is_symlink()


@pytest.mark.parametrize("what", ["link", "dangling link", "fifo", "folder"])
def test_files_of_foreseeable_names_are_no_links(what, tmp_path):
    (tmp_path / "precious").write_text("old")
    path = tmp_path / "journal"
    {
        "link": lambda: path.symlink_to("precious"),
        "dangling link": lambda: path.symlink_to("nowhere"),
        "fifo": lambda: os.mkfifo(path),
        "folder": lambda: path.mkdir(),
    }[what]()
    with pytest.raises(OutputError):
        os.close(open_plain(path, os.O_RDWR | os.O_APPEND))
    assert (tmp_path / "precious").read_text() == "old"
    assert not (tmp_path / "nowhere").exists()


def test_a_scratch_folder_is_renamed_or_gone(tmp_path):
    with scratch_folder(tmp_path / "set") as folder:
        (folder / "a").write_text("a")
        folder.rename(tmp_path / "set")
    assert (tmp_path / "set/a").read_text() == "a"
    with pytest.raises(FileNotFoundError), scratch_folder(tmp_path / "other") as folder:
        (folder / "a").rename(folder / "gone" / "a")
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_only_regular_files_of_a_bounded_size_are_read(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert read_plain(tmp_path / "a", 3) == b"abc"
    with pytest.raises(OSError, match="more than 2"):
        read_plain(tmp_path / "a", 2)
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", "/dev/zero", tmp_path):
        with pytest.raises(OSError, match="no regular file|directory"):
            read_plain(path)


def test_a_user_without_a_home_is_told(monkeypatch):
    monkeypatch.delenv("VLAD_CACHE", raising=False)
    monkeypatch.setattr("pathlib.Path.home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    with pytest.raises(OutputError, match="set VLAD_CACHE"):
        cache_folder()

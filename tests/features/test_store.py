import os
import signal
import subprocess
import sys
import time
import warnings

import pytest
import torch

from vlad.features.store import FeatureStore, Row, make_room, used_bytes

WRITER = """
import sys
from pathlib import Path
import torch
from vlad.features.store import FeatureStore, Row

store = FeatureStore(Path(sys.argv[1]), shard_size=4000)
for number in range(int(sys.argv[2]), int(sys.argv[3])):
    store.add({Row(key, str(number)): torch.full((50,), float(number)) for key in ("a", "b")})
    if number == int(sys.argv[2]):
        print("ready", flush=True)
store.flush()
"""


def rows(number, *keys, size=3):
    return {Row(key, str(number)): torch.full((size,), float(number)) for key in keys or ("a",)}


def test_tensors_come_back_whatever_their_kind(tmp_path):
    values = {
        Row("floats", "x"): torch.randn(2, 3, 4),
        Row("halves", "x"): torch.randn(5).half(),
        Row("brains", "x"): torch.randn(5).bfloat16(),
    }
    store = FeatureStore(tmp_path / "f")
    store.add(values)
    for row, value in values.items():
        assert torch.equal(store.get(row), value)  # not yet written
    store.close()
    other = FeatureStore(tmp_path / "f")
    assert other.get(Row("floats", "x")) is None  # not yet looked for
    assert other.refresh()
    assert not other.refresh()
    for row, value in values.items():
        assert torch.equal(other.get(row), value)
        assert other.get(row).dtype == value.dtype
    assert other.get(Row("floats", "y")) is None


def test_images_of_several_sizes_go_to_shards_of_their_own(tmp_path):
    store = FeatureStore(tmp_path)
    for number, size in enumerate((3, 3, 5, 5, 3)):
        store.add(rows(number, size=size))
    store.flush()
    assert len(list(tmp_path.glob("*.safetensors"))) == 3
    other = FeatureStore(tmp_path)
    other.refresh()
    assert [len(other.get(Row("a", str(number)))) for number in range(5)] == [3, 3, 5, 5, 3]


def test_a_shard_is_written_when_enough_has_come(tmp_path):
    store = FeatureStore(tmp_path, shard_size=100)
    for number in range(20):
        store.add(rows(number))
    assert store.unwritten < 100
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


def test_damage_is_never_read(tmp_path):
    store = FeatureStore(tmp_path)
    for number in range(10):
        store.add(rows(number, size=50))
    store.close()
    (shard,) = tmp_path.glob("*.safetensors")
    whole, told = shard.read_bytes(), 0
    for place in range(0, len(whole), len(whole) // 60):
        content = bytearray(whole)
        content[place] ^= 0x10
        shard.write_bytes(content)
        other = FeatureStore(tmp_path)
        with warnings.catch_warnings(record=True) as caught:
            other.refresh()
            found = [other.get(Row("a", str(number))) for number in range(10)]
        for number, value in enumerate(found):
            assert value is None or torch.equal(value, torch.full((50,), float(number)))
        told += any("damaged" in str(warning.message) for warning in caught)
    assert told > 45  # a changed digest of an image is none of an image that is asked for


@pytest.mark.parametrize("kept", [0, 7, 100, -1])
def test_a_shard_that_is_cut_off_is_told(tmp_path, kept):
    store = FeatureStore(tmp_path)
    store.add(rows(0, size=50))
    store.close()
    (shard,) = tmp_path.glob("*.safetensors")
    shard.write_bytes(shard.read_bytes()[:kept])
    other = FeatureStore(tmp_path)
    with pytest.warns(UserWarning, match="damaged"):
        other.refresh()
    assert other.get(Row("a", "0")) is None


def test_a_process_that_is_killed_leaves_whole_shards(tmp_path):
    command = [sys.executable, "-c", WRITER, str(tmp_path), "0", "1000000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        while len(list(tmp_path.glob("*.safetensors"))) < 5:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    store = FeatureStore(tmp_path)
    store.refresh()
    found = [number for number in range(1_000_000) if Row("a", str(number)) in store._places]
    assert found == list(range(len(found)))  # all but the last ones
    assert len(found) >= 40
    for number in found:
        assert torch.equal(store.get(Row("b", str(number))), torch.full((50,), float(number)))


def test_processes_write_side_by_side(tmp_path):
    commands = [[sys.executable, "-c", WRITER, str(tmp_path), *map(str, ends)] for ends in ((0, 60), (40, 100))]
    for process in [subprocess.Popen(command, stdout=subprocess.DEVNULL) for command in commands]:
        assert process.wait() == 0
    store = FeatureStore(tmp_path)
    store.refresh()
    for number in range(100):
        assert torch.equal(store.get(Row("a", str(number))), torch.full((50,), float(number)))


def test_a_shard_that_another_process_removes_is_no_error(tmp_path):
    store = FeatureStore(tmp_path)
    store.add(rows(0))
    store.flush()
    other = FeatureStore(tmp_path)
    other.refresh()
    for shard in tmp_path.glob("*.safetensors"):
        shard.unlink()
    assert other.get(Row("a", "0")) is None


def test_room_is_made_of_what_was_not_used_for_longest(tmp_path):
    for number, age in enumerate((3 * 3600, 2 * 3600, 0)):
        store = FeatureStore(tmp_path / str(number))
        store.add(rows(0, size=1000))
        store.close()
        for shard in store.folder.iterdir():
            os.utime(shard, (time.time() - age,) * 2)
    size = used_bytes(tmp_path) // 3
    assert make_room(tmp_path, size) >= size
    assert [any((tmp_path / str(number)).iterdir()) for number in range(3)] == [False, True, True]
    assert make_room(tmp_path, 10 * size, keep=[tmp_path / "1"]) == 0  # the last one is in use

"""Torch files: what is packed or unfolds is refused before it takes memory."""

import zipfile

import pytest
import torch

from vlad.torch_files import load_torch


def test_what_torch_saves_is_read(tmp_path):
    content = {"a": torch.ones(3, 4).T, "b": [torch.zeros(0), {"c": torch.arange(6)[::2]}], "n": 1}
    torch.save(content, tmp_path / "a.pt")
    found = load_torch(tmp_path / "a.pt")
    assert torch.equal(found["a"], content["a"])
    assert torch.equal(found["b"][1]["c"], content["b"][1]["c"])
    torch.save(content, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert load_torch(tmp_path / "old.pt")["n"] == 1


def test_a_packed_archive_is_refused(tmp_path):
    torch.save({"a": torch.zeros(1000)}, tmp_path / "a.pt")
    with (
        zipfile.ZipFile(tmp_path / "a.pt") as archive,
        zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as to,
    ):
        for name in archive.namelist():
            to.writestr(name, archive.read(name))
    with pytest.raises(ValueError, match="packed"):
        load_torch(tmp_path / "b.pt")


def test_a_tensor_that_repeats_its_values_is_refused(tmp_path):
    torch.save({"a": {"b": [torch.zeros(1).expand(10**12)]}}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="fewer values in the file"):
        load_torch(tmp_path / "a.pt")

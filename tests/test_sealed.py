"""Checkpoints are whole or refused, and the two newest are kept."""

import random

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from tests_support import save_run
from torch.utils.data import DataLoader

import vlad
from vlad.checkpoint import export_weights, read_checkpoint, read_file
from vlad.errors import VladError, WeightsError
from vlad.methods.sdp_plus import SDPPlus
from vlad.runs.checkpoints import SealedCheckpointIO, TwoCheckpoints
from vlad.sealed import check_seal, checksum


@pytest.fixture
def run(tiny, tmp_path):
    method = SDPPlus(backbone=tiny, image_size=64, layers=[2, 4])
    method.origin = "fit"
    return save_run(method, tmp_path / "run")


def test_a_checkpoint_carries_its_checksum_and_loses_it_when_read(run):
    file = run / "checkpoints/epoch=0.ckpt"
    raw = torch.load(file, weights_only=True)
    assert raw["vlad"]["checksum"] == checksum(raw)
    assert "checksum" not in read_file(file)["vlad"]
    assert vlad.load(run).method.trains


@pytest.mark.parametrize(
    "change",
    [
        lambda content: next(iter(content["state_dict"].values())).view(-1)[0].add_(1e-6),
        lambda content: content["hyper_parameters"].update(sigma=3.0),
        lambda content: content["vlad"].update(origin=""),
        lambda content: content["state_dict"].update(more=torch.zeros(1)),
    ],
)
def test_any_change_is_seen(run, change):
    file = run / "checkpoints/epoch=0.ckpt"
    content = torch.load(file, weights_only=True)
    change(content)
    torch.save(content, file)
    with pytest.raises(WeightsError, match=r"epoch=0.ckpt is damaged: its checksum is wrong"):
        vlad.load(run)


@pytest.mark.parametrize("kind", ["epoch=0.ckpt", "w.safetensors"])
def test_damaged_bytes_load_the_same_tensors_or_nothing(run, tmp_path, kind):
    file = run / "checkpoints/epoch=0.ckpt"
    whole = read_checkpoint(file)["state_dict"]
    if kind.endswith("safetensors"):
        file = export_weights(run, tmp_path / kind)
    content, draw, refused = file.read_bytes(), random.Random(0), 0
    for _ in range(40):
        changed = bytearray(content)
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
        file.write_bytes(changed)
        try:
            found = read_checkpoint(file)["state_dict"]
        except VladError as error:
            assert "\n" not in str(error)  # noqa: PT017 - not all of them are refused
            refused += 1
        else:
            assert all(whole[name].equal(found[name]) for name in whole)
    assert refused > 20


def test_what_is_no_checkpoint_of_ours_has_no_seal():
    content = {"a": torch.zeros(1)}
    assert check_seal(content, "x") is content


class Small(LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch):
        return self.weight * 1.0

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_the_newest_and_the_one_before_it_are_kept(tmp_path):
    trainer = Trainer(max_epochs=4, accelerator="cpu", logger=False, enable_progress_bar=False,
                      enable_model_summary=False, callbacks=[TwoCheckpoints(tmp_path, filename="{epoch}")],
                      plugins=[SealedCheckpointIO()])  # fmt: skip
    trainer.fit(Small(), DataLoader(range(2)))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["epoch=2.ckpt", "epoch=3.ckpt"]

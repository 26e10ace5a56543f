"""What several tests share: goldens on disk as CLIP folders, and little data sets of noise."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from vlad.clip.backbone import save_local
from vlad.runs.checkpoints import SealedCheckpointIO

DATA = Path(__file__).parent / "data"
SMALL = {  # settings of a method that fit the tiny CLIP: four blocks in the image tower, two in the text tower
    "sdp": {"layers": [2, 4]},
    "sdp_plus": {"layers": [2, 4]},
    "aa_clip": {"layers": [2, 4]},
    "adaclip": {"depth": 2, "length": 3, "clusters": 3},
    "af_clip": {"layers": [2, 4]},
    "anomalyclip": {},
    "anomalydino": {},
    "april_gan": {"layers": [2, 4]},
    "bayes_pfl": {"layers": [2, 4], "samples": 2, "flows": 3},
    "clip_ada": {"layers": [2, 4], "full_size": 96, "sigma": 2.0},
    "faprompt": {},
    "crane": {},
    "crane_plus": {"dino": "vlad-tiny"},
    "mrad": {},
    "musc": {"degrees": [1, 3]},
    "patch_memory": {"layers": [2, 4]},
    "visualad": {"layers": [2, 4]},
    "winclip": {},
}
GOLDENS: list["Golden"] = []  # for the summary of deviations at the end of a run


@dataclass
class Golden:
    """One published run: its CLIP as a backbone name, its settings, and its tensors."""

    name: str
    backbone: str
    meta: dict
    out: dict[str, torch.Tensor]
    method: dict[str, torch.Tensor]
    deviations: dict[str, float] = field(default_factory=dict)

    def check(self, name: str, value: torch.Tensor, rtol: float = 1e-4) -> None:
        """Asserts that a value equals a golden within rtol of the golden's largest magnitude."""
        expected = self.out[name].double()
        value = value.detach().double().reshape(expected.shape)
        self.deviations[name] = float((value - expected).abs().max() / expected.abs().max())
        assert self.deviations[name] <= rtol, f"{name}: {self.deviations[name]:.2e}"


def golden(folder: Path, target: Path) -> Golden:
    """Rebuilds a golden's CLIP (its token embedding is stored sparsely) in a folder that open_clip loads."""
    meta = json.loads((folder / "meta.json").read_text())
    state = load_file(folder / "clip.safetensors")
    ids, rows = state.pop("token_embedding.ids"), state.pop("token_embedding.rows")
    config = meta["cfg"]
    side = round((len(state["visual.positional_embedding"]) - 1) ** 0.5)
    config["vision_cfg"]["image_size"] = side * config["vision_cfg"]["patch_size"]  # some are stored after the resize
    words = torch.zeros(config["text_cfg"]["vocab_size"], config["text_cfg"]["width"])
    words[ids] = rows.float()
    state["token_embedding.weight"] = words
    import open_clip

    model = open_clip.CLIP(**config)
    model.load_state_dict(state)
    backbone = save_local(model, config, target)
    outputs, trained = load_file(folder / "outputs.safetensors"), folder / "method.safetensors"
    method = load_file(trained) if trained.is_file() else {}  # a training-free method has none
    GOLDENS.append(Golden(folder.relative_to(DATA).as_posix(), backbone, meta, outputs, method))
    return GOLDENS[-1]


def write_picture(path: Path, size: tuple[int, int] = (40, 36), *, seed: int = 0, mode: str = "RGB") -> None:
    """Writes an image of seeded noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


def write_mask(path: Path, size: tuple[int, int] = (40, 36), value: int = 255) -> None:
    """Writes a mask with a rectangle."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros((size[1], size[0]), dtype=np.uint8)
    mask[8:20, 10:26] = value
    Image.fromarray(mask).save(path)


def write_mvtec(root: Path, categories: tuple[str, ...] = ("bottle", "metal_nut"), *, count: int = 3) -> Path:
    """Writes a small tree in MVTec AD's layout; returns its root."""
    for number, category in enumerate(categories):
        for i in range(count):
            write_picture(root / category / "train" / "good" / f"{i:03}.png", seed=100 * number + i)
            write_picture(root / category / "test" / "good" / f"{i:03}.png", seed=100 * number + 10 + i)
            write_picture(root / category / "test" / "broken" / f"{i:03}.png", seed=100 * number + 20 + i)
            write_mask(root / category / "ground_truth" / "broken" / f"{i:03}_mask.png")
    return root


def save_run(method: torch.nn.Module, folder: Path) -> Path:
    """Writes the checkpoint that Lightning would write of a method; returns the run folder."""
    checkpoint = {"state_dict": dict(method.state_dict()), "hyper_parameters": dict(method.hparams)}
    method.on_save_checkpoint(checkpoint)
    SealedCheckpointIO().save_checkpoint(checkpoint, folder / "checkpoints" / "epoch=0.ckpt")
    return folder

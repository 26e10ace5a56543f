"""AnomalyDINO against its published code, from image files to scores, and each of its switches."""

import json
from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from tests_support import DATA, GOLDENS, Golden, write_mvtec
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import vlad
from vlad.datamodules import AnomalyDataModule
from vlad.encoders.dino import VisionTower, timm_names
from vlad.encoders.weights import load_all
from vlad.errors import MethodError
from vlad.methods.anomalydino import AnomalyDINO, foreground
from vlad.testing import CHECKS, iter_checks, random_batch

TESTS = ("test.good_000", "test.bad_001", "test.bad_002")


def build(name, **options):
    """Returns a published run, the method on its encoder, and batches of its references and its test images."""
    folder = DATA / "anomalydino" / name
    meta = json.loads((folder / "meta.json").read_text())
    config = {key: meta["dino"][key] for key in ("img_size", "patch_size", "embed_dim", "depth", "num_heads")}
    model = VisionTransformer(norm_layer=partial(nn.LayerNorm, eps=1e-6), num_classes=0, init_values=1.0, **config)
    load_all(model, timm_names(load_file(folder / "dino.safetensors")), folder, "golden")
    out = {**load_file(folder / "tensors.safetensors"), **load_file(folder / "outputs.safetensors")}
    GOLDENS.append(Golden(f"anomalydino/{name}", "", meta, out, {}))
    settings = {"rotations": 8 if name == "v1_rotation" else 1, "mask": "all" if meta["masking"] else "none"}
    method = AnomalyDINO(
        VisionTower(model, name="dinov2"), image_size=meta["resolution"], **{**settings, **options}
    ).eval()
    parts = folder / "pictures" / "part"
    data = AnomalyDataModule(
        test=str(parts / "test"), references=str(parts / "train" / "good"), num_workers=0, batch_size=4
    )
    data.require(method.requirements).setup("test")
    tests = torch.cat([batch["image"] for batch in data.test_dataloader()])
    names = list(data.frames["test"]["image_id"])
    order = [next(i for i, one in enumerate(names) if one.startswith(name[5:].replace("_", "/"))) for name in TESTS]
    return GOLDENS[-1], method, data, tests[order]


@torch.no_grad()
@pytest.mark.parametrize("name", ["v1_rotation", "v2_mask"])
def test_outputs(name):
    """From files: preparation, rotations of the full-size image, tokens, mask, distances, scores, map."""
    run, method, data, images = build(name)
    method.fit_references(data.reference_dataloader())
    bank = method.memory.levels_of(method.memory.categories[0])[0]
    references = [key for key in run.out if key.startswith("ref") and key.endswith(".tokens")]
    patches = len(run.out["ref0.tokens"])
    assert len(bank) == patches * (16 if name == "v1_rotation" else 1)
    for key in references:
        number = int(key[3:].split(".")[0])
        run.out[key] = nn.functional.normalize(run.out[key], dim=-1)
        run.check(key, bank[number * patches : (number + 1) * patches])
    features = method.encode(images)
    scores = method.compare(features, None, (bank,))
    size = (96, 128) if name == "v1_rotation" else (112, 112)  # the published map has the file's size
    prediction = method.finish(scores, size)
    for row, key in enumerate(TESTS):
        run.check(f"{key}.tokens", features.levels[0][row])
        run.check(f"{key}.distances", scores.memory[row])
        run.check(f"{key}.score", prediction.image_score[row])
        if f"{key}.map" in run.out:
            run.check(f"{key}.map", prediction.anomaly_map[row])
        if f"{key}.mask" in run.out:
            assert torch.equal(method.foreground(features.levels[0])[row].flatten(), run.out[f"{key}.mask"].bool())


@torch.no_grad()
@pytest.mark.parametrize("name", ["v1_rotation", "v2_mask"])
def test_batched_zero_shot(name):
    run, method, _, images = build(name, batched_share=0.05, mask="none", sigma=0.0)
    features = method.encode(images)
    prediction = method.score_set(features, None, images.shape[-2:])
    expected = torch.stack([run.out[f"batched.{row}"] for row in range(3)])
    unsmoothed = nn.functional.interpolate(
        expected.view(3, 1, *features.levels[0].shape[1:3]), images.shape[-2:], mode="bilinear"
    )
    torch.testing.assert_close(prediction.anomaly_map, unsmoothed[:, 0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(prediction.image_score, expected.amax(1), rtol=1e-4, atol=1e-6)
    masked = AnomalyDINO(method.backbone, image_size=method.image_size, mask="all", batched_share=0.05, sigma=0.0)
    again = masked.score_set(features, None, images.shape[-2:])
    assert (again.anomaly_map <= prediction.anomaly_map + 1e-6).all()


@torch.no_grad()
def test_the_published_mask_never_looks_up_or_down():
    _, method, _, images = build("v2_mask")
    tokens = method.encode(images).levels[0]
    raster, grid = foreground(tokens), foreground(tokens, raster=False)
    assert 20 < int((raster != grid).sum()) < 100  # 46 of 192 patches in the published comparison


@torch.no_grad()
def test_the_sign_of_the_component_matters():
    _, method, _, images = build("v2_mask")
    tokens = method.encode(images).levels[0]
    assert not torch.equal(foreground(tokens), foreground(tokens, by_scores=True))
    # The scores' rule goes by the image alone; with mirrored tokens the loadings' rule takes the other side.
    assert torch.equal(foreground(-tokens, by_scores=True), foreground(tokens, by_scores=True))
    assert not torch.equal(foreground(-tokens), foreground(tokens))


def test_a_narrow_mask_of_a_row_reaches_into_the_next_one():
    """One patch at the end of a row: along the raster order its neighbour is the start of the next row."""
    tokens = torch.zeros(1, 5, 5, 2)
    tokens[0, 1, 4, 0] = 100.0
    tokens[0, 1:4, 1:4, 0] = 100.0  # the centre, so that this side is the object
    raster, grid = foreground(tokens)[0], foreground(tokens, raster=False)[0]
    assert raster[2, 0]
    assert not raster[0, 4]
    assert grid[0, 4]


@torch.no_grad()
def test_class_names_tell_which_images_are_masked(tiny):
    method = AnomalyDINO(tiny, image_size=64).eval()
    assert [bool(method.class_text(name)) for name in ("screw", "pipe fryum", "macaroni1", "metal nut")] == [
        *(True, True, True, False)
    ]
    batch = random_batch(2)
    method.fit_references([random_batch(2, seed=1)])
    plain = AnomalyDINO(tiny, image_size=64, mask="none").eval()
    plain.memory = method.memory
    features = method.encode(batch["image"])
    bank = method.memory.levels_of("noise/noise")
    found = method.compare(features, method.texts(["screw", "metal nut"]), bank).memory
    without = plain.compare(features, None, bank).memory
    assert torch.equal(found[1], without[1])
    assert torch.equal(found[0], without[0] * method.foreground(features.levels[0])[0])


def test_references_come_rotated_and_are_recorded_once(tiny, tmp_path):
    write_mvtec(tmp_path / "mvtec_ad", ("bottle",))
    detector = vlad.load("anomalydino", backbone=tiny, pretrained=None, image_size=64, rotations=4)
    folder = tmp_path / "mvtec_ad/bottle/train/good"
    detector.fit_references(folder, class_name="bottle", shots=2)
    assert len(detector.references) == 2
    (bank,) = detector.method.memory.levels_of("images/bottle")
    assert len(bank) == 2 * 4 * 16
    from PIL import Image

    in_memory = vlad.load("anomalydino", backbone=tiny, pretrained=None, image_size=64, rotations=4)
    in_memory.fit_references([Image.open(folder / f"{n:03}.png") for n in range(3)], class_name="bottle")
    files = vlad.load("anomalydino", backbone=tiny, pretrained=None, image_size=64, rotations=4)
    files.fit_references(folder, class_name="bottle")
    assert torch.equal(
        in_memory.method.memory.levels_of("images/bottle")[0], files.method.memory.levels_of("images/bottle")[0]
    )
    assert len(files.references) == 3


@torch.no_grad()
def test_a_set_is_scored_together_or_refused(tiny):
    method = AnomalyDINO(tiny, image_size=64, mask="none", batched_share=0.001).eval()
    batch = random_batch(3)
    with pytest.raises(MethodError, match="scores a whole test set at once"):
        method.score(batch["image"], batch["class_name"])
    features = method.encode(batch["image"])
    unit = nn.functional.normalize(features.levels[0].flatten(1, 2), dim=-1)
    others = torch.cat([unit[1], unit[2]])  # fewer than a thousand patches: the nearest one
    expected = (1 - (unit[0] @ others.T).amax(1)).amax()
    assert method.score_set(features, None, (64, 64)).image_score[0] == pytest.approx(float(expected), abs=1e-6)
    with pytest.raises(MethodError, match="there is but one"):
        method.score_set(method.encode(batch["image"][:1]), None, (64, 64))
    with pytest.raises(MethodError, match="takes no reference images"):
        method.fit_references([batch])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rotations": 0}, "rotations is a number of copies"),
        ({"batched_share": 1.5, "mask": "none"}, "batched_share must lie between 0 and 1"),
        ({"batched_share": 0.1}, "give mask all or none"),
    ],
)
def test_settings_out_of_range(tiny, options, message):
    with pytest.raises(MethodError, match=message):
        AnomalyDINO(tiny, image_size=64, **options)


@pytest.mark.parametrize("check", [check.__name__ for check in CHECKS])
@pytest.mark.parametrize(
    "options", [{"mask": "all", "mask_neighbours": "grid"}, {"mask": "all", "component_sign": "scores"}]
)
def test_conforms(tiny, check, options):
    dict(iter_checks(AnomalyDINO, backbone=tiny, pretrained=None, image_size=64, **options))[check]()

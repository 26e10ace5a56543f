"""MRAD against its published code, number by number, in all three variants; its memory and its two stages."""

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from safetensors.torch import load_file
from tests_support import DATA, Golden, golden, save_run, write_mvtec

from vlad.datamodules import AnomalyDataModule
from vlad.errors import MethodError, WeightsError
from vlad.methods.mrad import MRAD, neighbourhood_mean
from vlad.methods.mrad_memory import row_quantile
from vlad.testing import CHECKS, iter_checks, random_batch

BANK = [f"memories.{name}.{part}" for name in ("images", "patches") for part in ("keys", "values")]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Golden:
    """The published run: six blocks, the local path from the second, a memory of six images."""
    found = golden(DATA / "mrad", tmp_path_factory.mktemp("mrad"))
    for name in ("train", "memory"):
        tensors = load_file(DATA / "mrad" / f"{name}.safetensors")
        found.out |= {f"{name}.{key}": value for key, value in tensors.items()}
    return found


def released(run, tmp_path):
    """Writes the published file and the two of the memory."""
    parts: dict[str, dict] = {}
    for key, value in run.method.items():
        part, name = key.split(".", 1)
        parts.setdefault(part, {})[name] = value
    torch.save(parts, tmp_path / "epoch_6.pth")
    for kind in ("image", "patch"):
        bank = {part: run.out[f"memory.{kind}_{part}"] for part in ("keys", "values")}
        torch.save(bank, tmp_path / f"{kind}.pt")
    return str(tmp_path / "epoch_6.pth"), [str(tmp_path / f"{kind}.pt") for kind in ("image", "patch")]


def build(run, tmp_path, variant, **options) -> MRAD:
    weights, bank = released(run, tmp_path)
    meta = run.meta
    settings = {"local_from": meta["first_dual_block"], "sigma": meta["sigma"], "image_weight": meta["k"], "bank": bank}
    settings |= {} if variant == "tf" else {"weights": weights}
    with pytest.warns(match="passed over") if variant == "ft" else _quiet():  # the prompts of the file
        return MRAD(run.backbone, None, meta["image_size"], variant, **{**settings, **options}).eval()


def _quiet():
    import contextlib

    return contextlib.nullcontext()


@torch.no_grad()
@pytest.mark.parametrize("variant", ["tf", "ft", "clip"])
def test_outputs(run, tmp_path, variant):
    method = build(run, tmp_path, variant)
    features = method.encode(run.out["images"])
    scores = method.compare(features, None)
    prediction = method.finish(scores, run.out["images"].shape[-2:])
    run.check(f"{variant}.anomaly_map", prediction.anomaly_map)
    run.check(f"{variant}.image_score", prediction.image_score)
    patches, joint = method.patches_of(features)
    abnormal = method.memories["patches"](patches)
    for row in range(3):
        run.check(f"img{row}.class_feature_raw", features.image[row])
        own = abnormal[row].flatten()
        run.check(f"{variant}.img{row}.patch_probs", torch.stack([1 - own, own], -1))
        whole = scores.image[row]
        run.check(f"{variant}.img{row}.image_probs", torch.stack([1 - whole, whole], -1))
        if variant == "clip":
            run.out["text"] = F.normalize(run.out[f"clip.img{row}.text_raw"], dim=-1)
            run.check("text", method.image_text(joint, abnormal)[row])
            run.deviations[f"text {row}"] = run.deviations["text"]
    run.check("img0.patch_wide", features.levels[0][0])
    run.check("img0.patch_projected", (features.levels[0] @ method.backbone.image.visual.proj)[0])


def training_batch(run):
    count = len(run.out["train.images"])
    return {
        **{"image": run.out["train.images"], "mask": run.out["train.gt"].bool(), "label": run.out["train.labels"]},
        "has_mask": torch.ones(count, dtype=torch.bool),
    }


def test_the_memory_is_built_of_the_training_images(run, tmp_path):
    method = build(run, tmp_path, "ft")
    batch = training_batch(run)
    method.build_memory({name: value[rows] for name, value in batch.items()} for rows in (slice(0, 2), slice(2, 6)))
    for kind, memory in zip(("image", "patch"), method.memories.values(), strict=True):
        run.check(f"memory.{kind}_keys", memory.keys)
        run.check(f"memory.{kind}_values", memory.values)


@pytest.mark.parametrize("stage", ["ft", "clip"])
def test_a_training_step_of_each_stage(run, tmp_path, stage):
    method = build(run, tmp_path, "clip").train()
    if stage == "clip":  # the published run takes this step after the other one
        with torch.no_grad():
            for name, value in published(run, "ft.after").items():
                method.get_parameter(name).copy_(value)
    method.stage = stage
    optimizer = method.configure_optimizers()
    batch = training_batch(run)
    features = method.encode(batch["image"])
    abnormal = method.memories["patches"](method.patches_of(features)[0]).flatten(1)
    run.check(f"train.{stage}.patch_probs", torch.stack([1 - abnormal, abnormal], -1))
    terms = method.loss(features, batch)
    names = {"focal": "loss.focal", "dice": "loss.dice", "image": "loss.image_ce"}
    if stage == "clip":  # what comes first is computed there and not used
        names = {"focal": "loss.focal#1", "dice": "loss.dice#1", "dice_normal": "loss.dice#2"}
    assert terms.keys() == names.keys()
    for name, term in terms.items():
        run.check(f"train.{stage}.{names[name]}", term)
    total = torch.stack(list(terms.values())).sum()
    run.check(f"train.{stage}.loss.total", total)
    total.backward()
    for name, gradient in published(run, f"{stage}.grad").items():
        own = method.get_parameter(name).grad
        if name.endswith("reading.bias"):  # cancels in the softmax: rounding alone
            assert own.abs().max() < 1e-3 * method.get_parameter(name.replace("bias", "weight")).grad.abs().max()
            continue
        run.out[f"grad.{name}"] = gradient
        run.check(f"grad.{name}", own, 1e-3 if name.startswith("deep_prompts") else 1e-4)
    for name, parameter in method.named_parameters():
        trained = name in published(run, f"{stage}.grad")
        assert (parameter.grad is not None) == trained, name  # the other stage's are left alone, by Adam too
    optimizer.step()
    for name, expected in published(run, f"{stage}.after").items():
        off = (method.get_parameter(name).detach() - expected).abs() > 1e-4
        assert name.endswith("reading.bias") or off.float().mean() < 0.01, name


def published(run, what):
    """Returns tensors of a published training step under our names."""
    prefix = f"train.{what}."
    theirs = {key.removeprefix(prefix): value for key, value in run.out.items() if key.startswith(prefix)}
    names = {"image_proj.mlp1": "memories.images.queries", "image_proj.mlp2": "memories.images.reading"}
    names |= {"patch_proj.fc.0": "memories.patches.queries", "patch_proj.fc.1": "memories.patches.reading"}
    names |= {"prompt_proj.mlp1": "normal_word", "prompt_proj.mlp2": "abnormal_word"}
    found = {}
    for key, value in theirs.items():
        owner, _, leaf = key.rpartition(".")
        if owner in names:
            found[f"{names[owner]}.{leaf}"] = value
        elif "compound" in key:
            found[f"deep_prompts.block_{int(leaf) + 2}"] = value
    if "prompt_learner.ctx_pos" in theirs:
        words = [theirs[f"prompt_learner.ctx_{name}"] for name in ("pos", "neg")]
        found["words"] = torch.cat(words).flatten(0, 1)
    return found


# -- pieces ------------------------------------------------------------------------------------------------------


def test_zeros_beyond_the_border_count():
    mean = neighbourhood_mean(torch.ones(1, 5, 5, 1))[0, :, :, 0]
    assert float(mean[2, 2]) == pytest.approx(1)
    assert float(mean[0, 0]) == pytest.approx((1 + 4 / 9 + 9 / 25) / 3)


def test_quantiles_are_torchs_own():
    values = torch.randn(4, 7, 11)
    for share in (0.0, 0.8, 0.95, 1.0):
        torch.testing.assert_close(row_quantile(values, share)[..., 0], values.quantile(share, -1))


def test_training_leaves_the_nearest_keys_out(tiny):
    method = MRAD(tiny, None, 64, "ft")
    method.allow_untrained = True
    batch = random_batch(4)
    method.eval().build_memory([batch])
    queries = F.normalize(method.encode(batch["image"]).image, dim=-1)
    shown = method.memories["images"](queries)
    hidden = method.train().memories["images"](queries)
    assert not torch.equal(shown, hidden)


def test_an_empty_memory_says_nothing_and_is_refused(tiny):
    method, batch = MRAD(tiny, None, 64, "tf").eval(), random_batch(2)
    with pytest.raises(MethodError, match="MRAD has no memory: give bank"):
        method.score(batch["image"], batch["class_name"])
    method.allow_untrained = True
    assert float(method.score(batch["image"], batch["class_name"]).unsmoothed_map.unique()) == 0.5


def test_parts_of_anomalous_images_without_a_mask_are_left_out(tiny):
    method, batch = MRAD(tiny, None, 64, "ft").eval(), random_batch(4)
    method.build_memory([batch])
    assert [len(memory) for memory in method.memories.values()] == [4, 6]  # a key of each side where there is one
    batch["has_mask"][1] = False
    method.build_memory([batch])
    assert [len(memory) for memory in method.memories.values()] == [4, 4]
    batch["has_mask"][:] = False
    assert method.loss(method.encode(batch["image"]), batch)["focal"].item() == 0


def test_a_training_builds_its_memory_and_goes_through_both_stages(tiny, tmp_path):
    write_mvtec(tmp_path / "mvtec_ad", ("bottle",))
    method = MRAD(tiny, None, 64)
    data = AnomalyDataModule(root=str(tmp_path), train="mvtec_ad", num_workers=0, batch_size=4)
    data.require(method.requirements)
    before = {name: value.detach().clone() for name, value in method.named_parameters() if value.requires_grad}
    settings = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    Trainer(max_epochs=1, default_root_dir=tmp_path, **settings).fit(method, data)
    assert len(method.memories["images"]) == 6
    moved = {name for name, value in before.items() if not torch.equal(method.get_parameter(name), value)}
    assert moved
    assert all(name.startswith("memories.") for name in moved)
    between = {name: method.get_parameter(name).detach().clone() for name in before}
    Trainer(max_epochs=2, default_root_dir=tmp_path, **settings).fit(method, data)
    assert len(method.memories["images"]) == 6
    assert not torch.equal(method.words, between["words"])
    # A memory comes back with the weights, and can be taken over alone.
    folder = save_run(method, tmp_path / "run")
    again = MRAD(tiny, None, 64, weights=str(folder)).eval()
    alone = MRAD(tiny, None, 64, "tf", bank=str(folder)).eval()
    assert alone.hparams["bank"] is None  # a checkpoint of this one needs no other file
    for name in BANK:
        assert torch.equal(again.get_buffer(name), method.get_buffer(name))
        assert torch.equal(alone.get_buffer(name), method.get_buffer(name))
    batch = random_batch(2)
    expected = method.eval().score(batch["image"], batch["class_name"])
    torch.testing.assert_close(again.score(batch["image"], batch["class_name"]).anomaly_map, expected.anomaly_map)


def test_only_memories_are_taken_as_banks(tiny, tmp_path):
    torch.save({"keys": torch.ones(3, 5), "values": torch.ones(3, 2)}, tmp_path / "bank.pt")
    with pytest.raises(WeightsError, match=r"holds no keys \(K, 32\) of images"):
        MRAD(tiny, None, 64, "tf", bank=[str(tmp_path / "bank.pt")] * 2)
    with pytest.raises(WeightsError, match="holds no keys"):
        MRAD(tiny, None, 64, "tf", bank=str(tmp_path / "bank.pt"))


@pytest.mark.parametrize("check", [check.__name__ for check in CHECKS])
@pytest.mark.parametrize("variant", ["ft", "tf"])
def test_conforms(tiny, check, variant):
    dict(iter_checks(MRAD, backbone=tiny, pretrained=None, image_size=64, variant=variant))[check]()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"local_from": 5}, "local_from must be from 1 to 4"), ({"image_weight": 2}, "image_weight must lie between 0")],
)
def test_settings_out_of_range(tiny, options, message):
    with pytest.raises(MethodError, match=message):
        MRAD(tiny, None, 64, **options)

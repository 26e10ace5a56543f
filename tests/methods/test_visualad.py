"""VisualAD against its published code, number by number, and what its published evaluation leaves out."""

import pytest
import torch
from lightning.pytorch import Trainer
from safetensors.torch import load_file
from tests_support import DATA, Golden, golden, save_run, write_mvtec

from vlad.datamodules import AnomalyDataModule
from vlad.errors import MethodError, WeightsError
from vlad.methods.visualad import SpatialAttention, VisualAD
from vlad.testing import CHECKS, iter_checks, random_batch


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Golden:
    """The published run: eight blocks of which three are read, positions resized from 6 x 6 to 8 x 8."""
    found = golden(DATA / "visualad", tmp_path_factory.mktemp("visualad"))
    tensors = load_file(DATA / "visualad" / "train.safetensors")
    found.out |= {f"train.{key}": value for key, value in tensors.items()}
    return found


def build(run, **options) -> VisualAD:
    meta = run.meta
    settings = {"max_patches": meta["max_patches"], "sigma": meta["sigma"], "dropout": 0.0}
    settings |= {"weights": str(DATA / "visualad" / "official.pth")}
    return VisualAD(run.backbone, None, meta["image_size"], **{**settings, **options}).eval()


@torch.no_grad()
def test_outputs(run, recwarn):
    method = build(run)
    assert not [one for one in recwarn if "passed over" in str(one.message)]
    assert method.layers == tuple(run.meta["features_list"])  # told by the file
    features = method.encode(run.out["images"])
    scores = method.compare(features, None)
    prediction = method.finish(scores, run.out["images"].shape[-2:])
    run.check("anomaly_map", prediction.anomaly_map)
    run.check("image_score", prediction.image_score)
    told = method.told(features)
    for row in range(3):
        for name, token in zip(("anomaly", "normal"), features.classes, strict=True):
            run.check(f"img{row}.{name}_features", token[row])
        for number, pair in enumerate(told):
            for name, token in zip(("anomaly", "normal"), pair, strict=True):
                run.check(f"img{row}.enhanced_{name}.{number}", token[row])
    for number in range(3):
        run.out["patches"] = run.out[f"img0.tokens.{number}"][:, 3:]
        run.check("patches", features.levels[number][0])
        layer = scores._replace(patches=scores.patches[:, number : number + 1])
        run.check(f"img0.layer_map{f'#{number}' if number else ''}", method.map_of(layer, (64, 64))[0])


@torch.no_grad()
def test_the_trained_norm_is_left_out_in_scoring(run):
    """As published: trained, saved, never loaded. With it the map is 15 to 25 % of its range away."""
    images, names = run.out["images"], ["colon"] * 3
    plain, trained = build(run).score(images, names), build(run, trained_norm=True).score(images, names)
    span = plain.anomaly_map.max() - plain.anomaly_map.min()
    assert (plain.anomaly_map - trained.anomaly_map).abs().max() > 0.1 * span


def named(run, what):
    """Returns tensors of the published training step under our names."""
    prefix = f"train.{what}."
    names = {"layer_transforms.": "transforms.", "cross_attn.layer_attentions.": "attentions."}
    names |= {".mlp.": ".", ".gate.0.": ".gate.", "ln_post_": "norm_"}
    found = {}
    for key, value in run.out.items():
        if key.startswith(prefix):
            name = key.removeprefix(prefix)
            for theirs, own in names.items():
                name = name.replace(theirs, own)
            found[name] = value
    return found


def test_losses_gradients_and_the_step(run):
    method = build(run).train()
    norm = method.backbone.image.visual.ln_post  # the published training starts from CLIP's own
    with torch.no_grad():
        method.norm_weight.copy_(norm.weight)
        method.norm_bias.copy_(norm.bias)
    optimizer = method.configure_optimizers()
    batch = {"image": run.out["train.images"], "mask": run.out["train.gt"].bool(), "label": run.out["train.labels"]}
    features = method.encode_for_loss(batch["image"])
    terms = method.loss(features, batch)
    numbers = ["", "#1", "#2"]
    run.out["train.focal"] = sum(run.out[f"train.loss.focal{number}"] for number in numbers)
    run.out["train.dice"] = sum(run.out[f"train.loss.dice{number}"] for number in numbers)
    run.out["train.image"], run.out["train.contrast"] = run.out["train.loss.image_bce"], run.out["train.loss.contrast"]
    for name, term in terms.items():
        run.check(f"train.{name}", term)
    total = torch.stack(list(terms.values())).sum()
    run.check("train.loss.total", total)
    total.backward()
    gradients = named(run, "grad")
    assert gradients.keys() == {name for name, p in method.named_parameters() if p.requires_grad}
    for name, gradient in gradients.items():
        own = method.get_parameter(name).grad
        if name.endswith("k_norm.bias"):  # cancels in the softmax: rounding alone
            assert own.abs().max() < 1e-6
            continue
        run.out[f"grad.{name}"] = gradient
        run.check(f"grad.{name}", own)
    with torch.no_grad():  # a length of 1 is not reached here: make them longer, and see each clipped by itself
        before = {name: method.get_parameter(name).grad.clone() for name in gradients}
        method._trainer = Trainer(logger=False, accelerator="cpu", enable_checkpointing=False, gradient_clip_val=None)
        method.configure_gradient_clipping(optimizer, gradient_clip_val=None, gradient_clip_algorithm=None)
        method._trainer = None
        for name in ("anomaly_token", "normal_token"):
            run.out[f"clipped.{name}"] = run.out[f"train.clipped_grad.{name}"]
            run.check(f"clipped.{name}", method.get_parameter(name).grad)
    assert torch.equal(method.norm_weight.grad, before["norm_weight"])
    optimizer.step()
    for name, expected in named(run, "after").items():
        off = (method.get_parameter(name).detach() - expected).abs() > 1e-5
        assert name.endswith("k_norm.bias") or off.float().mean() < 0.01, name


def test_each_token_is_clipped_by_itself(tiny):
    method = VisualAD(tiny, None, 64)
    method.anomaly_token.grad, method.normal_token.grad = torch.full((48,), 3.0), torch.full((48,), 0.01)
    method.norm_bias.grad = torch.full((48,), 3.0)
    method._trainer = Trainer(logger=False, accelerator="cpu", enable_checkpointing=False)
    method.configure_gradient_clipping(None, gradient_clip_val=None, gradient_clip_algorithm=None)
    assert method.anomaly_token.grad.norm() == pytest.approx(1, abs=1e-4)
    assert float(method.normal_token.grad[0]) == pytest.approx(0.01)
    assert float(method.norm_bias.grad[0]) == 3


def test_the_tokens_rate_falls_to_the_others(tiny, tmp_path):
    write_mvtec(tmp_path / "mvtec_ad", ("bottle",))
    method, rates = VisualAD(tiny, None, 64), []
    data = AnomalyDataModule(root=str(tmp_path), train="mvtec_ad", num_workers=0, batch_size=6)
    data.require(method.requirements)
    trainer = Trainer(
        max_epochs=3, default_root_dir=tmp_path, logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    method.on_train_epoch_start = lambda: rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])
    trainer.fit(method, data)
    tokens, rest = zip(*rates, strict=True)
    assert tokens == pytest.approx((1e-3, 7.75e-4, 3.25e-4))
    assert rest == pytest.approx((1e-4, 1e-4, 1e-4))


@torch.no_grad()
def test_patches_depend_on_the_tokens(tiny):
    method, images = VisualAD(tiny, None, 64).eval(), random_batch(2)["image"]
    before = method.encode(images)
    method.anomaly_token.add_(1.0)
    after = method.encode(images)
    assert not torch.equal(before.levels[0], after.levels[0])
    assert not torch.equal(before.classes[1], after.classes[1])


def test_anchors_see_the_same_for_both_tokens():
    torch.manual_seed(0)
    attention, patches = SpatialAttention(8, 4, 10), torch.randn(2, 9, 8)
    one, other = torch.randn(2, 2, 8)
    together = attention(patches, (one, other))
    assert torch.equal(together[1], attention(patches, (other,))[0])
    assert len(attention(patches, (one,))) == 1


def test_an_image_without_a_mask_teaches_the_image_score_alone(tiny):
    method, batch = VisualAD(tiny, None, 64, dropout=0.0).train(), random_batch(3)
    terms = method.loss(method.encode(batch["image"]), batch)
    batch["has_mask"][:] = False
    alone = method.loss(method.encode(batch["image"]), batch)
    assert alone.keys() == {"image", "contrast"}
    assert torch.equal(alone["image"], terms["image"])


def test_published_and_own_files(run, tiny, tmp_path):
    """Ours keeps the layers that the published one told; another kind of file says what is wrong with it."""
    method = build(run)
    folder = save_run(method, tmp_path / "run")
    again = VisualAD(run.backbone, None, 64, max_patches=72, weights=str(folder))
    assert again.layers == method.layers
    for name, parameter in method.named_parameters():
        if parameter.requires_grad:
            assert torch.equal(again.get_parameter(name), parameter), name
    content = torch.load(DATA / "visualad" / "official.pth", weights_only=True)
    for change, message in (
        ({"transform_type": "linear"}, "transforms of the kind linear"),
        ({"features_list": [1, 2, 3]}, r"is of layers \[1, 2, 3\]"),
    ):
        torch.save(content | change, tmp_path / "other.pth")
        with pytest.raises(WeightsError, match=message):
            build(run, weights=str(tmp_path / "other.pth"), layers=[3, 6, 8])
    torch.save(content | {"image_size": 96}, tmp_path / "other.pth")
    with pytest.warns(match="was trained at 96 px, not 64"):
        build(run, weights=str(tmp_path / "other.pth"))


@pytest.mark.parametrize("check", [check.__name__ for check in CHECKS])
def test_conforms(tiny, check):
    dict(iter_checks(VisualAD, backbone=tiny, pretrained=None, image_size=64, trained_norm=True))[check]()


def test_unfit_settings(tiny):
    with pytest.raises(MethodError, match="an image has 16 patches and max_patches is 15"):
        VisualAD(tiny, None, 64, max_patches=15)
    with pytest.raises(MethodError, match="give a CLIP as backbone"):
        VisualAD("timm:vit_tiny_patch16_224", "random", 64)

"""Crane and Crane+ against their published code, number by number; their quirks, and two encoders as one."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tests_support import DATA, Golden, golden, save_run
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import vlad
from vlad.checkpoint import read_checkpoint
from vlad.clip.attention import local_attention
from vlad.encoders import load_encoder
from vlad.encoders.dino import VisionTower, timm_names
from vlad.encoders.pair import EncoderPair
from vlad.encoders.weights import load_all
from vlad.errors import BackboneError, MethodError, WeightsError
from vlad.methods.crane import Crane
from vlad.methods.crane_plus import CranePlus, affinity, resize
from vlad.published import InRepository
from vlad.testing import CHECKS, iter_checks, random_batch

DINO = {"dino": "vlad-tiny"}  # any encoder will do, and this one is small and always the same
RANDOM = {"dino": "timm:vit_tiny_patch16_224", "dino_pretrained": "random"}


@pytest.fixture(scope="module", params=["crane", "cranep"])
def run(request, tmp_path_factory) -> Golden:
    """The published runs: Crane with three layers that are one, Crane+ with a small DINOv2 beside CLIP."""
    folder = DATA / "crane" / request.param
    found = golden(folder, tmp_path_factory.mktemp(request.param))
    found.out |= {f"train.{key}": value for key, value in load_file(folder / "train.safetensors").items()}
    return found


def dino_of(run) -> VisionTower:
    """Returns the golden's DINOv2, with registers."""
    config = {key: run.meta["dino"][key] for key in ("img_size", "patch_size", "embed_dim", "depth", "num_heads")}
    norm = partial(nn.LayerNorm, eps=1e-6)
    model = VisionTransformer(
        norm_layer=norm, num_classes=0, init_values=1.0, reg_tokens=4, no_embed_class=True, **config
    )
    load_all(model, timm_names(load_file(DATA / run.name / "dino.safetensors")), run.name, "golden")
    return VisionTower(model, name="dinov2")


def build(run, tmp_path, **options) -> Crane:
    torch.save({"prompt_learner": dict(run.method)}, tmp_path / "epoch_5.pth")
    meta = run.meta
    settings = {
        "pretrained": None,
        "image_size": meta["image_size"],
        "layers": meta["features_list"],
        "local_from": meta["first_dual_block"],
        "soft_mean": meta["soft_mean"],
        "sigma": meta["sigma"],
        "training_upsampling": meta["train_interpolation"],
        "weights": str(tmp_path / "epoch_5.pth"),
        **options,
    }
    if meta["dino"] is None:
        return Crane(run.backbone, **settings).eval()
    clip = load_encoder(run.backbone, None, numerics=Crane.numerics)
    return CranePlus(EncoderPair(clip, dino_of(run)), **settings).eval()


def levels_as_published(method, features):
    """Returns patches in the published order: for each listed layer what is gathered, and the local path's."""
    local, gathered = features.levels[:1], features.levels[1:]
    listed = [level for one in gathered for level in (one, *local)]
    return listed or list(local) * len(method.layers)


@torch.no_grad()
def test_outputs(run, tmp_path):
    method = build(run, tmp_path)
    assert (method.length, method.depth, method.deep_length) == (12, run.meta["depth"], run.meta["t_n_ctx"])
    features = method.encode(run.out["images"])
    if run.meta["dino"] is not None:
        alike = method.alike(run.out["images"]).transpose(1, 2)
        for row in range(3):
            run.out[f"img{row}.dino"] = F.normalize(run.out[f"img{row}.dino"], dim=1)
            run.check(f"img{row}.dino", alike[row])
    text = method.texts(["part"] * 3)
    run.out["text"] = F.normalize(run.out["text_raw"], dim=-1)
    run.check("text", text[0])
    scores = method.compare(features, text)
    prediction = method.finish(scores, run.out["images"].shape[-2:])
    run.check("map_raw", prediction.unsmoothed_map)
    run.check("anomaly_map", prediction.anomaly_map)
    run.check("image_score", prediction.image_score)
    for row in range(3):
        run.check(f"img{row}.class_feature_raw", features.image[row])
        for number, level in enumerate(levels_as_published(method, features)):
            if (name := f"img{row}.patch_features_raw.{number}") in run.out:
                run.check(name, level[row])


@torch.no_grad()
def test_published_maps_depend_on_the_batch(run, tmp_path):
    """The mean of the similarities is the batch's: only where it is asked for."""
    if run.meta["dino"] is None:
        return
    images = run.out["images"]
    method = build(run, tmp_path, affinity_mean="batch")
    together = method.score(images, ["part"] * 3)
    run.check("batch3.anomaly_map", together.anomaly_map)
    run.check("batch3.image_score", together.image_score)
    assert (together.anomaly_map - run.out["anomaly_map"]).abs().max() > 0.05


def terms_of(run, method):
    features = method.encode(run.out["train.images"])
    count = len(run.out["train.images"])
    batch = {"mask": run.out["train.gt"].bool(), "label": run.out["train.labels"]}
    batch |= {"image": run.out["train.images"], "has_mask": torch.ones(count, dtype=torch.bool)}
    return features, method.loss(features, batch)


def training_options(run):
    """The published training goes by the batch's mean as well."""
    return {} if run.meta["dino"] is None else {"affinity_mean": "batch"}


def test_losses(run, tmp_path):
    method = build(run, tmp_path, **training_options(run)).train()
    features, terms = terms_of(run, method)
    text = method.image_text(F.normalize(features.image, dim=-1))
    for row, name in enumerate(("text_raw", "text_raw#1")):
        run.out[f"train.{name}"] = F.normalize(run.out[f"train.{name}"], dim=-1)
        run.check(f"train.{name}", text[:, row])
    run.check("train.class_feature_raw", features.image)
    copies = sum(method.copies)
    numbers = [f"#{n}" if n else "" for n in range(copies)]
    for name in ("focal", "dice"):
        published = sum(run.out[f"train.loss.{name}{number}"] for number in numbers)
        run.out[f"train.{name}"] = 2 * published
        run.check(f"train.{name}", terms[name])
    run.out["train.image"] = 0.2 * run.out["train.loss.image_ce"]
    run.check("train.image", terms["image"])
    run.check("train.loss.total", torch.stack(list(terms.values())).sum())
    logits = run.out["train.logits"]
    margin = method.compare(features, text).image[:, 0] * (method.temperature / method.image_temperature)
    torch.testing.assert_close(margin, logits[:, 1] - logits[:, 0], rtol=1e-4, atol=1e-4)


def named(run, what):
    """Returns tensors of the published training step under our names."""
    prefix = f"train.{what}."
    learner = {key.removeprefix(prefix): value for key, value in run.out.items() if key.startswith(prefix)}
    found = {"words": torch.cat([learner["ctx_pos"], learner["ctx_neg"]]).flatten(0, 1)}
    deep = [key for key in learner if key.startswith("compound_prompts_text.")]
    return found | {f"deep_prompts.block_{n + 2}": learner[f"compound_prompts_text.{n}"] for n in range(len(deep))}


def test_gradients_and_the_step(run, tmp_path):
    method = build(run, tmp_path, **training_options(run)).train()
    optimizer = method.configure_optimizers()
    torch.stack(list(terms_of(run, method)[1].values())).sum().backward()
    for name, gradient in named(run, "grad").items():
        run.out[f"grad.{name}"] = gradient
        run.check(f"grad.{name}", method.get_parameter(name).grad, 1e-4 if name == "words" else 1e-3)
    optimizer.step()
    for name, expected in named(run, "after").items():
        off = (method.get_parameter(name).detach() - expected).abs() > 1e-4
        assert off.float().mean() < 0.01, name  # Adam's first step is the sign, which rounding decides near zero


# -- quirks, each a switch ---------------------------------------------------------------------------------------


@torch.no_grad()
def test_listed_layers_are_one(run, tmp_path):
    """As published, all layers are the last; true layers give another map."""
    if run.meta["dino"] is not None:
        return
    images = run.out["images"]
    true = build(run, tmp_path, aliased=False)
    assert (true.copies, build(run, tmp_path).copies) == ((1, 1, 1), (3,))
    deviation = (true.score(images, ["part"] * 3).anomaly_map - run.out["anomaly_map"]).abs().max()
    assert deviation > 0.2 * (run.out["anomaly_map"].max() - run.out["anomaly_map"].min())


@torch.no_grad()
def test_the_image_is_no_word_in_scoring(run, tmp_path):
    images = run.out["images"]
    told = build(run, tmp_path, image_token_at_test=True).score(images, ["part"] * 3)
    assert (told.anomaly_map - run.out["anomaly_map"]).abs().max() > 0.3 * run.out["anomaly_map"].max()


@torch.no_grad()
def test_soft_mean_is_of_probabilities(run, tmp_path):
    images = run.out["images"]
    other = build(run, tmp_path, soft_mean=not run.meta["soft_mean"]).score(images, ["part"] * 3)
    assert (other.anomaly_map - run.out["anomaly_map"]).abs().max() > 1e-3


def test_three_attentions_are_added():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 5, 6)
    total = sum(local_attention(kind, q, k, v) for kind in ("qq", "kk", "vv"))
    torch.testing.assert_close(local_attention("qq+kk+vv", q, k, v), total)


def test_training_reads_nearest_or_bilinear(tiny):
    batch, found = random_batch(3), []
    for how in ("nearest", "bilinear"):
        torch.manual_seed(0)
        method = Crane(tiny, None, 64, training_upsampling=how).train()
        terms = method.loss(method.encode(batch["image"]), batch)
        found.append(terms)
    assert torch.equal(found[0]["image"], found[1]["image"])
    assert not torch.equal(found[0]["focal"], found[1]["focal"])


def test_an_image_without_a_mask_teaches_the_image_score_alone(tiny):
    method, batch = Crane(tiny, None, 64).train(), random_batch(3)
    features = method.encode(batch["image"])
    terms = method.loss(features, batch)
    batch["has_mask"][:] = False
    alone = method.loss(features, batch)
    assert torch.equal(alone["image"], terms["image"])
    assert alone["focal"].item() == alone["dice"].item() == 0
    torch.stack(list(alone.values())).sum().backward()


# -- two encoders ------------------------------------------------------------------------------------------------


def test_affinity_of_a_uniform_image_is_its_own():
    """Published: NaN, as no similarity exceeds the mean."""
    weights = affinity(F.normalize(torch.ones(2, 4, 3), dim=-1))
    assert torch.equal(weights, torch.eye(4).expand(2, 4, 4))


def test_affinity_leaves_out_what_is_not_alike():
    patches = F.normalize(torch.tensor([[[1.0, 0, 0], [1, 0.1, 0], [0, 1, 0], [0, 0, 1]]]), dim=-1)
    weights = affinity(patches)
    assert (weights[0, 0, :2] > 0).all()
    assert float(weights[0, 0, 2]) == 0
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, 4))


@torch.no_grad()
def test_values_meet_on_the_second_encoders_grid(tiny):
    """Patches of 16 and of 8 pixels at 64: four and eight a side."""
    method = CranePlus(tiny, None, image_size=64, **DINO).eval()
    assert [level.shape[1:3] for level in method.encode(random_batch(2)["image"]).levels] == [(8, 8), (8, 8)]
    laid = torch.arange(16.0).view(1, 16, 1)
    assert torch.equal(resize(laid, (4, 4), (4, 4)), laid)
    assert resize(laid, (4, 4), (2, 2)).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    with pytest.raises(BackboneError, match="no multiple of the patch size 14"):
        CranePlus(tiny, None, image_size=64, dino="timm:vit_small_patch14_dinov2.lvd142m", dino_pretrained="random")


def test_both_encoders_are_in_the_fingerprint_and_neither_is_in_a_checkpoint(tiny, tmp_path):
    method = CranePlus(tiny, None, image_size=64, **DINO)
    method.origin = "fit"
    save_run(method, tmp_path / "run")
    saved = read_checkpoint(tmp_path / "run")
    assert sorted(saved["state_dict"]) == ["deep_prompts.block_2", "words"]
    assert saved["vlad"]["fingerprint"] == method.backbone.fingerprint() != method.backbone.first.fingerprint()
    with pytest.raises(WeightsError, match="was trained on encoder"):  # the same CLIP, another second encoder
        CranePlus(tiny, None, image_size=64, weights=str(tmp_path / "run"), **RANDOM)
    again = CranePlus(tiny, None, image_size=64, weights=str(tmp_path / "run"), **DINO)
    assert torch.equal(again.words, method.words)
    with pytest.raises(WeightsError, match="was trained on encoder"):
        Crane(tiny, None, image_size=64, weights=str(tmp_path / "run"))


def test_a_pair_is_frozen_and_answers_as_the_first(tiny):
    first, second = load_encoder(tiny), load_encoder("vlad-tiny", text=False)
    pair = load_encoder(EncoderPair(first, second))
    assert not pair.train().training
    assert (pair.width, pair.depth, pair.grid(64, 64)) == (first.width, first.depth, (4, 4))
    images = random_batch(1)["image"]
    assert torch.equal(pair.encode(images, [2]).levels[0], first.encode(images, [2]).levels[0])


@pytest.mark.parametrize("check", [check.__name__ for check in CHECKS])
@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (Crane, {"layers": [2, 4], "aliased": False, "soft_mean": False, "image_token_at_test": True}),
        (CranePlus, {"layers": [2, 4], "aliased": False, "soft_mean": True, **DINO}),
    ],
)
def test_conforms(tiny, check, cls, options):
    dict(iter_checks(cls, backbone=tiny, pretrained=None, image_size=64, **options))[check]()


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (Crane, {"local_from": 5}, "local_from must be from 1 to 4"),
        (Crane, {"local_from": 3, "layers": [2, 4], "aliased": False}, "local_from must be from 1 to 2"),
        (CranePlus, {"local_from": 4, **DINO}, "layers of Crane\\+ lie above local_from 4"),
    ],
)
def test_settings_out_of_range(tiny, cls, options, message):
    with pytest.raises(MethodError, match=message):
        cls(tiny, None, image_size=64, **options)


# -- the authors' files ------------------------------------------------------------------------------------------


def saved(method):
    """Returns prompts as the published code saves them."""
    ids = method.text_tower.tokenize(method.sentences())
    embedded, learner = method.text_tower.embed(ids).detach(), {}
    for row, name in enumerate(("pos", "neg")):
        learner[f"ctx_{name}"] = torch.randn(1, 1, method.length, 32)
        learner[f"tokenized_prompts_{name}"] = ids[row].int()[None, None]
        learner[f"token_prefix_{name}"] = embedded[row, :1][None, None].clone()
        learner[f"token_suffix_{name}"] = embedded[row, 1 + method.length :][None, None].clone()
    return learner | {"compound_prompts_text.0": torch.randn(method.deep_length, 32)}


def test_a_released_file_is_read_key_for_key(tiny, tmp_path, recwarn):
    learner = saved(Crane(tiny, None, 64, length=5, deep_length=3))
    torch.save({"prompt_learner": learner}, tmp_path / "epoch_5.pth")
    method = Crane(tiny, None, 64, weights=str(tmp_path / "epoch_5.pth"))
    assert (method.length, method.depth, method.deep_length) == (5, 2, 3)
    assert torch.equal(method.words[1], learner["ctx_neg"][0, 0])
    assert torch.equal(method.deep_prompts["block_2"], learner["compound_prompts_text.0"])
    assert not [one for one in recwarn if "passed over" in str(one.message)]


@pytest.mark.parametrize("part", ["token_prefix_neg", "token_suffix_pos"])
def test_a_file_for_another_clip_is_refused(tiny, tmp_path, part):
    """It holds rows of the token embedding of the CLIP that it was trained on."""
    learner = saved(Crane(tiny, None, 64))
    learner[part] = learner[part] + 0.01
    torch.save({"prompt_learner": learner}, tmp_path / "epoch_5.pth")
    with pytest.raises(WeightsError, match="was trained on another CLIP"):
        Crane(tiny, None, 64, weights=str(tmp_path / "epoch_5.pth"))


def test_what_is_published_is_named_by_commit_and_content():
    names = {cls: set(cls.published_weights) for cls in (Crane, CranePlus)}
    assert names == {Crane: {"mvtec", "visa"}, CranePlus: {"mvtec", "visa", "mvtec_1", "visa_1"}}
    known = [one for cls in names for one in cls.published_weights.values()]
    assert all(isinstance(one, InRepository) and len(one.commit) == len(one.blob) == 40 for one in known)
    assert CranePlus.published_weights["visa_1"].file == "checkpoints/trained_on_visa_cranep/epoch_1.pth"
    assert Crane.published_weights["mvtec"].file == "checkpoints/trained_on_mvtec_crane/epoch_5.pth"


def test_they_are_found_by_name():
    assert {vlad.get_method("crane"), vlad.get_method("crane_plus")} == {Crane, CranePlus}

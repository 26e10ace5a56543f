"""CLIP-ADA's reconstruction: the prompt, what learns, the refinements, and every choice as a setting."""

import sys
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from tests_support import SMALL, save_run, write_picture

import vlad
from vlad.clip.regions import full_boxes
from vlad.datamodules import AnomalyDataModule
from vlad.errors import MethodError
from vlad.methods.clip_ada import CLIPADA
from vlad.methods.losses import Losses, balanced_bce_loss
from vlad.methods.refinement import Head, NoRefinement, Refinement, Zoom
from vlad.pseudo_anomalies import Random, Synthesizer
from vlad.testing import random_batch


def build(tiny, **options):
    method = CLIPADA(tiny, None, 64, **{**SMALL["clip_ada"], **options})
    method.allow_untrained = True
    return method


def loss(method, batch):
    batch = method.prepare(batch)
    return method.loss(method.encode_for_loss(batch["image"]), batch)


@pytest.fixture
def batch():
    batch = random_batch(2, 96)
    batch["mask"], batch["label"] = torch.zeros_like(batch["mask"]), torch.zeros_like(batch["label"])
    return batch


# -- the prompt ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("words", "suffix"), [("a photo of a damaged thing", ""), ("a photo of a", "damaged thing")])
def test_a_prompt_of_real_words_is_encoded_as_they_are(tiny, words, suffix):
    count = len(words.split())
    method = build(tiny, length=count, words=suffix)
    tower = method.text_tower
    with torch.no_grad():
        method.prompt[0] = tower.embed(tower.tokenize([words]))[0, 1 : 1 + count]
        expected = F.normalize(tower.encode([f"{words} {suffix}".strip()]), dim=-1)
        torch.testing.assert_close(method.encode_prompts(), expected)


def test_the_prompt_is_encoded_once_until_it_changes(tiny):
    method = build(tiny).eval()
    with torch.no_grad():
        first = method.encode_prompts()
        assert method.encode_prompts() is first
        method.prompt.add_(0.1)
        assert not torch.equal(method.encode_prompts(), first)
    assert method.encode_prompts().requires_grad


def test_class_names_change_nothing(tiny, batch):
    method = build(tiny).eval()
    with torch.no_grad():
        a, b = (method.score(batch["image"], names) for names in (["bottle"] * 2, ["nut", "cable"]))
    assert torch.equal(a.anomaly_map, b.anomaly_map)


def test_the_number_of_parameters(tiny):
    """As the specification counts them: a linear map per level, M vectors, scale and bias."""
    trained = sum(p.numel() for p in build(tiny, layers=None).parameters() if p.requires_grad)
    assert trained == 4 * (48 * 32 + 32) + 12 * 32 + 2
    assert sum(p.numel() for p in build(tiny, linear=False).parameters() if p.requires_grad) == 12 * 32 + 2
    assert sum(p.numel() for p in build(tiny, linear=False, normal_prompt=True).parameters() if p.requires_grad) == 769


# -- what learns --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"linear": False},
        {"normal_prompt": True},
        {"losses": Losses(region_view=0.0)},
        {"refinement": NoRefinement()},
        {"refinement": Head()},
        {"losses": Losses("balanced_bce")},
        {"losses": Losses("focal")},
        {"synthesis": Synthesizer("mixed", 0.5, keep_to_part=True, textures="images")},
        {"synthesis": Synthesizer("cutpaste"), "words": "anomaly", "layers": [2]},
    ],
)
def test_gradients_reach_what_is_meant_to_learn_and_nothing_else(tiny, batch, options):
    method = build(tiny, **options).train()
    frozen = {name: p.clone() for name, p in method.backbone.named_parameters()}
    optimizer = method.configure_optimizers()
    for _ in range(2):  # the decoder's inner layers begin to move at the second step
        optimizer.zero_grad()
        terms = loss(method, batch)
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step()
    learned = {name for name, p in method.named_parameters() if p.requires_grad}
    silent = [name for name in learned if not method.get_parameter(name).grad.abs().sum() > 0]
    assert not silent
    assert {name.split(".")[0] for name in learned} <= {"prompt", "log_scale", "bias", "maps", "refinement"}
    assert all(p.grad is None and torch.equal(p, frozen[name]) for name, p in method.backbone.named_parameters())
    assert ("region_dice" in terms) == (method.losses.region_view > 0)


def test_weight_decay_is_for_linear_maps_alone(tiny):
    decayed, others = build(tiny).configure_optimizers().param_groups
    assert decayed["weight_decay"] == 1e-5
    assert {p.ndim for p in decayed["params"]} == {2}
    assert others["weight_decay"] == 0


def test_the_same_seed_paints_the_same(tiny, batch):
    def painted(seed):
        return build(tiny).synthesize(batch["image"], random=Random(seed))

    a, b = painted(0), painted(0)
    assert torch.equal(a[0], b[0])
    assert a[1].any()
    assert not torch.equal(a[1], painted(1)[1])
    outside = ~a[1][:, None].expand_as(a[0])
    torch.testing.assert_close(a[0][outside], batch["image"].clamp(*limits(tiny))[outside], atol=1e-5, rtol=0)


def test_every_batch_is_painted_anew(tiny, mvtec):
    """Also where gradients are accumulated over several."""
    method, seen = build(tiny), []
    paint = method.synthesize
    method.synthesize = lambda *given: seen.append(paint(*given)) or seen[-1]
    data = AnomalyDataModule(root=str(mvtec), train="mvtec_ad", batch_size=2, num_workers=0)
    data.require(method.requirements)
    Trainer(
        max_epochs=2,
        accumulate_grad_batches=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    ).fit(method, data)
    assert len(seen) == 6
    assert len({masks.numpy().tobytes() for _, masks in seen}) == 6


def limits(tiny):
    """About the range of normalised images; noise beyond it is cut off before something is painted."""
    method = build(tiny)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (method.backbone.mean, method.backbone.std))
    return (0 - mean) / std, (1 - mean) / std


def test_regions_of_training_hold_an_anomalous_pixel(tiny):
    method = build(tiny, refinement=Zoom(min_side=0.4))
    mask = torch.zeros(64, 50, 50, dtype=torch.bool)
    mask[:, 40:44, 3:6] = True
    mask[32:] = False
    boxes = method.draw_boxes(mask, Random(0))
    side = boxes[:, 2] - boxes[:, 0]
    torch.testing.assert_close(side, boxes[:, 3] - boxes[:, 1])
    assert 0.4 <= float(side.min()) <= float(side.max()) <= 1
    assert -1e-6 <= float(boxes.min()) <= float(boxes.max()) <= 1 + 1e-6
    assert (boxes[:32, 0] <= 43.5 / 50).all()
    assert (boxes[:32, 2] >= 40.5 / 50).all()
    assert (boxes[:32, 1] <= 5.5 / 50).all()
    assert torch.equal(boxes, method.draw_boxes(mask, Random(0)))
    assert len(boxes[32:, :2].unique(dim=0)) > 16  # anywhere, where nothing is anomalous


def test_rate_falls_at_the_end(tiny, tmp_path):
    for i in range(4):
        write_picture(tmp_path / "train" / "good" / f"{i}.png", seed=i)
    data = AnomalyDataModule(train=str(tmp_path), batch_size=2, num_workers=0)
    method, rates = build(tiny), []
    data.require(method.requirements)
    method.on_train_batch_end = lambda *_: rates.append(method.optimizers().param_groups[0]["lr"])
    trainer = Trainer(
        max_epochs=10, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(method, data)
    assert len(rates) == 20
    assert rates[14] == pytest.approx(1e-3)
    assert rates[16] == pytest.approx(2e-4)
    assert rates[18] == pytest.approx(4e-5)


def test_balanced_loss_counts_the_hardest_normal_pixels():
    logits, target = torch.zeros(1, 10, 10), torch.zeros(1, 10, 10, dtype=torch.bool)
    target[0, 0, 0] = True
    logits[0, 5, :3] = 2.0
    hard, sure = F.softplus(torch.tensor(2.0)), F.softplus(torch.tensor(0.0))
    torch.testing.assert_close(balanced_bce_loss(logits, target), (3 * hard + sure) / 4)
    torch.testing.assert_close(balanced_bce_loss(logits, torch.zeros_like(target)), hard)
    assert balanced_bce_loss(logits, torch.ones_like(target)).isfinite()


# -- refinement ---------------------------------------------------------------------------------------------


def test_a_box_of_the_whole_image_leaves_the_map_unchanged(tiny, batch, monkeypatch):
    method = build(tiny).eval()
    boxes = full_boxes(2)
    monkeypatch.setattr("vlad.methods.refinement.find_regions", lambda *_, **__: (torch.arange(2), boxes))
    with torch.no_grad():
        prediction = method.score(batch["image"], ["a", "b"])
    torch.testing.assert_close(
        prediction.unsmoothed_map, prediction.stages["initial"].unsmoothed_map, atol=1e-6, rtol=0
    )
    torch.testing.assert_close(prediction.image_score, prediction.stages["initial"].image_score, atol=1e-6, rtol=0)


def test_zoom_changes_the_boxes_alone_and_merges_means():
    logits = torch.zeros(2, 40, 40)
    boxes = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.25, 0.25, 0.75, 0.75]])
    fine = torch.stack([torch.full((4, 4), 2.0), torch.full((4, 4), 4.0)])
    index = torch.tensor([1, 1])
    merged = Zoom(merge="mean").merge_in(logits, fine, index, boxes)
    assert not merged[0].any()
    assert merged[1, 5, 5] == 1  # half of 2
    assert merged[1, 15, 15] == 1.5  # half of the mean of both
    assert merged[1, 25, 25] == 2
    assert merged[1, 35, 35] == 0
    assert Zoom(merge="fine").merge_in(logits, fine, index, boxes)[1, 25, 25] == 4


def test_all_regions_of_a_batch_are_encoded_together(tiny, batch, monkeypatch):
    method = build(tiny).eval()
    calls = []
    encode = method._encode_views
    monkeypatch.setattr(method, "_encode_views", lambda views: calls.append(len(views)) or encode(views))
    with torch.no_grad():
        method.score(batch["image"], ["a", "b"])
    assert len(calls) == 2
    assert calls[0] == 2
    assert 2 <= calls[1] <= 6


def test_the_decoder_begins_as_the_identity(tiny, batch):
    method = build(tiny, refinement=Head()).eval()
    with torch.no_grad():
        prediction = method.score(batch["image"], ["a", "b"])
        assert torch.equal(prediction.unsmoothed_map, prediction.stages["initial"].unsmoothed_map)
        method.refinement.last.bias.add_(1.0)
        assert not torch.equal(method.score(batch["image"], ["a", "b"]).unsmoothed_map, prediction.unsmoothed_map)


def test_without_refinement_there_is_one_map(tiny, batch):
    with torch.no_grad():
        assert build(tiny, refinement=NoRefinement()).eval().score(batch["image"], ["a", "b"]).stages is None


def test_image_score_is_the_mean_of_the_highest_pixels(tiny, batch):
    with torch.no_grad():
        for top, count in ((0.0, 1), (0.01, 92), (1.0, 9216)):
            prediction = build(tiny, top=top).eval().score(batch["image"], ["a", "b"])
            expected = prediction.anomaly_map.flatten(1).sort(descending=True).values[:, :count].mean(1)
            torch.testing.assert_close(prediction.image_score, expected)


def test_bf16_is_near_float32(tiny, batch):
    method = build(tiny).eval()
    with torch.no_grad():
        plain = method.score(batch["image"], ["a", "b"])
        with torch.autocast("cpu", torch.bfloat16):
            half = method.score(batch["image"], ["a", "b"])
    assert half.anomaly_map.dtype == torch.float32
    torch.testing.assert_close(
        half.stages["initial"].anomaly_map, plain.stages["initial"].anomaly_map, atol=0.02, rtol=0
    )


# -- data and files -----------------------------------------------------------------------------------------


def test_only_normal_images_are_asked_for_and_trained_on(tiny, mvtec):
    method, data = build(tiny), AnomalyDataModule(root=str(mvtec), train="mvtec_ad", test="mvtec_ad", num_workers=0)
    assert method.requirements.supervision == "one-class"
    assert method.requirements.preprocess.size == method.full_size == 96
    data.require(method.requirements)
    Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False).fit(
        method, data
    )
    assert set(data.frames["train"]["split"]) == {"train"}
    assert set(data.frames["train"]["label"]) == {0}


def test_given_textures_are_what_is_painted(tiny, batch):
    method, red = build(tiny), torch.zeros(2, 3, 96, 96, dtype=torch.uint8)
    red[:, 0] = 255

    def prepared(batch):
        torch.manual_seed(0)
        return method.prepare(batch)["image"]

    given = {**batch, "texture": red}
    assert torch.equal(prepared(given), prepared(given))
    assert not torch.equal(prepared(given), prepared(batch))


@dataclass
class Shift(Refinement):
    """A refinement of a third party's: every logit is raised."""

    margin: float = 1.0

    def refine(self, logits, levels, images, look, module):
        """Returns higher maps."""
        return logits + self.margin


@pytest.mark.parametrize(
    "given", [Shift(2.0), {"class_path": f"{Shift.__module__}.Shift", "init_args": {"margin": 2.0}}]
)
def test_another_refinement_can_be_dropped_in(tiny, batch, given, monkeypatch):
    monkeypatch.setitem(sys.modules, Shift.__module__, sys.modules[__name__])
    method = build(tiny, refinement=given).eval()
    with torch.no_grad():
        prediction = method.score(batch["image"], ["a", "b"])
    expected = (prediction.stages["initial"].unsmoothed_map.logit() + 2).sigmoid()
    torch.testing.assert_close(prediction.unsmoothed_map, expected, atol=1e-4, rtol=0)
    assert method.hparams["refinement"]["init_args"] == {"margin": 2.0}


def test_a_checkpoint_comes_back(tiny, tmp_path, batch):
    method = build(tiny, layers=[1, 3], length=7, words="anomaly", refinement=Head(), losses=Losses("focal")).eval()
    with torch.no_grad():
        method.refinement.last.bias.add_(0.5)
    method.origin = "fit"
    run = save_run(method, tmp_path / "run")
    restored = vlad.load(run).method
    assert isinstance(restored.how, Head)
    assert restored.losses == Losses("focal")
    with torch.no_grad():
        a, b = (m.score(batch["image"], ["a", "b"]) for m in (method, restored))
    assert torch.equal(a.anomaly_map, b.anomaly_map)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"full_size": 32}, "full_size must be at least image_size"),
        ({"length": 0}, "length must be from 1 to 75, got 0"),
        ({"length": 75, "words": "anomaly"}, "length must be from 1 to 74"),
        ({"top": 1.5}, "top is a share: between 0 and 1"),
        ({"refinement": {"class_path": "Zoom", "init_args": {"min_side": 0.0}}}, "threshold and min_side are shares"),
        ({"refinement": {"class_path": "Zoom", "init_args": {"threshold": 1.5}}}, "threshold and min_side are shares"),
        ({"refinement": {"class_path": "Zom"}}, "there is no refinement Zom"),
        ({"refinement": {"class_path": "Zoom", "init_args": {"cuont": 2}}}, "Zoom has no argument 'cuont'.*count"),
        ({"synthesis": {"recipe": "perlim"}}, "no recipe is named 'perlim'; did you mean perlin"),
        ({"losses": {"pixel": "bcee"}}, "no pixel loss is named 'bcee'; did you mean bce"),
        ({"layers": [9]}, "layers must be different block numbers from 1 to 4"),
    ],
)
def test_settings_out_of_range(tiny, options, message):
    with pytest.raises(MethodError, match=message):
        build(tiny, **options)

"""Bayes-PFL against tensors of its published code, its traps, its two stages and its files."""

import pytest
import torch
from safetensors.torch import load_file
from tests_support import DATA, Golden, golden, save_run

import vlad
from vlad.clip.similarity import upsample, zero_to_one
from vlad.errors import MethodError, WeightsError
from vlad.methods.bayes_pfl import BayesPFL
from vlad.testing import check_method, random_batch
from vlad.types import take_rows

FOLDER = DATA / "bayes_pfl"
FILE = str(FOLDER / "train_visa.pth")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Golden:
    """The published run: seven blocks, four layers, three prompts, three samples, four flows."""
    return golden(FOLDER, tmp_path_factory.mktemp("bayes_pfl"))


@pytest.fixture(scope="module")
def train() -> dict[str, torch.Tensor]:
    return load_file(FOLDER / "train.safetensors")


def build(run, **options):
    config = run.meta["config"]
    settings = {"layers": config["features_list"], "samples": config["sample_num"], "weights": FILE}
    return BayesPFL(run.backbone, None, run.meta["image_size"], **{**settings, "top_pixels": 2000, **options}).eval()


def noise_of(run, number):
    """Returns the numbers that the published code drew: contexts anew for each image, states at the first alone."""
    kinds = (number, "context"), (0, "normal"), (0, "abnormal")
    return torch.stack([run.out[f"stage2/img{n}/eps/{kind}"] for n, kind in kinds])


@torch.no_grad()
def test_pieces(run):
    method, images = build(run), run.out["in/images"]
    settings = (method.hparams[key] for key in ("prompts", "context_length", "state_length", "flows"))
    assert list(settings) == [3, 5, 5, 4]
    features = method.encode(images)
    run.check("image_feature", features.image)
    run.check("fuse", method.fuse(features.levels))
    mean, variance = method.context_encoder(features.image)
    run.check("context/mu", mean)
    run.check("context/var_named", variance)
    mean, variance = method.state_encoder(method.normal_flow.state[None])
    run.check("normal/mu", mean)
    run.check("normal/var_named", variance)
    for n in range(3):
        one = take_rows(features, slice(n, n + 1))
        text = method.texts([run.meta["class_of_image"][n]])
        normal, abnormal = method.sentences(text, method.draw(one.image, noise_of(run, n).unbind(0)))
        run.check(f"stage2/img{n}/text", torch.cat([normal, abnormal], 1))
        for stage in (1, 2):
            logits = run.out[f"stage{stage}/img{n}/image_logits"][0, :, 0]
            run.out[f"stage{stage}/img{n}/margins"] = logits[9:] - logits[:9]
            margins = method.image_margins(one, normal, abnormal, enriched=stage == 2)
            run.check(f"stage{stage}/img{n}/margins", margins)
        if n == 0:
            patches, looked = method.look(torch.cat([normal, abnormal], 1), one.levels)[0]
            run.check("stage2/img0/rca_patch_0", patches)
            run.check("stage2/img0/rca_text_0", looked)
            margins = method.margins(one, normal, abnormal)
            for level in range(4):
                logits = run.out[f"stage2/img0/map_logits_{level}"]
                run.out[f"margin_{level}"] = logits[:, 1] - logits[:, 0]
                run.check(f"margin_{level}", upsample(margins[:, level, 0], 48, align_corners=True))


def test_sentences_are_those_published(run):
    method, tower = build(run), build(run).text_tower
    names = run.meta["class_of_image"] + run.meta["class_of_train_image"]
    for name, sentence in zip(names, run.meta["sentences"], strict=True):
        ids = tower.tokenize([sentence])
        text = method.class_text(name)
        assert int(text.end) == int(tower.ends(ids))
        assert torch.equal(text.words, tower.embed(ids[0, : len(text.words)]))


@pytest.mark.parametrize("stage", [1, 2])
@torch.no_grad()
def test_outputs(run, stage):
    """Image by image, with the numbers that were drawn for it."""
    method, found = build(run, enriched=stage == 2, as_published=True), []
    for n, name in enumerate(run.meta["class_of_image"]):
        method.noise.copy_(noise_of(run, n))
        found.append(method.score(run.out["in/images"][n : n + 1], [name]))
    run.check(f"stage{stage}/map", torch.cat([one.unsmoothed_map for one in found]))
    if stage == 2:
        run.check("stage2/map_smooth", torch.cat([one.anomaly_map for one in found]))
    parts = torch.cat([one.score_components for one in found])
    run.check(f"stage{stage}/score_text", 2 * parts[:, 0])
    predictions = found[0]._replace(score_components=parts)
    run.check(f"stage{stage}/score_fused", method.score_set(None, predictions, (48, 48)).image_score)
    torch.testing.assert_close(torch.cat([one.image_score for one in found]), parts.sum(1))


def step(run, train, method, stage):
    """Runs one published training step and checks losses, gradients and parameters."""
    prefix = f"stage{stage}/"
    batch = {"image": train["in/train_images"], "mask": train["in/train_masks"][:, 0] > 0.5}
    batch |= {"label": train["in/train_labels"], "class_name": run.meta["class_of_train_image"]}
    eps = {kind: train[f"{prefix}eps/{kind}"] for kind in ("context", "normal", "abnormal")}
    assert method.trains_prompts == (stage == 1)
    optimizer = method.configure_optimizers()
    noise = [eps["context"][:, None], eps["normal"], eps["abnormal"]]
    pair = run.meta["losses"][f"stage{stage}"]["prompt_index"]
    terms = method.losses(method.encode_for_loss(batch["image"]), batch, noise, pair)
    run.out.update({key: value for key, value in train.items() if key.startswith(f"{prefix}loss/")})
    loss = {key.removeprefix(f"{prefix}loss/"): value for key, value in train.items() if key.startswith(prefix)}
    expected = {"image": loss["class"]}
    if stage == 1:
        expected |= {kind: sum(loss[f"{kind}_{n}"] for n in range(4)) for kind in ("focal", "dice")}
        expected["orthogonal"] = loss["orthogonal"]
        expected["divergence"] = sum(loss[f"kl_{kind}"] for kind in eps)
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        run.out[f"{prefix}{name}"] = value
        run.check(f"{prefix}{name}", terms[name])
    torch.stack(list(terms.values())).sum().backward()
    gradients = named(train, f"{prefix}grad/")
    for name, gradient in gradients.items():
        run.out[f"{prefix}grad/{name}"] = gradient
        if name != "fuse.weigh.bias":  # rounding: a softmax does not see it
            run.check(f"{prefix}grad/{name}", method.get_parameter(name).grad)
    assert all((p.grad is not None) == (name in gradients) for name, p in method.named_parameters() if p.requires_grad)
    for group in optimizer.param_groups if stage == 2 else ():
        group["lr"] = 1e-4
    optimizer.step()
    for name, after in named(train, f"{prefix}after/").items():
        if name != "fuse.weigh.bias":
            # Adam's first step is the gradient's sign: where that is as good as zero, it may differ.
            off = (method.get_parameter(name).detach() - after).abs() > 1e-5
            assert off.float().mean() < 0.02, name


def named(train, prefix):
    """Returns tensors of the published training step under our names."""
    found = {key.removeprefix(prefix): value for key, value in train.items() if key.startswith(prefix)}
    return BayesPFL.published_state(None, {"MyModel": found})


def test_the_first_stage(run, train):
    step(run, train, build(run).train(), 1)


def test_the_second_stage(run, train):
    step(run, train, build(run, prompt_epochs=0).train(), 2)


# -- traps -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_scores_are_no_random_draws(tiny):
    """The numbers belong to a seed: another method of it scores the same, one of another seed does not."""
    batch, maps = random_batch(2), []
    for seed in (333, 333, 7):
        torch.manual_seed(0)
        method = build_tiny(tiny, noise_seed=seed)
        torch.manual_seed(seed)
        maps.append(method.score(batch["image"], batch["class_name"]).anomaly_map)
    assert torch.equal(maps[0], maps[1])
    assert not torch.equal(maps[0], maps[2])
    assert "noise" not in method.state_dict()


def test_what_is_called_variance_is_one(run):
    """exp(half the output) is taken for a variance: a sample is mean + number · its root."""
    method = build(run)
    x, eps = torch.randn(1, 32), torch.randn(4, 32)
    flow = method.normal_flow
    with torch.no_grad():
        flow.u.zero_()
        mean, variance = method.state_encoder(flow.state[None])
        sample = flow(method.state_encoder, eps)
    torch.testing.assert_close(variance, (method.state_encoder.log_variance(flow.state[None]) / 2).exp())
    torch.testing.assert_close(sample.z, mean + eps * variance.sqrt())
    assert x.shape == mean.shape


def test_volumes_of_the_states_are_divided_by_the_batch(tiny):
    method, batch = build_tiny(tiny).train(), random_batch(4)
    features = method.encode_for_loss(batch["image"])
    like = features.image
    noise = [torch.zeros_like(like)[:, None], torch.zeros_like(like[:1]), torch.zeros_like(like[:1])]
    draw = method.draw(like, noise)
    expected = sum(one.divergence.mean() for one in draw) - sum(one.log_det.sum() for one in draw) / 4
    torch.testing.assert_close(method.losses(features, batch, noise, 0)["divergence"], 0.01 * expected)


def test_the_learning_rate_warms_up_from_zero():
    rates = [BayesPFL.rate(step, 100) for step in range(100)]
    assert rates[0] == 0
    assert rates[5] == pytest.approx(0.5)
    assert rates[10] == 1
    assert rates[55] == pytest.approx(0.5)
    assert rates[99] < 1e-3


# -- on a tiny CLIP --------------------------------------------------------------------------------------------


def build_tiny(tiny, **options):
    method = BayesPFL(tiny, None, 64, **{"layers": [2, 4], "samples": 2, "flows": 3, **options}).eval()
    method.allow_untrained = True
    return method


def test_conformance(tiny):
    options = {"layers": [1, 3], "samples": 2, "flows": 1, "prompts": 1, "prompt_epochs": 0, "domain": "medical"}
    check_method(BayesPFL, backbone=tiny, pretrained=None, image_size=64, **options)


@torch.no_grad()
def test_classes_of_other_lengths_do_not_change_each_other(tiny):
    method, images = build_tiny(tiny), random_batch(2)["image"]
    names = ["bottle", "some thing with a much longer name"]
    together = method.score(images, names).image_score
    alone = torch.cat([method.score(images[n : n + 1], names[n : n + 1]).image_score for n in range(2)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-6)
    assert method.score(images, ["x " * 90] * 2).image_score.isfinite().all()


@torch.no_grad()
def test_the_top_of_the_map_enters_the_score(tiny):
    method, batch = build_tiny(tiny, top_pixels=10, as_published=True), random_batch(3)
    prediction = method.score(batch["image"], batch["class_name"])
    top = prediction.unsmoothed_map.flatten(1).sort(descending=True).values[:, :10].mean(1)
    torch.testing.assert_close(prediction.score_components[:, 1], top / 2)
    fused = method.score_set(None, prediction, (64, 64)).image_score
    torch.testing.assert_close(fused, zero_to_one(prediction.score_components).mean(1))
    assert build_tiny(tiny).top_pixels == 31
    assert method.tags.transductive == "scores"


def test_an_image_without_a_mask_teaches_no_map(tiny):
    method, batch = build_tiny(tiny).train(), random_batch(4)
    batch["has_mask"][:] = False
    terms = method.loss(method.encode_for_loss(batch["image"]), batch)
    assert float(terms["focal"].detach()) == float(terms["dice"].detach()) == 0
    torch.stack(list(terms.values())).sum().backward()


def test_settings_out_of_range(tiny):
    with pytest.raises(MethodError, match="must be at least 1"):
        BayesPFL(tiny, None, 64, layers=[2], flows=0)


# -- files -----------------------------------------------------------------------------------------------------


def test_a_published_file_and_our_own_are_the_same_method(run, tmp_path):
    method = build(run)
    model = torch.load(FILE, weights_only=True)["MyModel"]
    assert torch.equal(method.look.project[3].weight, model["RCA.linear_proj.3.weight"])
    assert torch.equal(method.abnormal_flow.w, model["PFL_abnormal.amor_w"][0, :, 0])
    again = vlad.load(save_run(method, tmp_path / "run")).method
    assert again.hparams["flows"] == 4
    assert torch.equal(again.noise, method.noise)
    torch.testing.assert_close(again.fuse.out.bias, method.fuse.out.bias)


def test_files_that_do_not_fit(run, tmp_path):
    model = torch.load(FILE, weights_only=True)["MyModel"]
    key = "PFL_normal.encoder.weight_mean.module.0.bias"
    torch.save({"MyModel": {**model, key: model[key] + 1}}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"holds state_encoder\.weight_mean\.module\.0\.bias twice"):
        build(run, weights=str(tmp_path / "other.pth"))
    torch.save({"MyModel": {"prompt_context": model["prompt_context"]}}, tmp_path / "part.pth")
    with pytest.raises(WeightsError, match="does not fit BayesPFL"):
        build(run, weights=str(tmp_path / "part.pth"))
    torch.save({"MyModel": model}, tmp_path / "epoch_post_7_1.pth")
    with pytest.warns(UserWarning, match=r"epoch_post_7_1\.pth is of the first stage"):
        build(run, weights=str(tmp_path / "epoch_post_7_1.pth"))

"""FAPrompt against tensors of its published code, its traps, and its files."""

import pytest
import torch
from safetensors.torch import load_file
from tests_support import DATA, Golden, golden, save_run

import vlad
from vlad.clip.similarity import normalize, upsample
from vlad.errors import MethodError, WeightsError
from vlad.methods.faprompt import FAPrompt
from vlad.testing import check_method, random_batch

FOLDER = DATA / "faprompt"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Golden:
    """The published run: seven blocks, the local path from the fourth, positions resized from 6 x 6 to 8 x 8."""
    return golden(FOLDER, tmp_path_factory.mktemp("faprompt"))


@pytest.fixture(scope="module")
def train() -> dict[str, torch.Tensor]:
    return load_file(FOLDER / "train.safetensors")


def released(tensors):
    """Returns a file in the published format, with the projections that nothing uses."""
    dead = {"compound_prompt_projections.0.weight": torch.zeros(896, 64)}
    return {"prompt_learner": {**dead, **tensors}}


def build(run, tmp_path, **options):
    torch.save(released(run.method), tmp_path / "epoch_7.pth")
    config = run.meta["config"]
    settings = {"local_from": config["first_dual_block"], "sigma": config["sigma"]}
    settings["weights"] = str(tmp_path / "epoch_7.pth")
    return FAPrompt(run.backbone, None, config["image_size"], **{**settings, **options}).eval()


@torch.no_grad()
def test_text(run, tmp_path):
    method, config = build(run, tmp_path), run.meta["config"]
    assert (method.normal_length, method.abnormal_length) == (config["n_ctx_normal"], config["n_ctx_abnormal"])
    assert (method.abnormal_prompts, method.prior_patches) == (config["n_abnormal_prompts"], config["selected_tokens"])
    assert (method.depth, method.deep_length) == (config["depth"], config["t_n_ctx"])
    ids = method.text_tower.tokenize(method.sentences())
    assert method.text_tower.ends(ids).tolist() == list(method._ends())
    text = method.class_text("")
    run.check("img0.text.base.abnormal_raw", text.abnormal)
    for name, row in (("base.normal", 0), ("base.abnormal", 1)):
        mean = run.out[f"img0.text.{name}_raw"].mean(0)
        run.out[f"img0.text.{name}"] = normalize(mean)
        run.check(f"img0.text.{name}", text.vectors[row])


@torch.no_grad()
def test_outputs(run, tmp_path):
    method, images = build(run, tmp_path), run.out["images"]
    features, text = method.encode(images), method.texts(["SDD"] * 3)
    run.out["img0.patches"] = run.out["img0.patch_features_raw"][:, 1:]
    run.check("img0.patches", features.levels[0][:1])
    scores, prior = method._passes(features, text)
    for n in range(3):
        run.check(f"img{n}.class_feature_raw", features.image[n])
        run.check(f"img{n}.bias", prior[n])
    run.out["img0.text.image0.abnormal"] = normalize(run.out["img0.text.image0.abnormal_raw"].mean(0))
    run.check("img0.text.image0.abnormal", method.image_vectors(text, prior)[0])
    for place, number in ((0, 1), (1, 2)):
        abnormal = scores.patches[:1, place].sigmoid()
        run.out[f"img0.probability{number}"] = run.out[f"img0.similarity{number}"][:, 1:, 1]
        run.check(f"img0.probability{number}", abnormal)
        up = upsample(abnormal, 64, align_corners=False)
        run.check(f"img0.map_up{number}", torch.stack([1 - up, up], 1))
    prediction = method.finish(method.compare(features, text), images.shape[-2:])
    run.check("anomaly_map", prediction.anomaly_map)
    run.check("image_score", prediction.image_score)
    patches = normalize(features.levels[0].flatten(1, 2))
    assert (patches[0, :10] - run.out["img0.selected_tokens"]).abs().max() < 1e-5, "the first ten, of the top row"


def test_a_training_step(run, train, tmp_path):
    method = build(run, tmp_path).train()
    optimizer = method.configure_optimizers()
    batch = {"image": train["images"], "mask": train["gt"] > 0, "label": train["labels"].long()}
    batch["class_name"] = ["SDD"] * 3
    features = method.encode_for_loss(batch["image"])
    scores, _ = method._passes(features, method.texts(batch["class_name"]))
    run.out.update({f"train.{name}": value for name, value in train.items()})
    run.out["train.margin"] = train["logits"][:, 1] - train["logits"][:, 0]
    run.check("train.margin", scores.image)
    run.check("train.score2", method.components_of(scores, scores.patches).sum(1))
    terms = method.loss(features, batch)
    loss = {name.removeprefix("loss."): value for name, value in train.items()}
    expected = {
        "focal": loss["focal"] + 0.5 * loss["focal#1"],
        "dice": loss["dice"] + 0.5 * loss["dice#2"],
        "dice_normal": loss["dice#1"] + 0.5 * loss["dice#3"],
        "image": loss["image_ce"],
        "score": loss["binary_focal"],
        "prior": loss["bias_mse"] + loss["bias_mse#1"],
        "total": loss["total"],
    }
    expected["orthogonal"] = loss["total"] - sum(expected[name] for name in terms if name != "orthogonal")
    assert float(expected["orthogonal"]) == pytest.approx(4.0988, abs=1e-4)
    terms["total"] = torch.stack(list(terms.values())).sum()
    for name, value in terms.items():
        run.out[f"train.loss.{name}"] = expected[name]
        run.check(f"train.loss.{name}", value)
    terms["total"].backward()
    for name, gradient in named(method, train, "grad").items():
        run.out[f"train.grad.{name}"] = gradient
        # Gradients of deep prompts are rounded to half precision, sentence by sentence.
        run.check(f"train.grad.{name}", method.get_parameter(name).grad, 1e-3 if "deep" in name else 1e-4)
    optimizer.step()
    for name, after in named(method, train, "after").items():
        # Adam's first step is the gradient's sign: where that is as good as zero, it may differ.
        off = (method.get_parameter(name).detach() - after).abs() > 1e-4
        assert off.float().mean() < 0.01, name


def named(method, train, what):
    """Returns tensors of the published training step under our names."""
    learner = {key.removeprefix(f"{what}."): value for key, value in train.items() if key.startswith(f"{what}.")}
    return method.published_state({"prompt_learner": learner})


# -- traps -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_most_anomalous_patches_are_another_method(run, tmp_path):
    """By the size that was measured on the published code: 1.8 % of the score's range, 3.3 % of the map's."""
    images = run.out["images"]
    method = build(run, tmp_path, prior="most_anomalous")
    prediction = method.score(images, ["SDD"] * 3)
    assert 5e-3 < (prediction.image_score - run.out["image_score"]).abs().max() < 5e-2
    assert (prediction.anomaly_map - run.out["anomaly_map"]).abs().max() > 1e-3
    patches = normalize(torch.randn(2, 8, 8, 64))
    margin = patches[..., 0]
    chosen = margin.flatten(1).argsort(descending=True)[:, :10]
    some = torch.stack([one.flatten(0, 1)[rows] for one, rows in zip(patches, chosen, strict=True)])
    torch.testing.assert_close(method.image_prior(patches, margin), method.meta_net(some.flatten(1)))


@torch.no_grad()
def test_half_precision_of_the_deep_prompts_shows(run, tmp_path):
    images = run.out["images"]
    exact = build(run, tmp_path, half_prompts=False).score(images, ["SDD"] * 3).anomaly_map
    assert (exact - run.out["anomaly_map"]).abs().max() > 2e-6


@torch.no_grad()
def test_the_normal_vector_does_not_depend_on_the_image(tiny):
    method = build_tiny(tiny)
    text = method.texts(["a", "b"])
    assert torch.equal(text.vectors[0], text.vectors[1])
    assert torch.equal(text.words[0], text.words[1])
    moved = method.image_vectors(text, torch.zeros(2, 32))
    torch.testing.assert_close(moved, text.vectors[:, 1])


def test_a_last_batch_of_one_image_trains(tiny):
    method, batch = build_tiny(tiny).train(), random_batch(1)
    terms = method.loss(method.encode_for_loss(batch["image"]), batch)
    torch.stack(list(terms.values())).sum().backward()


# -- on a tiny CLIP --------------------------------------------------------------------------------------------


def build_tiny(tiny, **options):
    method = FAPrompt(tiny, None, 64, **options).eval()
    method.allow_untrained = True
    return method


def test_conformance(tiny):
    options = {"prior": "most_anomalous", "prior_patches": 3, "abnormal_prompts": 2, "local_from": 2}
    check_method(FAPrompt, backbone=tiny, pretrained=None, image_size=64, **options)


@torch.no_grad()
def test_the_image_score_is_of_what_is_inspected(tiny):
    method = build_tiny(tiny)
    scores = method.compare(method.encode(random_batch(1)["image"]), method.texts(["a"]))
    patches = torch.full_like(scores.patches, -3)
    patches[:, :, 0, 0] = 3
    roi = torch.zeros(1, 64, 64, dtype=torch.bool)
    roi[:, 20:, 20:] = True
    everywhere = method.finish(scores._replace(patches=patches), (64, 64)).score_components[0]
    inside = method.finish(scores._replace(patches=patches, roi=roi), (64, 64)).score_components[0]
    high, low = torch.tensor(3.0).sigmoid(), torch.tensor(-3.0).sigmoid()
    torch.testing.assert_close(everywhere[1:], torch.stack([high / 3, high / 6]))
    torch.testing.assert_close(inside[1:], torch.stack([low / 3, low / 6]))


def test_an_image_without_a_mask_teaches_no_map(tiny):
    method, batch = build_tiny(tiny).train(), random_batch(4)
    features = method.encode_for_loss(batch["image"])
    whole = method.loss(features, batch)
    batch["has_mask"][:] = False
    alone = method.loss(features, batch)
    assert float(alone["focal"].detach()) == float(alone["dice"].detach()) == 0
    for name in ("image", "score", "prior", "orthogonal"):
        assert torch.equal(alone[name], whole[name])
    torch.stack(list(alone.values())).sum().backward()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 3}, "depth must be from 1 to 2"),
        ({"local_from": 5}, "local_from must be from 1 to 4"),
        ({"normal_length": 3, "deep_length": 4}, "deep_length must be from 1 to normal_length, which is 3"),
        ({"normal_length": 71}, "both lengths together at most 72"),
        ({"prior_patches": 17}, "from 1 to the 16 patches of an image of 64 pixels"),
    ],
)
def test_settings_out_of_range(tiny, options, message):
    with pytest.raises(MethodError, match=message):
        FAPrompt(tiny, None, 64, **options)


# -- files -----------------------------------------------------------------------------------------------------


def test_a_published_file_and_our_own_are_the_same_method(run, tmp_path):
    method = build(run, tmp_path)
    assert torch.equal(method.abnormal_words, run.method["ctx_neg"][0])
    again = vlad.load(save_run(method, tmp_path / "run")).method
    assert again.hparams["normal_length"] == 5
    assert torch.equal(again.meta_net[2].bias, method.meta_net[2].bias)


def test_files_that_do_not_fit_are_refused(run, tmp_path):
    def refused(message, **changed):
        torch.save(released({**run.method, **changed}), tmp_path / "wrong.pth")
        with pytest.raises(WeightsError, match=message):
            build(run, tmp_path, weights=str(tmp_path / "wrong.pth"))

    suffix = run.method["token_suffix_neg"].clone()
    suffix[0, 0, 0] += 1
    refused("trained on another CLIP: its embedding of the words differs", token_suffix_neg=suffix)
    tokens = run.method["tokenized_prompts_neg"].clone()
    tokens[0, 3, 8] = 15000
    refused(r"with other sentences: its tokens \(neg\)", tokenized_prompts_neg=tokens)
    refused(r"holds NaN or infinity in normal_words", ctx_pos=run.method["ctx_pos"] * torch.nan)
    torch.save(released({"ctx_pos": run.method["ctx_pos"]}), tmp_path / "part.pth")
    with pytest.raises(WeightsError, match="neither a vlad checkpoint nor in the published format of FAPrompt"):
        build(run, tmp_path, weights=str(tmp_path / "part.pth"))

"""AA-CLIP against tensors of its published code, its traps, its two stages and its two files."""

import shutil

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from safetensors.torch import load_file
from tests_support import DATA, Golden, golden, save_run
from torch.utils.data import DataLoader

import vlad
from vlad.clip.attention import project_out, project_qkv
from vlad.clip.similarity import normalize
from vlad.errors import MethodError, WeightsError
from vlad.methods.aa_clip import AACLIP, blur
from vlad.testing import check_method, random_batch

FOLDER = DATA / "aa_clip"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Golden:
    """The published run: eight blocks, adapters after two and three blocks, a grid of 5 x 5."""
    return golden(FOLDER, tmp_path_factory.mktemp("aa_clip"))


@pytest.fixture(scope="module")
def train() -> dict[str, torch.Tensor]:
    return load_file(FOLDER / "train.safetensors")


def build(run, **options):
    config = run.meta["config"]
    settings = {"layers": config["levels"], "weights": str(FOLDER)}
    settings["local_from"] = 8 - config["surgery_until_layer"] + 2
    return AACLIP(run.backbone, None, run.meta["image_size"], **{**settings, **options}).eval()


@torch.no_grad()
def test_text(run):
    method = build(run)
    assert (len(method.text_adapters), len(method.image_adapters), method.relu) == (2, 3, False)
    for name in ("bottle", "metal_nut", "pill", "candle", "pcb2"):
        run.check(f"text/{name}", method.class_text(name).T)
    assert torch.equal(method.class_text("metal nut"), method.class_text("metal_nut"))
    own = build(run, names="own")
    assert torch.equal(own.class_text("dark bottle"), method.class_text("bottle"))
    assert (own.class_text("dark bottle") - own.class_text("bottle")).abs().max() > 1e-3


@torch.no_grad()
def test_outputs(run):
    method, images = build(run), run.out["in/images"]
    features, text = method.encode(images), method.texts(run.meta["class_of_image"])
    scores = method.compare(features, text)
    run.check("score_det", scores.image)
    for level in range(4):
        run.check(f"tok/tap_ln_{level}", features.levels[level])
        run.check(f"seg_{level}", method._project(method.heads[level], features.levels[level]))
        one = scores._replace(patches=scores.patches[:, level : level + 1])
        run.check(f"map_level_{level}", method.map_of(one, images.shape[-2:]))
    run.check("det", method._project(method.image_head, features.levels[-1]).flatten(1, 2).mean(1))
    prediction = method.finish(scores, images.shape[-2:])
    run.check("map", prediction.anomaly_map)
    other = build(run, domain="medical")
    run.check("map_other_domain", other.finish(scores, images.shape[-2:]).anomaly_map[:1])


@pytest.mark.parametrize("domain", ["industrial", "medical"])
@torch.no_grad()
def test_the_published_evaluation(run, domain):
    method, images = build(run, as_published=True, domain=domain), run.out["in/images"]
    assert method.tags.transductive == "scores"
    prediction = method.score(images, run.meta["class_of_image"])
    if domain == "industrial":  # the golden's evaluation takes the same maps for both
        run.check("score_fused_Industrial", method.score_set(None, prediction, (40, 40)).image_score)
    else:
        maps = build(run).score(images, run.meta["class_of_image"]).anomaly_map
        parts = method.components_of(method.compare(method.encode(images), method.texts(["a"] * 3)), maps)
        fused = method.score_set(None, prediction._replace(score_components=parts), (40, 40)).image_score
        run.check("score_fused_Medical", fused)


def step(run, train, method, stage):
    """Runs one published training step; checks losses, gradients and parameters."""
    batch = {"image": train["in/train_images"], "mask": train["in/train_masks"][:, 0] > 0.5}
    batch |= {"label": train["in/train_labels"], "class_name": run.meta["class_of_train_image"]}
    optimizer = method.configure_optimizers()
    assert method.side == stage
    features = method.encode_for_loss(batch["image"])
    terms = method.loss(features, batch)
    run.out.update({key: value for key, value in train.items() if key.startswith(f"{stage}_stage/")})
    used = (3,) if stage == "text" else range(4)
    for ours, theirs in (("focal", "focal"), ("dice", "dice_abnormal"), ("dice_normal", "dice_normal")):
        run.out[f"{stage}_stage/{ours}"] = sum(train[f"{stage}_stage/{theirs}_{n}"] for n in used)
        run.check(f"{stage}_stage/{ours}", terms[ours])
    total = torch.stack(list(terms.values())).sum()
    run.check(f"{stage}_stage/loss", total)
    total.backward()
    for name, gradient in named(method, train, f"{stage}_stage/grad/").items():
        run.out[f"{stage}_stage/grad/{name}"] = gradient
        run.check(f"{stage}_stage/grad/{name}", method.get_parameter(name).grad)
    trained = named(method, train, f"{stage}_stage/grad/")
    assert all((p.grad is not None) == (name in trained) for name, p in method.named_parameters() if p.requires_grad)
    optimizer.step()
    for name, after in named(method, train, f"{stage}_stage/after/").items():
        # Adam's first step is the gradient's sign: where that is as good as zero, it may differ.
        off = (method.get_parameter(name).detach() - after).abs() > 0.02 * (1e-5 if stage == "text" else 5e-4)
        assert off.float().mean() < 0.01, name
    return features


def named(method, train, prefix):
    """Returns tensors of the published training step under our names; a step has one of the two sides."""
    parts = {"text_adapter": {"0.fc.0.weight": torch.zeros(1)}, "image_adapter": {}}
    sides = {"text": {}, "image": {}}
    for key, value in train.items():
        if key.startswith(prefix):
            part, _, rest = key.removeprefix(prefix).partition(".")
            sides[part.partition("_")[0]][rest] = value
    given = "text" if sides["text"] else "image"
    parts[f"{given}_adapter"] = sides[given]
    return {
        name: value for name, value in method.published_state(parts).items() if ("text" in name) == (given == "text")
    }


def test_the_text_stage(run, train):
    method = build(run).train()
    features = step(run, train, method, "text")
    run.check("text_stage/feature_3", features.levels[0])


def test_the_image_stage(run, train):
    """From where the text stage ended."""
    method = build(run, text_epochs=0).train()
    state = named(method, train, "text_stage/after/")
    method.load_state_dict({**method.state_dict(), **state})
    step(run, train, method, "image")


@torch.no_grad()
def test_attention_across_the_batch(run, train):
    """Alone, an image's value-value attention is its values; in a batch, features depend on the others."""
    method, images = build(run), train["in/train_images"]
    run.out.update({key: value for key, value in train.items() if "surgery" in key})
    tower = method.backbone.image

    def tap(images, method=method):
        return tower.run(tower.embed(images), layers=[8], attention=method._local_values).hidden_states[8]

    run.check("text_stage/surgery_batch", tap(images))
    for n in range(3):
        run.check(f"text_stage/surgery_alone_{n}", tap(images[n : n + 1]))
    assert (tap(images)[:1] - tap(images[:1])).abs().max() > 0.5
    own = build(run, local_attention="patches")
    torch.testing.assert_close(tap(images, own)[:1], tap(images[:1], own), rtol=1e-4, atol=1e-5)
    block, x = tower.visual.transformer.resblocks[7], torch.randn(2, 26, 48)
    q, k, v = project_qkv(block.attn, block.ln_1(x))
    whole = F.scaled_dot_product_attention(v, v, v).transpose(1, 2).flatten(2)
    torch.testing.assert_close(
        project_out(block.attn, own._local_values(8, q, k, v)), project_out(block.attn, whole), rtol=1e-4, atol=1e-5
    )


def test_the_last_layer_alone_trains_the_text(run, train):
    batch = {"image": train["in/train_images"], "mask": train["in/train_masks"][:, 0] > 0.5}
    batch |= {"label": train["in/train_labels"], "class_name": run.meta["class_of_train_image"]}
    method = build(run, text_layers="all").train()
    features = method.encode_for_loss(batch["image"])
    for level in range(4):
        run.out[f"text_stage/feature_{level}"] = train[f"text_stage/feature_{level}"]
        run.check(f"text_stage/feature_{level}", features.levels[level])
    expected = sum(train[f"text_stage/focal_{n}"] for n in range(4))
    torch.testing.assert_close(method.loss(features, batch)["focal"], expected, rtol=1e-4, atol=0)


# -- traps -----------------------------------------------------------------------------------------------------


def test_the_border_of_the_blur_is_mirrored_without_the_edge():
    row = torch.arange(5.0)[None, None].expand(1, 5, 5)
    weight = torch.exp(-0.5 * torch.arange(-3, 4.0).square())
    weight = weight / weight.sum()
    assert blur(row, 7, 1.0)[0, 2, 0] == pytest.approx(float((weight * torch.tensor([3.0, 2, 1, 0, 1, 2, 3])).sum()))


@torch.no_grad()
def test_the_image_feature_is_not_normalised_and_knows_no_class_token(run):
    method = build(run)
    features = method.encode(run.out["in/images"])
    assert run.out["det"].norm(dim=1).max() < 0.999
    cosines = method.image_cosines(features, method.texts(run.meta["class_of_image"]))
    torch.testing.assert_close((cosines[:, 1] + 1) / 2, run.out["score_det"], rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_scores_of_single_images_rank_as_the_maps_and_likenesses_do(run):
    method, images = build(run), run.out["in/images"]
    prediction = method.score(images, run.meta["class_of_image"])
    expected = prediction.anomaly_map.amax((1, 2)) + 400 * run.out["score_det"]
    torch.testing.assert_close(prediction.image_score, expected, rtol=1e-4, atol=1e-3)


# -- on a tiny CLIP --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"text_epochs": 0, "relu": True, "domain": "medical"}])
def test_conformance(tiny, options):
    check_method(AACLIP, backbone=tiny, pretrained=None, image_size=64, layers=[2, 4], **options)


def test_both_stages_in_one_fit(tiny):
    """The first epoch trains the text side alone, the second the image side alone."""
    method = AACLIP(tiny, None, 64, layers=[2, 4], text_epochs=1)
    start = {name: p.detach().clone() for name, p in method.named_parameters() if p.requires_grad}
    seen, after_text = {}, {}

    def moved():
        changed = [name for name, value in start.items() if not torch.equal(method.get_parameter(name), value)]
        return {name.split(".")[0].split("_")[0] for name in changed}

    def epoch_end():
        seen[method.current_epoch] = moved()
        text = [name for name in start if name.startswith("text")]
        after_text.update({} if after_text else {name: method.get_parameter(name).detach().clone() for name in text})

    method.on_train_epoch_end = epoch_end
    loader = DataLoader([random_batch(2, seed=n) for n in range(2)], batch_size=None, collate_fn=lambda batch: batch)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    Trainer(max_epochs=2, enable_checkpointing=False, **quiet).fit(method, loader)
    assert seen[0] == {"text"}
    assert seen[1] == {"text", "image", "heads"}
    assert all(torch.equal(method.get_parameter(name), value) for name, value in after_text.items())


def test_the_text_is_encoded_once_while_the_image_side_is_trained(tiny, monkeypatch):
    method, calls = AACLIP(tiny, None, 64, layers=[2, 4], text_epochs=0).train(), []
    tower = method.text_tower
    monkeypatch.setattr(tower, "tokenize", lambda *a, _real=tower.tokenize: calls.append(a) or _real(*a))
    batch, optimizer = random_batch(2), method.configure_optimizers()
    for _ in range(3):
        terms = method.loss(method.encode_for_loss(batch["image"]), batch)
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step()
    assert len(calls) == len(set(batch["class_name"])) == 2
    with torch.no_grad():
        method.text_head.weight.add_(1)
    method.loss(method.encode_for_loss(batch["image"]), batch)
    assert len(calls) == 4


def test_an_image_without_a_mask_teaches_no_map(tiny):
    for text_epochs in (0, 1):
        method = AACLIP(tiny, None, 64, layers=[2, 4], text_epochs=text_epochs).train()
        batch = random_batch(3)
        batch["has_mask"][:] = False
        terms = method.loss(method.encode_for_loss(batch["image"]), batch)
        assert float(terms["focal"].detach()) == 0
        torch.stack(list(terms.values())).sum().backward()


def test_settings_out_of_range(tiny):
    with pytest.raises(MethodError, match="go up to 2 and 4 blocks, got 3 and 4"):
        AACLIP(tiny, None, 64, layers=[2], text_adapters=3)


# -- files -----------------------------------------------------------------------------------------------------


def test_the_two_files_in_every_form(run, tmp_path):
    both = {}
    for name in ("text_adapter", "image_adapter_1"):
        both |= torch.load(FOLDER / f"{name}.pth", weights_only=True)
    torch.save({key: both[key] for key in ("text_adapter", "image_adapter")}, tmp_path / "both.pth")
    for given in (FOLDER, FOLDER / "text_adapter.pth", FOLDER / "image_adapter_1.pth", tmp_path / "both.pth"):
        method = build(run, weights=str(given))
        assert torch.equal(method.text_head.weight, run.method["text_adapter.2.fc.0.weight"])
        assert torch.equal(method.heads[3].weight, run.method["image_adapter.seg_proj.3.fc.weight"])
        assert torch.equal(method.image_head.weight, run.method["image_adapter.det_proj.fc.weight"])
    again = vlad.load(save_run(method, tmp_path / "run")).method
    assert (len(again.text_adapters), len(again.image_adapters)) == (2, 3)


def test_projections_with_an_activation_are_told_by_their_names(run, tmp_path):
    shutil.copy(FOLDER / "text_adapter.pth", tmp_path)
    image = torch.load(FOLDER / "image_adapter_1.pth", weights_only=True)
    renamed = {key.replace(".fc.weight", ".fc.0.weight"): value for key, value in image["image_adapter"].items()}
    torch.save({"image_adapter": renamed}, tmp_path / "image_adapter_2.pth")
    method = build(run, weights=str(tmp_path))
    assert method.relu
    patches = torch.randn(1, 2, 2, 48)
    expected = normalize(F.leaky_relu(patches @ method.heads[0].weight.T))
    torch.testing.assert_close(method._project(method.heads[0], patches), expected)


def test_files_that_are_refused(run, tmp_path):
    shutil.copy(FOLDER / "text_adapter.pth", tmp_path)
    with pytest.raises(WeightsError, match=r"must be one image_adapter_\*\.pth, and there is none"):
        build(run, weights=str(tmp_path))
    for epoch in (1, 2):
        shutil.copy(FOLDER / "image_adapter_1.pth", tmp_path / f"image_adapter_{epoch}.pth")
    with pytest.raises(WeightsError, match=r"there is image_adapter_1\.pth, image_adapter_2\.pth; give the file"):
        build(run, weights=str(tmp_path))
    assert build(run, weights=str(tmp_path / "image_adapter_2.pth")).origin
    torch.save({"image_adapter": {}}, tmp_path / "image_adapter_2.pth")
    with pytest.raises(WeightsError, match="missing image_adapters"):
        build(run, weights=str(tmp_path / "image_adapter_2.pth"), image_adapters=3)

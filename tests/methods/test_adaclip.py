"""AdaCLIP against its published code, number by number, and what the published code cannot do."""

import itertools
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests_support import DATA, Golden, golden, save_run

import vlad
from vlad.clip.similarity import normalize
from vlad.errors import MethodError, WeightsError
from vlad.features import FeatureCache
from vlad.methods import adaclip_prompts as module
from vlad.methods.adaclip import AdaCLIP
from vlad.methods.fusion import cluster, fuse
from vlad.testing import random_batch


@pytest.fixture(scope="module", params=["a", "c", "d"])
def run(request, tmp_path_factory) -> Golden:
    """Published runs: a static and dynamic, both towers, fusion; c static, no fusion; d dynamic, image tower alone."""
    return golden(DATA / "adaclip" / request.param, tmp_path_factory.mktemp(f"adaclip_{request.param}"))


def build(run, tmp_path, **options):
    setting = run.meta["adaclip"]
    torch.save(run.method, tmp_path / "published.pth")
    if setting["prompting_type"] == "D":  # the only kind whose shapes do not tell everything
        options = {"branch": setting["prompting_branch"], "depth": setting["prompting_depth"], **options}
    return AdaCLIP(
        backbone=run.backbone,
        pretrained=None,
        image_size=run.meta["image_size"],
        weights=str(tmp_path / "published.pth"),
        fusion=setting["use_hsf"],
        clusters=setting["k_clusters"],
        **options,
    ).eval()


def test_settings_are_read_off_the_file(run, tmp_path):
    method, setting = build(run, tmp_path), run.meta["adaclip"]
    assert (method.prompt_type, method.branch) == (setting["prompting_type"], setting["prompting_branch"])
    assert (method.depth, method.length) == (setting["prompting_depth"], setting["prompting_length"])


def compared(method, images, names, labels=None):
    """Returns features, text and scores of images, as the joints hand them on."""
    features, text = method.encode(images), method.texts(names)
    return features, text, method.compare(features, text, labels=labels)


@pytest.mark.parametrize("kind", ["nohalf", "official"])
@torch.no_grad()
def test_outputs(run, kind, tmp_path):
    method = build(run, tmp_path, half_prompts=kind == "official")
    for n, name in enumerate(run.meta["class_names"]):
        image, at = run.out["in/images"][n : n + 1], f"{kind}/img{n}"
        features, text, scores = compared(method, image, [name], run.out.get(f"{at}/hsf_labels"))
        prediction = method.finish(scores, image.shape[-2:])
        run.check(f"{at}/anomaly_map", prediction.unsmoothed_map)
        run.check(f"{at}/image_score", prediction.image_score)
        if kind == "official":
            continue
        run.check(f"{at}/anomaly_map_smooth", prediction.anomaly_map)
        tokens, pooled = method.encode_prompted(features)
        for level in (0, 3):
            golden = run.out[f"{at}/tokens_{level}"]
            run.out[f"{at}/tokens_{level}/patches"] = golden[..., -tokens[level].shape[1] :, :]  # without class token
            run.check(f"{at}/tokens_{level}/patches", tokens[level])
            logits = run.out[f"{at}/logits_lowres_{level}"]
            margin = scores.patches[:, level].flatten(1)
            torch.testing.assert_close(margin, logits[..., 1] - logits[..., 0], rtol=0, atol=2e-4)
        run.check(f"{at}/pooled", pooled)
        run.check(f"{at}/text_features", method.encode_text(text, features.image).transpose(1, 2))
        if "D" in method.prompt_type:
            run.check(f"{at}/vanilla_image_features", features.image)
            dynamic = method.visual_dynamic(features.image).unflatten(1, (method.length, -1))
            run.check(f"{at}/dynamic_visual_prompts", dynamic)


@torch.no_grad()
def test_fusion_chooses_and_weighs_the_same_patches(run, tmp_path):
    if not run.meta["adaclip"]["use_hsf"]:
        pytest.skip("this run has no fusion")
    method = build(run, tmp_path)
    for n, name in enumerate(run.meta["class_names"]):
        at = f"nohalf/img{n}"
        features = method.encode(run.out["in/images"][n : n + 1])
        tokens, _ = method.encode_prompted(features)
        heads = zip(method.patch_heads, tokens, strict=True)
        patches = torch.stack([normalize(head(layer)) for head, layer in heads])
        text = method.encode_text(method.texts([name]), features.image)
        abnormality = (100 * patches.mean(0) @ text.transpose(1, 2)).softmax(-1)[..., 1]
        run.check(f"{at}/hsf_lowres_prob", abnormality)
        count = run.out[f"{at}/hsf_topk_indices"].shape[1]
        assert set(abnormality.topk(count).indices[0].tolist()) == set(run.out[f"{at}/hsf_topk_indices"][0].tolist())
        fused = fuse(patches, abnormality, method.clusters, labels=run.out[f"{at}/hsf_labels"])
        run.check(f"{at}/hsf_out", fused)
        own = fuse(patches, abnormality, method.clusters)  # with our own groups: near, and the same every time
        assert float((own * fused).sum()) > 0.95
        assert torch.equal(own, fuse(patches, abnormality, method.clusters))


def test_published_clustering(run, tmp_path):
    """scikit-learn's KMeans under numpy's global state finds the published groups."""
    if not run.meta["adaclip"]["use_hsf"]:
        pytest.skip("this run has no fusion")
    method = build(run, tmp_path, clustering="sklearn")
    np.random.seed(run.meta["kmeans_numpy_seed"])  # noqa: NPY002 - what the published code depends on
    with torch.no_grad():
        prediction = method.score(run.out["in/images"][:1], run.meta["class_names"][:1])
    assert abs(float(prediction.image_score) - float(run.out["nohalf/img0/image_score"])) < 0.02


def losses(method, images, names, masks, label, labels):
    _, _, scores = compared(method, images, names, labels)
    return method.losses(scores.patches, scores.image[:, 0], masks.bool(), label)


@pytest.mark.parametrize("step", ["b1_abnormal", "b3"])
def test_losses_and_gradients(run, step, tmp_path):
    if step not in run.meta["train"]:
        pytest.skip("the published code cannot run this")
    rows = [0] if step == "b1_abnormal" else [0, 1, 2]
    method = build(run, tmp_path, dice="row" if len(rows) == 1 else "image").train()
    images = run.out["in/images"][rows]
    names, labels = [run.meta["class_names"][row] for row in rows], run.out.get(f"train/nohalf/{step}/train_hsf_labels")
    terms = losses(method, images, names, run.out["in/masks"][rows, 0], run.out["in/labels"][rows], labels)
    published = run.meta["train"][step]
    groups_known = len(rows) == 1 or not method.fusion
    if groups_known:
        assert float(terms["image"]) == pytest.approx(published["cls_focal"], rel=1e-4, abs=1e-7)
    for ours, theirs in (("focal", "focal"), ("dice", "dice_abnormal"), ("dice_normal", "dice_normal")):
        assert float(terms[ours]) == pytest.approx(sum(layer[theirs] for layer in published["seg"]), rel=1e-4)
    total = torch.stack(list(terms.values())).sum()
    if groups_known:
        assert float(total) == pytest.approx(published["loss"], rel=1e-5)
    total.backward()
    prefix = f"train/nohalf/{step}/grad/"
    gradients = {key.removeprefix(prefix): value for key, value in run.out.items() if key.startswith(prefix)}
    for name, gradient in method.published_state(gradients).items() if gradients else ():
        run.out[f"{prefix}{name}"] = gradient
        run.check(f"{prefix}{name}", method.get_parameter(name).grad)
    silent = [name for name, p in method.named_parameters() if p.requires_grad and p.grad is None]
    assert not silent
    assert not any(p.requires_grad for p in method.backbone.parameters())


def test_step_of_the_optimizer(run, tmp_path):
    method = build(run, tmp_path, dice="row").train()
    labels = run.out.get("train/nohalf/b1_abnormal/train_hsf_labels")
    names, masks = run.meta["class_names"][:1], run.out["in/masks"][:1, 0]
    terms = losses(method, run.out["in/images"][:1], names, masks, run.out["in/labels"][:1], labels)
    optimizer = method.configure_optimizers()
    torch.stack(list(terms.values())).sum().backward()
    optimizer.step()
    prefix = "train/nohalf/b1_abnormal/param_after_step/"
    after = {key.removeprefix(prefix): value for key, value in run.out.items() if key.startswith(prefix)}
    for name, expected in method.published_state(after).items():
        # Adam's first step is the gradient's sign: where that is as good as zero, it may differ.
        off = (method.get_parameter(name).detach() - expected).abs() > 1e-4
        assert off.float().mean() < 0.01, name


@torch.no_grad()
def test_batch_equals_single_images(run, tmp_path):
    method = build(run, tmp_path)
    images = torch.cat([run.out["in/images"], run.out["in/images"].flip(-1), run.out["in/images"].flip(-2)])[:8]
    names = (run.meta["class_names"] * 3)[:8]
    together = method.score(images, names)
    for i in range(8):
        alone = method.score(images[i : i + 1], names[i : i + 1])
        torch.testing.assert_close(alone.unsmoothed_map[0], together.unsmoothed_map[i], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(alone.image_score[0], together.image_score[i], rtol=1e-5, atol=1e-6)


# -- without goldens: everything the paper ablates, on a tiny CLIP ------------------------------------------


def loss(method, batch):
    return method.loss(method.encode_for_loss(batch["image"]), batch)


KINDS = [("none", "VL"), *itertools.product(("S", "D", "SD"), ("V", "L", "VL"))]


@pytest.mark.parametrize(("prompt_type", "branch"), KINDS)
@pytest.mark.parametrize("fusion", [True, False])
def test_every_combination_runs_and_trains_what_it_has(tiny, prompt_type, branch, fusion):
    method = AdaCLIP(
        tiny, None, 64, prompt_type=prompt_type, branch=branch, depth=2, length=3, clusters=3, fusion=fusion
    )
    batch = random_batch(3)
    torch.stack(list(loss(method.train(), batch).values())).sum().backward()
    silent = [name for name, p in method.named_parameters() if p.requires_grad and p.grad is None]
    assert not silent
    method.allow_untrained = True
    with torch.no_grad():
        together = method.eval().score(batch["image"], batch["class_name"])
        alone = method.score(batch["image"][1:2], batch["class_name"][1:2])
    torch.testing.assert_close(alone.unsmoothed_map[0], together.unsmoothed_map[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(alone.image_score[0], together.image_score[1], rtol=1e-4, atol=1e-5)


def test_an_image_without_a_mask_teaches_the_image_score_alone(tiny):
    method = AdaCLIP(tiny, None, 64, depth=2, length=3, clusters=3).train()
    batch = random_batch(3)
    batch["has_mask"][1] = False  # the anomalous one
    terms = loss(method, batch)
    _, _, scores = compared(method, batch["image"], batch["class_name"])
    rows = [0, 2]
    expected = method.losses(scores.patches[rows], scores.image[:, 0], batch["mask"][rows], batch["label"])
    for name, term in terms.items():
        torch.testing.assert_close(term, expected[name])
    batch["has_mask"][:] = False
    alone = loss(method, batch)
    torch.testing.assert_close(alone["image"], terms["image"])
    assert float(alone["focal"]) == float(alone["dice"]) == 0
    torch.stack(list(alone.values())).sum().backward()


def test_static_text_is_encoded_once_until_the_prompts_change(tiny, monkeypatch):
    method = AdaCLIP(tiny, None, 64, prompt_type="S", branch="L", depth=2, length=3).eval()
    method.allow_untrained = True
    calls = []
    monkeypatch.setattr(
        module, "run_blocks", lambda *a, _real=module.run_blocks, **k: calls.append(1) or _real(*a, **k)
    )
    batch = random_batch(3)
    with torch.no_grad():
        first = method.score(batch["image"], batch["class_name"])
        count = len(calls)
        assert torch.equal(method.score(batch["image"], batch["class_name"]).unsmoothed_map, first.unsmoothed_map)
        assert len(calls) == count
        method.text_static["block_2"].add_(0.5)
        assert not torch.equal(method.score(batch["image"], batch["class_name"]).unsmoothed_map, first.unsmoothed_map)


def test_plain_embedding_of_a_training_image_comes_from_the_cache(tiny, tmp_path):
    method = AdaCLIP(tiny, None, 64, depth=2, length=3, clusters=3).train()
    live = loss(method, batch := random_batch(3))
    method.feature_cache = FeatureCache(tmp_path)
    for _ in range(2):
        cached = loss(method, batch)
        assert {name: float(term) for name, term in cached.items()} == pytest.approx(
            {name: float(term) for name, term in live.items()}, rel=1e-5
        )
    assert (method.feature_cache.computed, method.feature_cache.read) == (3, 3)
    batch["image"] = batch["image"].flip(-1)  # an augmented image is another one
    loss(method, batch)
    assert method.feature_cache.computed == 6


@pytest.mark.parametrize("points", [torch.randn(3, 40, 8), torch.zeros(2, 10, 4), torch.randn(1, 5, 3).repeat(1, 4, 1)])
def test_clusters_are_a_local_optimum_and_their_own(points):
    labels = cluster(points, 6)
    assert labels.shape == points.shape[:2]
    assert int(labels.max()) < 6
    for i in range(len(points)):
        assert torch.equal(cluster(points[i : i + 1], 6)[0], labels[i])
        centers = torch.stack([points[i][labels[i] == k].mean(0) for k in labels[i].unique()])
        distance = torch.cdist(points[i], centers)
        own = distance.gather(1, torch.searchsorted(labels[i].unique(), labels[i])[:, None])[:, 0]
        assert (own <= distance.amin(1) + 1e-4).all()


def test_clusters_are_as_tight_as_scikit_learns():
    from sklearn.cluster import KMeans

    points = torch.randn(8, 100, 32, generator=torch.Generator().manual_seed(0))
    ours, theirs = 0.0, 0.0
    for one, labels in zip(points, cluster(points, 20), strict=True):
        ours += sum(float((one[labels == k] - one[labels == k].mean(0)).square().sum()) for k in labels.unique())
        theirs += KMeans(20, n_init="auto", random_state=0).fit(one.numpy()).inertia_
    assert ours < 1.03 * theirs


def test_few_patches(tiny):
    method = AdaCLIP(tiny, None, 32, depth=2, clusters=20).eval()  # four patches, twenty groups
    method.allow_untrained = True
    with torch.no_grad():
        prediction = method.score(torch.randn(2, 3, 32, 32), ["a", "b"])
    assert prediction.image_score.isfinite().all()


@torch.no_grad()
def test_references_are_compared_by_tokens_without_prompts(tiny):
    """References and images run through the plain tower: the memory does not depend on what is learned."""
    method = AdaCLIP(tiny, None, 64, depth=2, length=3, clusters=3).eval()
    assert method.encode(random_batch(1)["image"]).levels == ()
    method.fit_references([random_batch(2, seed=1)])
    before = method.memory.levels_of("noise/noise")
    assert len(before) == 4
    assert len(method.encode(random_batch(1)["image"]).levels) == 4
    method.visual_static["block_1"].add_(1.0)
    method.fit_references([random_batch(2, seed=1)])
    for a, b in zip(before, method.memory.levels_of("noise/noise"), strict=True):
        assert torch.equal(a, b)


# -- files --------------------------------------------------------------------------------------------------


def saved(method):
    file = {}
    for tower in ("visual", "text"):
        width = getattr(method, f"{tower}_static")["block_2"].shape[1]
        for block in range(method.depth):
            file[f"clip_model.{tower}_prompter.static_prompts.{block}"] = torch.randn(method.length, width)
        for m in range(method.length):
            file[f"clip_model.dynamic_{tower}_prompt_generator.head.{m}.weight"] = torch.randn(width, 32)
            file[f"clip_model.dynamic_{tower}_prompt_generator.head.{m}.bias"] = torch.randn(width)
    for i in range(4):
        file[f"clip_model.patch_token_layer.head.{i}.weight"] = torch.randn(32, 48)
        file[f"clip_model.patch_token_layer.head.{i}.bias"] = torch.randn(32)
    file["clip_model.cls_token_layer.head.0.weight"] = torch.randn(32, 32)
    file["clip_model.cls_token_layer.head.0.bias"] = torch.randn(32)
    return file


def test_files_with_missing_or_foreign_keys_are_refused_by_name(tiny, tmp_path):
    method = AdaCLIP(tiny, None, 64, depth=2, length=3)
    file = saved(method)
    path = tmp_path / "file.pth"
    torch.save(file, path)
    loaded = AdaCLIP(tiny, None, 64, weights=str(path))
    assert (loaded.prompt_type, loaded.branch, loaded.depth, loaded.length) == ("SD", "VL", 2, 3)
    assert torch.equal(loaded.visual_static["block_1"], file["clip_model.visual_prompter.static_prompts.0"])
    missing = {key: value for key, value in file.items() if key != "clip_model.cls_token_layer.head.0.bias"}
    torch.save(missing, path)
    with pytest.raises(WeightsError, match=r"lacks clip_model\.cls_token_layer\.head\.0\.bias"):
        AdaCLIP(tiny, None, 64, weights=str(path))
    torch.save({**file, "clip_model.more": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match=r"more than this method has: clip_model\.more"):
        AdaCLIP(tiny, None, 64, weights=str(path))
    torch.save({**file, "clip_model.cls_token_layer.head.0.bias": torch.zeros(5)}, path)
    with pytest.raises(WeightsError, match=r"class_head\.bias has shape \(5,\), expected \(32,\)"):
        AdaCLIP(tiny, None, 64, weights=str(path))
    save_file({"other": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match="neither a vlad checkpoint nor in the published format of AdaCLIP"):
        AdaCLIP(tiny, None, 64, weights=str(tmp_path / "other.safetensors"))


def test_a_checkpoint_knows_what_was_read_off_the_file(tiny, tmp_path):
    """Trained on from a published file of another kind than the default, saved, restored without the file."""
    other = AdaCLIP(tiny, None, 64, prompt_type="S", depth=2, length=3)
    file = {key: value for key, value in saved(other).items() if "dynamic" not in key}
    torch.save(file, tmp_path / "static.pth")
    method = AdaCLIP(tiny, None, 64, weights=str(tmp_path / "static.pth"))
    run = save_run(method, tmp_path / "run")
    restored = vlad.load(run).method
    assert (restored.prompt_type, restored.depth, restored.length) == ("S", 2, 3)
    assert torch.equal(restored.text_static["block_2"], method.text_static["block_2"])


@pytest.mark.parametrize("given", [{}, {"branch": "V"}, {"depth": 2}])
def test_what_a_file_of_dynamic_prompts_does_not_tell_is_asked_for(tiny, tmp_path, given):
    path = tmp_path / "dynamic.pth"
    file = {
        key: value for key, value in saved(AdaCLIP(tiny, None, 64, depth=2, length=3)).items() if "static" not in key
    }
    torch.save(file, path)
    with pytest.raises(WeightsError, match=r"dynamic\.pth has dynamic prompts alone .*model\.branch .*model\.depth"):
        AdaCLIP(tiny, None, 64, weights=str(path), **given)
    method = AdaCLIP(tiny, None, 64, weights=str(path), branch="V", depth=2)
    assert (method.prompt_type, method.branch, method.depth, method.length) == ("D", "V", 2, 3)
    run = save_run(method, tmp_path / "run")
    again = AdaCLIP(tiny, None, 64, weights=str(run))  # our own files tell all of it
    assert (again.prompt_type, again.branch, again.depth, again.length) == ("D", "V", 2, 3)


def test_keys_beside_the_published_ones_are_told(tiny, tmp_path):
    file = saved(AdaCLIP(tiny, None, 64, depth=2, length=3))
    torch.save({**file, "epoch": 3, "notes": "x"}, tmp_path / "more.pth")
    with pytest.warns(UserWarning, match=r"more\.pth holds more than AdaCLIP reads; passed over: epoch, notes"):
        AdaCLIP(tiny, None, 64, weights=str(tmp_path / "more.pth"))


class Evil:
    def __reduce__(self):
        return (print, ("code ran",))


def test_a_pickle_with_code_is_refused(tiny, tmp_path, capsys):
    path = tmp_path / "evil.pth"
    torch.save({"clip_model.patch_token_layer.head.0.weight": Evil()}, path)
    with pytest.raises(WeightsError, match=r"evil\.pth is refused: it holds Python objects"):
        AdaCLIP(tiny, None, 64, weights=str(path))
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(WeightsError, match=r"evil\.pth"):
        AdaCLIP(tiny, None, 64, weights=str(path))
    assert "code ran" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 3}, "depth must be from 1 to 2"),
        ({"length": 0}, "length and clusters"),
        ({"clusters": 0}, "length and"),
    ],
)
def test_settings_out_of_range(tiny, options, message):
    with pytest.raises(MethodError, match=message):
        AdaCLIP(tiny, None, 64, **{"depth": 2, **options})

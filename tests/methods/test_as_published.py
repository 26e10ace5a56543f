"""``as_published``: one switch per method that makes a test run equal the authors' script."""

import importlib.util
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from tests_support import DATA, golden, write_mvtec
from torch.utils.data import DataLoader

from vlad.callbacks.evaluator import Evaluator
from vlad.methods import adaclip as module
from vlad.methods.adaclip import AdaCLIP
from vlad.methods.adaclip_published import seed_numpy
from vlad.methods.fusion import fuse
from vlad.methods.sdp import SDP
from vlad.methods.sdp_plus import SDPPlus
from vlad.types import take_rows

WHOLE_RUNS = {  # image scores of the published model on a golden's three images in a row, numpy seeded once, with 111
    "a": [0.8500174, 0.4410861, 0.6889853],
    "d": [0.9897724, 0.1291694, 0.6725604],
}


def batches(images, class_names, batch_size):
    """Cuts images into batches as the data module delivers them; the second half of each category is anomalous."""
    count, side = len(images), images.shape[-1]
    label = torch.tensor(
        [class_names[:n].count(name) >= class_names.count(name) / 2 for n, name in enumerate(class_names)]
    )
    mask = torch.zeros(count, side, side, dtype=torch.bool)
    mask[label, 8:30, 20:40] = True
    whole = {"image": images, "mask": mask, "has_mask": torch.ones_like(label), "label": label.long()}
    whole["index"] = torch.arange(count)
    words = {"class_name": class_names, "category": class_names, "dataset": ["noise"] * count}
    words |= {"image_id": [f"{n}" for n in range(count)], "path": [f"{n}.png" for n in range(count)]}
    cuts = [slice(start, start + batch_size) for start in range(0, count, batch_size)]
    return [{name: value[cut] for name, value in {**whole, **words}.items()} for cut in cuts]


def image_scores(method, images, class_names, batch_size, **trainer):
    """Runs Lightning's test loop; returns the image scores that its table is made of."""
    evaluator = Evaluator(metrics=["image"])
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    loader = DataLoader(batches(images, class_names, batch_size), batch_size=None, collate_fn=lambda batch: batch)
    Trainer(devices=1, callbacks=[evaluator], **quiet, **trainer).test(method, loader, verbose=False)
    return torch.tensor(evaluator.result.images["image_score"].tolist()), evaluator.result


# -- SDP and SDP+ ----------------------------------------------------------------------------------------------


def clip_ad_method(cls, run, **options):
    meta = run.meta
    settings = {"backbone": run.backbone, "pretrained": None, "image_size": meta["image_size"]}
    settings |= {"layers": meta["features"], "sigma": meta["smoothing"], "representative": meta["rep_vec"]}
    method = cls(**settings, **options).eval()
    if cls is SDPPlus:
        method.load_state_dict({**method.state_dict(), **method.published_state({"linear_layers": run.method})})
        method.origin = "golden"
    return method


@pytest.mark.parametrize(("cls", "name"), [(SDP, "sdp"), (SDPPlus, "sdp_plus")])
def test_clip_ad_scores_are_those_of_the_published_evaluation(clip_ad, cls, name):
    images, class_names = clip_ad.out["in/image"], clip_ad.meta["class_per_image"]
    method = clip_ad_method(cls, clip_ad, as_published=True)
    assert method.tags.transductive == "scores"
    expected = clip_ad.out[f"out/{name}/score_fused"].flatten().float()
    for batch_size in (1, 4):
        scores, result = image_scores(method, images, class_names, batch_size)
        torch.testing.assert_close(scores, expected, rtol=0, atol=2e-5)
        assert result.transductive == "scores"
    usual, result = image_scores(clip_ad_method(cls, clip_ad), images, class_names, 4)
    assert result.transductive == ""
    assert not torch.allclose(usual, expected, atol=0.01)


def test_the_switch_takes_precedence_over_the_fusion(tiny):
    options = {"backbone": tiny, "pretrained": None, "image_size": 64, "layers": [2, 4]}
    assert SDP(**options, image_fusion="sum", as_published=True).image_fusion == "minmax"
    assert SDP(**options, image_fusion="minmax").tags.transductive == "scores"
    assert SDP(**options).tags.transductive == ""
    assert SDPPlus(**options, as_published=True).tags.transductive == "scores"


# -- AdaCLIP ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["a", "c", "d"])
def run(request, tmp_path_factory):
    """Published runs: a static and dynamic, both towers, fusion; c static, no fusion; d dynamic, image tower alone."""
    return golden(DATA / "adaclip" / request.param, tmp_path_factory.mktemp(f"as_published_{request.param}"))


@pytest.fixture
def adaclip(run, tmp_path):
    def build(**options):
        setting = run.meta["adaclip"]
        torch.save(run.method, tmp_path / "published.pth")
        if setting["prompting_type"] == "D":  # the only kind whose shapes do not tell everything
            options |= {"branch": setting["prompting_branch"], "depth": setting["prompting_depth"]}
        options |= {"fusion": setting["use_hsf"], "clusters": setting["k_clusters"]}
        weights = str(tmp_path / "published.pth")
        size = run.meta["image_size"]
        return AdaCLIP(backbone=run.backbone, pretrained=None, image_size=size, weights=weights, **options).eval()

    return build


def test_adaclip_maps_and_scores_are_the_published_ones(run, adaclip):
    method = adaclip(as_published=True)
    for n, name in enumerate(run.meta["class_names"]):  # the golden was seeded for each image
        image, at = run.out["in/images"][n : n + 1], f"official/img{n}"
        scores, _ = image_scores(method, image, [name], 1)
        torch.testing.assert_close(scores, run.out[f"{at}/image_score"], rtol=0, atol=1e-5)
        if n == 0:
            with torch.no_grad():
                unsmoothed_map = method.score(image, [name]).unsmoothed_map
            torch.testing.assert_close(unsmoothed_map, run.out[f"{at}/anomaly_map"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("run", ["a", "d"], indirect=True)  # nothing is drawn without fusion
@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_adaclip_whole_run_is_the_published_one_whatever_the_batch_size(run, adaclip, batch_size):
    letter = run.name[-1]
    scores, _ = image_scores(adaclip(as_published=True), run.out["in/images"], run.meta["class_names"], batch_size)
    torch.testing.assert_close(scores, torch.tensor(WHOLE_RUNS[letter]), rtol=0, atol=1e-5)


def test_adaclip_repeats_itself_and_leaves_numpy_as_it_was(run, adaclip):
    method = adaclip(as_published=True)
    images, names = run.out["in/images"], run.meta["class_names"]
    np.random.seed(5)  # noqa: NPY002 - the global state is what this is about
    expected = np.random.RandomState(5).rand(3)
    first, _ = image_scores(method, images, names, 1)
    np.testing.assert_array_equal(np.random.rand(3), expected)  # noqa: NPY002
    assert torch.equal(first, image_scores(method, images, names, 1)[0])
    together, _ = image_scores(method, images, names, 4)
    torch.testing.assert_close(together, first, rtol=0, atol=1e-6)  # sentences of one length round otherwise


def test_adaclip_by_default_scores_each_image_by_itself(run, adaclip):
    method = adaclip()
    images, names = run.out["in/images"], run.meta["class_names"]
    np.random.seed(5)  # noqa: NPY002
    there, _ = image_scores(method, images, names, 4)
    back, _ = image_scores(method, images.flip(0), names[::-1], 1)
    torch.testing.assert_close(there, back.flip(0), rtol=0, atol=1e-6)
    np.testing.assert_array_equal(np.random.rand(3), np.random.RandomState(5).rand(3))  # noqa: NPY002


@pytest.mark.parametrize("run", ["a", "d"], indirect=True)
def test_adaclip_predictions_are_seeded_too(run, adaclip):
    letter = run.name[-1]
    loader = DataLoader(
        batches(run.out["in/images"], run.meta["class_names"], 2), batch_size=None, collate_fn=lambda batch: batch
    )
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    predictions = Trainer(devices=1, **quiet).predict(adaclip(as_published=True), loader)
    scores = torch.cat([prediction.image_score for prediction in predictions])
    torch.testing.assert_close(scores, torch.tensor(WHOLE_RUNS[letter]), rtol=0, atol=1e-5)


def test_the_switch_takes_precedence_over_prompts_and_clustering(run, adaclip):
    method = adaclip(as_published=True, half_prompts=False, clustering="fixed")
    assert method.half_prompts
    assert method.clustering == "sklearn"
    assert method.hparams["as_published"]


def test_published_features_are_the_usual_ones_but_for_rounding(run, adaclip):
    usual, published = adaclip(), adaclip(as_published=True)
    images = run.out["in/images"]
    one, other = usual.encode(images), published.encode(images)
    torch.testing.assert_close(one.branch[0], other.branch[0], rtol=0, atol=1e-5)
    if one.image is not None:
        torch.testing.assert_close(one.image, other.image, rtol=0, atol=1e-4)
    rows = published.encode(images[1:2])
    assert torch.equal(rows.branch[0], take_rows(other, slice(1, 2)).branch[0])  # to the last bit


@pytest.mark.parametrize("run", ["a"], indirect=True)
def test_patches_are_ranked_with_the_published_ties(run, adaclip, monkeypatch):
    """Where probabilities round to one float32, the published code sees a tie where the margins still differ."""
    ranks = []

    def spy(patches, abnormality, *rest, **options):
        ranks.append(abnormality)
        return fuse(patches, abnormality, *rest, **options)

    monkeypatch.setattr(module, "fuse", spy)
    method = adaclip(as_published=True)
    feature = method.encode(run.out["in/images"][:1])
    vectors = method.encode_text(method.texts(run.meta["class_names"][:1]), feature.image)[0]
    for head in method.patch_heads:  # every patch looks much more abnormal than normal
        head.bias.data += 60 * (vectors[1] - vectors[0]) / (vectors[1] - vectors[0]).norm()
    with torch.no_grad():
        scores = method.compare(feature, method.texts(run.meta["class_names"][:1]))
    assert len(ranks[0].unique()) < len(scores.patches.mean(1).unique())


def test_several_processes_are_told(monkeypatch):
    state = np.random.get_state()  # noqa: NPY002
    try:
        with pytest.warns(UserWarning, match="2 processes share the images"):
            seed_numpy(2)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            seed_numpy(1)
        assert np.random.rand() == np.random.RandomState(111).rand()  # noqa: NPY002
    finally:
        np.random.set_state(state)  # noqa: NPY002


# -- the experiment --------------------------------------------------------------------------------------------


def test_both_ways_prints_both_settings(tmp_path, capsys, monkeypatch):
    file = Path(__file__).parents[2] / "experiments/faithfulness/both_ways.py"
    spec = importlib.util.spec_from_file_location("both_ways", file)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(script, "METHODS", {"sdp": script.METHODS["sdp"]})
    tree = write_mvtec(tmp_path / "mvtec_ad", ("bottle",), count=8) / "bottle"
    table = script.choose(tree)
    assert table.groupby(["category", "label"]).size().tolist() == [4, 4, 4, 4]
    for option in ("--save", "--against"):
        monkeypatch.setattr("sys.argv", ["both_ways.py", str(tree), option, str(tmp_path / "kept")])
        script.main()
    printed = capsys.readouterr().out
    assert printed.count("| sdp | default |") == printed.count("| sdp | as_published |") == 2
    assert "as_published against" in printed
    assert "maps 0.0e+00 of their range, image scores 0.0e+00" in printed.splitlines()[-1]

"""MuSc against its published code, and what scoring a set together asks for."""

import pytest
import torch
from lightning.pytorch import Trainer
from safetensors.torch import load_file
from tests_support import DATA, Golden, golden, write_mvtec

import vlad
from vlad.clip.similarity import normalize, zero_to_one
from vlad.datamodules import AnomalyDataModule
from vlad.encoders.dino import VisionTower
from vlad.errors import MethodError
from vlad.methods.musc import MuSc, mutual_scores, neighbourhood_means, smooth_over_neighbours
from vlad.testing import random_batch
from vlad.types import Features


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Golden:
    """The published run: eleven images, twelve blocks of which three are read, neighbourhoods of 1, 3 and 5."""
    return golden(DATA / "musc", tmp_path_factory.mktemp("musc"))


@pytest.fixture(scope="module")
def method(run) -> MuSc:
    meta = run.meta
    settings = {"layers": meta["layers_one_based"], "degrees": meta["r_list"], "neighbours": meta["k_list"]}
    return MuSc(run.backbone, None, meta["image_size"], activation="pretrained", **settings).eval()


@pytest.fixture(scope="module")
def features(run, method) -> Features:
    return method.encode(run.out["images"])


def test_features(run, method, features):
    run.check("class_tokens", features.image)
    for number, level in enumerate(features.levels):
        run.out[f"patches.{number}"] = run.out[f"tokens.{number}"][:, 1:]
        run.check(f"patches.{number}", level[:3])


@pytest.mark.parametrize("degree", [1, 3, 5])
def test_neighbourhoods_and_mutual_scores(run, features, degree):
    for number, level in enumerate(features.levels):
        patches = neighbourhood_means(level, degree)
        run.out["lnamd"] = normalize(run.out[f"lnamd.r{degree}"][0, :, number])  # stored ahead of it
        run.check("lnamd", patches[0])
        run.deviations[f"lnamd.r{degree}.{number}"] = run.deviations["lnamd"]
        run.check(f"msm.r{degree}.{number}", mutual_scores(patches.flatten(1, 2), 0.3))


def test_set(run, method, features):
    prediction = method.score_set(features, None, (56, 56))
    run.check("anomaly_map", prediction.anomaly_map)
    run.check("score_before", prediction.anomaly_map.amax((1, 2)))
    run.check("image_score", prediction.image_score)


def test_an_images_numbers_are_normalised_together(run, features):
    """Patch by patch, as a layer norm usually is, the vectors are others."""
    level = features.levels[0][:1]
    alone = torch.nn.functional.normalize(torch.nn.functional.layer_norm(level, level.shape[-1:]), dim=-1)
    assert (neighbourhood_means(level, 1) - alone).abs().max() > 1e-2


def test_the_image_itself_is_one_of_its_neighbours(run, method, features):
    scores = zero_to_one(run.out["score_before"]).float()
    assert torch.equal(smooth_over_neighbours(scores, features.image, [1]), scores)
    torch.testing.assert_close(
        smooth_over_neighbours(scores, features.image, method.neighbours), run.out["image_score"], rtol=1e-4, atol=1e-5
    )


def test_chunks_change_nothing(features):
    patches = neighbourhood_means(features.levels[0], 3).flatten(1, 2)
    whole = mutual_scores(patches, 0.3)
    for chunk_bytes in (1, 30_000, 70_000):
        torch.testing.assert_close(mutual_scores(patches, 0.3, chunk_bytes), whole, rtol=1e-5, atol=1e-7)


def test_distances_are_to_the_nearest_patch_of_the_nearest_images():
    torch.manual_seed(0)
    patches = torch.nn.functional.normalize(torch.randn(5, 7, 6), dim=-1)
    expected = torch.zeros(5, 7)
    for i in range(5):
        others = [torch.cdist(patches[i], patches[j]).amin(1) for j in range(5) if j != i]
        expected[i] = torch.stack(others).sort(0).values[:2].mean(0)
    torch.testing.assert_close(mutual_scores(patches, 0.5).float(), expected, rtol=1e-4, atol=1e-5)


def test_few_images_take_one_other_and_one_image_is_refused(tiny):
    """Published: NaN below five images."""
    method = MuSc(tiny, None, 64).eval()
    assert method.layers == (1, 2, 3, 4)
    images = random_batch(3)["image"]
    assert method.score_set(method.encode(images), None, (64, 64)).anomaly_map.isfinite().all()
    with pytest.raises(MethodError, match="there is but one"):
        method.score_set(method.encode(images[:1]), None, (64, 64))


def test_dino_is_read_after_the_final_norm():
    import timm

    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=0)
    tower = VisionTower(model)
    found = MuSc(tower, image_size=64, layers=[6, 12]).eval().encode(random_batch(2)["image"])
    raw = tower.encode(random_batch(2)["image"], [6, 12])
    assert torch.equal(found.levels[1], raw.levels[1])
    assert torch.equal(found.levels[0], model.norm(raw.levels[0]))
    assert torch.equal(found.image, raw.image)  # its length counts


def test_a_test_run_scores_categories_and_is_marked(tiny, tmp_path):
    write_mvtec(tmp_path / "mvtec_ad")
    method = MuSc(tiny, None, 64)
    data = AnomalyDataModule(root=str(tmp_path), test="mvtec_ad", num_workers=0, batch_size=4).require(
        method.requirements
    )
    trainer = Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu")
    trainer.test(method, data, verbose=False)
    (evaluator,) = [one for one in trainer.callbacks if type(one).__name__ == "Evaluator"]
    assert evaluator.result.transductive == "features"
    assert len(evaluator.result.categories) == 2


def test_prediction_image_by_image_is_refused(tiny, tmp_path):
    write_mvtec(tmp_path, ("bottle",))
    detector = vlad.load("musc", backbone=tiny, pretrained=None, image_size=64)
    with pytest.raises(MethodError, match="MuSc as configured scores whole test sets|scores a whole test set at once"):
        detector.predict(tmp_path / "bottle/test/good")
    with pytest.raises(MethodError, match="by each other"):
        detector.method.score(random_batch(1)["image"], ["a"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"degrees": [2]}, "degrees are odd numbers"),
        ({"neighbours": []}, "neighbours are numbers, at least 1"),
        ({"share": 0.0}, "share must lie above 0"),
    ],
)
def test_settings_out_of_range(tiny, options, message):
    with pytest.raises(MethodError, match=message):
        MuSc(tiny, None, 64, **options)


def test_golden_is_whole():
    assert load_file(DATA / "musc" / "outputs.safetensors")["images"].shape == (11, 3, 56, 56)

"""APRIL-GAN against tensors from its published code, with and without references."""

import copy
import hashlib
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from tests_support import DATA, golden
from torch.nn.functional import normalize
from torch.utils.data import DataLoader

from vlad.callbacks.evaluator import Evaluator
from vlad.callbacks.references import References
from vlad.clip.similarity import upsample
from vlad.errors import BackboneError, MethodError, WeightsError
from vlad.memory import nearest_distance
from vlad.methods.april_gan import AprilGAN
from vlad.methods.losses import dice_loss
from vlad.testing import check_method, iter_checks, random_batch
from vlad.types import take_rows

SHARED = DATA.parents[1] / ".." / "shared" / "golden" / "april_gan"
A1, A3 = SHARED / "a1_12layers_posresize", SHARED / "a3_8layers_visa_4shot"
CUT = DATA / "april_gan" / "a3"  # images as bytes, and one image, or 16 rows, of the larger tensors
FOLDERS = {"a3": A3 if A3.is_dir() else CUT, "a1": A1}
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

COLUMNS = ["pixel_auroc", "pixel_f1_max", "pixel_ap", "pixel_aupro", "image_auroc", "image_f1_max", "image_ap"]


class Run:
    """A published run, its method, and its images."""

    def __init__(self, folder, target):
        # A name relative to the tests' data, wherever the folder is.
        self.golden = golden(DATA / os.path.relpath(folder, DATA), target)
        self.meta, self.out = self.golden.meta, self.golden.out
        self.names = self.meta["class_per_image"]
        self.images = pixels(self.out["in/image"])
        self.method = self.build()

    def build(self, **more):
        """Makes the method with the golden's layers; QuickGELU where the published run kept it."""
        meta = self.meta
        activation = "pretrained" if meta["cfg"].get("quick_gelu") else "gelu"
        options = {"backbone": self.golden.backbone, "pretrained": None, "image_size": meta["image_size"]}
        options |= {"layers": meta["features"][::-1], "memory_layers": meta["few_shot_features"]}
        method = AprilGAN(**options | {"activation": activation} | more).eval()
        state = method.published_state({"trainable_linearlayer": self.golden.method})
        method.load_state_dict({**method.state_dict(), **state})
        method.origin = "golden"
        return method

    def batches(self):
        """Gives the reference images of each class."""
        for name in self.meta["classes"]:
            images = pixels(self.out[f"ref/image/{name}"])
            words = {"class_name": [name], "dataset": ["run"], "category": [name]}
            yield {"image": images, **{key: value * len(images) for key, value in words.items()}}

    def check(self, name, value):
        """Compares the images that the golden holds."""
        self.golden.check(name, value[: len(self.out[name])])


def pixels(images):
    """Normalises images that are stored as bytes."""
    if images.dtype != torch.uint8:
        return images
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (images.float().div(255) - mean) / std


@pytest.fixture(scope="module", params=list(FOLDERS))
def run(request, tmp_path_factory):
    folder = FOLDERS[request.param]
    if not folder.is_dir():
        pytest.skip(f"{folder} is not on this machine")
    return Run(folder, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def a3(tmp_path_factory):
    return Run(CUT, tmp_path_factory.mktemp("a3_cut"))


def scored(run, method):
    with torch.no_grad():
        return method.score(run.images, run.names, [f"run/{name}" for name in run.names])


# -- as published ----------------------------------------------------------------------------------------------


def test_text(run):
    for name in run.meta["classes"]:
        run.golden.check(f"text/{name}", run.method.texts([name])[0].T)


def test_tokens_and_linear_layers(run):
    features = run.method.encode(run.images)
    assert run.method.layers == tuple(run.meta["features"])  # ascending, whatever the order given
    run.check("image_features", features.image)
    states = dict(zip(run.method.layers_read, zip(features.classes, features.levels, strict=True), strict=True))
    for layer in run.method.layers_read:
        token, patches = states[layer]
        run.check(f"tok/{layer}", torch.cat([token[:, None], patches.flatten(1, 2)], dim=1))
    for head, layer in zip(run.method.heads, run.method.layers, strict=True):
        run.check(f"lin/out_{layer}", head(states[layer][1].flatten(1, 2)))


def test_zero_shot(run):
    prediction = scored(run, run.method)
    run.check("out/zero_shot/map", prediction.anomaly_map)
    run.check("out/zero_shot/score", prediction.image_score)
    run.check("out/zero_shot/score_text", prediction.score_components[:, 0])
    features, size = run.method.encode(run.images), prediction.anomaly_map.shape[-2:]
    margins = run.method.margins(features, run.method.texts(run.names))
    for margin, layer in zip(margins.unbind(1), run.method.layers, strict=True):
        run.check(f"map/text_{layer}", upsample(margin, size, align_corners=True).sigmoid())


def test_few_shot(run):
    method = copy.deepcopy(run.method)  # with its texts
    method.image_fusion = "minmax"
    method.fit_references(run.batches())
    prediction = scored(run, method)
    run.check("out/few_shot/map", prediction.anomaly_map)
    size, features = prediction.anomaly_map.shape[-2:], method.encode(run.images)
    score = torch.empty(len(run.names))
    for name in run.meta["classes"]:
        rows = torch.tensor([one == name for one in run.names])
        score[rows] = method.score_set(None, take_rows(prediction, rows), size).image_score
        for bank, layer in zip(method.memory.levels_of(f"run/{name}"), method.memory_layers, strict=True):
            rows_of = f"ref/bank_{layer}/{name}"
            run.out[f"{rows_of}/unit"] = normalize(run.out[rows_of], dim=-1)
            run.check(f"{rows_of}/unit", bank)
    run.check("out/few_shot/score", score)
    for layer, level in zip(method.memory_layers, method.memory_levels(features), strict=True):
        maps = []
        for name, tokens in zip(run.names, level, strict=True):
            bank = method.memory.levels_of(f"run/{name}")[method.memory_layers.index(layer)]
            distance = nearest_distance(tokens[None], bank, unit_bank=True)
            maps.append(upsample(distance, size, align_corners=True))
        run.check(f"map/memory_{layer}", torch.cat(maps))


def test_training_step(run):
    method, out, rows = copy.deepcopy(run.method), run.out, run.meta["train_indices"]
    images, mask = run.images[rows], out["in/mask"][rows] > 0
    batch = {"image": images, "mask": mask, "class_name": [run.names[row] for row in rows]}
    assert batch["class_name"] == run.meta["train_classes"]
    optimizer = method.configure_optimizers()
    terms = method.loss(method.encode_for_loss(images), batch)
    for name in ("focal", "dice"):
        out[f"train/{name}_sum"] = out[f"train/{name}"].sum()
        run.golden.check(f"train/{name}_sum", terms[name])
    total = terms["focal"] + terms["dice"]
    run.golden.check("train/loss", total)
    total.backward()
    for name, parameter in method.heads.named_parameters():
        run.golden.check(f"train/grad/fc.{name}", parameter.grad)
        run.golden.check(f"train/gradnorm/fc.{name}", parameter.grad.norm())
    optimizer.step()
    for name, parameter in method.heads.named_parameters():
        # Adam's first step is lr · g / (|g| + 1e-8): where |g| is 1e-7, the rounding of g shows. One entry of a3.
        grad, value = out[f"train/grad/fc.{name}"], parameter.detach().clone()
        lost = grad.abs() < 1e-6 * grad.abs().max()
        assert lost.sum() <= 1
        value[lost] = out[f"train/after/fc.{name}"][lost]
        run.golden.check(f"train/after/fc.{name}", value)


def test_what_the_numbers_hang_on(a3):
    """Each of these was seen in other reimplementations, and moves the map."""

    def deviation(value):
        expected = a3.out["out/zero_shot/map"]
        return float((value.detach()[: len(expected)] - expected).abs().max() / expected.max())

    assert deviation(scored(a3, a3.method).anomaly_map) < 1e-5
    assert deviation(scored(a3, a3.build(activation="gelu")).anomaly_map) > 1e-3
    size, text = a3.images.shape[-2:], a3.method.texts(a3.names)
    margins = a3.method.margins(a3.method.encode(a3.images), text).unbind(1)
    assert deviation(sum(upsample(one, size, align_corners=False).sigmoid() for one in margins)) > 0.05
    assert deviation(sum(upsample(one.sigmoid(), size, align_corners=True) for one in margins)) > 0.05


# -- image scores ----------------------------------------------------------------------------------------------


def test_an_image_score_with_references_is_its_own(a3):
    method = a3.build()
    method.fit_references(a3.batches())
    assert method.tags.transductive == ""
    prediction, layers = scored(a3, method), len(method.layers)
    text = scored(a3, a3.method).image_score
    expected = (text + prediction.anomaly_map.amax((1, 2)) / layers) / 2
    torch.testing.assert_close(prediction.image_score, expected)


def test_as_published_changes_nothing_but_scores_with_references(a3):
    published = a3.build(as_published=True)
    assert published.tags.transductive == "scores"
    assert a3.build(image_fusion="minmax").tags.transductive == "scores"
    usual, other = scored(a3, a3.method), scored(a3, published)
    assert torch.equal(usual.anomaly_map, other.anomaly_map)
    combined = published.score_set(None, other, other.anomaly_map.shape[-2:])
    assert torch.equal(combined.image_score, usual.image_score)


def test_pixels_outside_of_a_region_count_for_nothing(a3):
    method = a3.build()
    method.fit_references(a3.batches())
    roi = torch.zeros(8, 64, 64, dtype=torch.bool)
    roi[:, :20, :20] = True
    features, categories = method.encode(a3.images), [f"run/{name}" for name in a3.names]
    with torch.no_grad():
        inside = method.score_features(features, a3.names, categories, (64, 64), roi)
    whole = scored(a3, method)
    torch.testing.assert_close(inside.anomaly_map[roi], whole.anomaly_map[roi])
    highest = whole.anomaly_map[:, :20, :20].amax((1, 2))
    torch.testing.assert_close(inside.score_components[:, 1], highest / len(method.layers) / 2)


@pytest.mark.parametrize("mode", ["zero_shot", "few_shot"])
def test_the_tables_are_those_that_the_published_script_prints(run, mode):
    method = copy.deepcopy(run.method)
    method.image_fusion = "minmax"
    if mode == "few_shot":
        method.fit_references(run.batches())
    mask, label = run.out["in/mask"] > 0, run.out["in/label"]
    batch = {"image": run.images, "mask": mask, "has_mask": torch.ones_like(label) > 0, "label": label}
    ids = [str(number) for number in range(len(label))]
    batch |= {"index": torch.arange(len(label)), "class_name": run.names, "category": run.names, "image_id": ids}
    batch |= {"dataset": ["run"] * len(label), "path": ids}
    batches = [{name: value[row : row + 3] for name, value in batch.items()} for row in range(0, len(label), 3)]
    evaluator = Evaluator(evaluation_protocol="april_gan")
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    loader = DataLoader(batches, batch_size=None, collate_fn=lambda one: one)
    Trainer(devices=1, callbacks=[evaluator, References()], **quiet).test(method, loader, verbose=False)
    found = evaluator.result.categories.set_index("category")[COLUMNS]
    for name, *figures in run.meta["tables"][mode][:-1]:
        assert [str(one) for one in np.round(100 * found.loc[name].to_numpy(float), decimals=1)] == figures


# -- weights ---------------------------------------------------------------------------------------------------


def test_a_released_file_loads(a3, tmp_path):
    torch.save({"trainable_linearlayer": a3.golden.method}, tmp_path / "visa_pretrained.pth")
    options = {key: a3.method.hparams[key] for key in ("backbone", "image_size", "layers", "memory_layers")}
    method = AprilGAN(
        **options, pretrained=None, activation="pretrained", weights=str(tmp_path / "visa_pretrained.pth")
    )
    assert torch.equal(scored(a3, method.eval()).anomaly_map, scored(a3, a3.method).anomaly_map)
    with pytest.raises(
        WeightsError, match=r"does not fit AprilGAN: unexpected heads\.2\.bias; unexpected heads\.2\.weight"
    ):
        AprilGAN(a3.golden.backbone, None, 64, layers=[2, 5], weights=str(tmp_path / "visa_pretrained.pth"))
    torch.save({"linear_layers": a3.golden.method}, tmp_path / "sdp_plus.pth")
    with pytest.raises(WeightsError, match="nor in the published format of AprilGAN"):
        method.load_weights(str(tmp_path / "sdp_plus.pth"))


def test_released_weights_by_name(a3, tmp_path, monkeypatch):
    """From a folder in place of GitHub."""
    known = AprilGAN.published_weights["visa"]
    file = tmp_path / "github" / known.repo / known.commit / "exps/pretrained/visa_pretrained.pth"
    file.parent.mkdir(parents=True)
    torch.save({"trainable_linearlayer": a3.golden.method}, file)
    monkeypatch.setenv("VLAD_GITHUB_RAW", (tmp_path / "github").as_uri())
    monkeypatch.setenv("VLAD_CACHE", str(tmp_path / "cache"))
    method = copy.deepcopy(a3.method)
    with pytest.raises(WeightsError, match="is not the file that was committed there"):
        method.load_weights("visa")
    blob = hashlib.sha1(b"blob %d\0" % file.stat().st_size + file.read_bytes()).hexdigest()
    monkeypatch.setattr(AprilGAN, "published_weights", {"visa": replace(known, blob=blob)})
    torch.nn.init.zeros_(method.heads[0].weight)
    method.load_weights("visa")
    assert torch.equal(method.heads[0].weight, a3.golden.method["fc.0.weight"])
    file.unlink()
    method.load_weights("visa")  # from the cache


def test_the_authors_files_have_names():
    known = AprilGAN.published_weights
    assert list(known) == ["mvtec", "visa"]
    for name, one in known.items():
        assert one.url.startswith("https://raw.githubusercontent.com/ByChelsea/VAND-APRIL-GAN/f13b8a6")
        assert one.url.endswith(f"/exps/pretrained/{name}_pretrained.pth")
        assert len(one.blob) == 40


# -- training --------------------------------------------------------------------------------------------------


@pytest.fixture
def small(tiny):
    return AprilGAN(tiny, None, 64, layers=[2, 4])


def loss(method, batch):
    return method.loss(method.encode_for_loss(batch["image"]), batch)


def test_the_class_of_the_first_image_for_all(tiny, small):
    batch = random_batch(4)
    other = AprilGAN(tiny, None, 64, layers=[2, 4], training_text="first")
    other.load_state_dict(small.state_dict())
    first = loss(other, batch)
    assert not torch.equal(first["focal"], loss(small, batch)["focal"])
    batch["class_name"] = ["bottle"] * 4
    torch.testing.assert_close(first, loss(small, batch))


def test_an_image_without_a_mask_is_left_out(small):
    batch = random_batch(3)
    batch["has_mask"][1] = False
    torch.testing.assert_close(loss(small, batch), loss(small, {key: value[::2] for key, value in batch.items()}))
    batch["has_mask"][:] = False
    nothing = loss(small, batch)
    assert nothing["focal"] == nothing["dice"] == 0
    torch.stack(list(nothing.values())).sum().backward()


def test_dice_of_a_single_image_is_over_all_of_its_pixels(small):
    """Published: over its rows, by a slip in a last batch of one image, which MVTec AD and VisA do not have."""
    batch = random_batch(2)
    one = {key: value[1:] for key, value in batch.items()}
    with torch.no_grad():
        margins = small.margins(small.encode(one["image"]), small.texts(one["class_name"]))
    maps = [upsample(margin, 64, align_corners=True).sigmoid() for margin in margins.unbind(1)]
    expected = sum(dice_loss(probability, one["mask"]) for probability in maps)
    torch.testing.assert_close(loss(small, one)["dice"], expected)
    assert [count % 8 for count in (1725, 2162)] == [5, 2]  # images of the test splits


def test_the_recipe(small):
    optimizer = small.configure_optimizers()
    assert isinstance(optimizer, torch.optim.Adam)
    assert optimizer.defaults["betas"] == (0.5, 0.999)
    assert optimizer.defaults["lr"] == 1e-3
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(p) for p in small.heads.parameters()}


# -- the interface ---------------------------------------------------------------------------------------------

OPTIONS = [{"layers": [2, 4]}, {"layers": [3], "memory_layers": [1, 4], "sigma": 2.0}]


@pytest.mark.parametrize("options", OPTIONS)
def test_conformance(tiny, options):
    check_method(AprilGAN, backbone=tiny, pretrained=None, image_size=64, **options)


def test_it_exports_with_references(tiny):
    def build(**options):
        method = AprilGAN(**options)
        method.fit_references([random_batch(2, seed=1)])
        return method

    dict(iter_checks(build, backbone=tiny, pretrained=None, image_size=64, layers=[2, 4]))["check_export"]()


def test_what_does_not_fit_is_refused(tiny):
    with pytest.raises(MethodError, match="different block numbers from 1 to 4"):
        AprilGAN(tiny, None, 64, layers=[2, 2])
    with pytest.raises(MethodError, match="different block numbers from 1 to 4"):
        AprilGAN(tiny, None, 64, layers=[2], memory_layers=[5])
    with pytest.raises((MethodError, BackboneError)):
        AprilGAN("timm:vit_tiny_patch16_224", "random", 64, layers=[2])

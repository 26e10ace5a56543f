"""AF-CLIP against tensors of its published code, the traps of that code, and its two files."""

import pickle
import shutil

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tests_support import DATA, Golden, golden, save_run

import vlad
from vlad.clip.similarity import normalize, upsample
from vlad.errors import MethodError, WeightsError
from vlad.methods.af_clip import AFCLIP, alignment_loss, focal_loss, neighbour_means
from vlad.testing import check_method, iter_checks, random_batch

FOLDER = DATA / "af_clip"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Golden:
    """The published run: eight blocks, four taps, two references, positions stored after their resize."""
    return golden(FOLDER, tmp_path_factory.mktemp("af_clip"))


@pytest.fixture(scope="module")
def train() -> dict[str, torch.Tensor]:
    return load_file(FOLDER / "train.safetensors")


def build(run, **options):
    config = run.meta["config"]
    settings = {"layers": config["feature_layers"], "memory_layers": config["memory_layers"], "weights": str(FOLDER)}
    return AFCLIP(run.backbone, None, run.meta["image_size"], **{**settings, **options}).eval()


def fit(run, method):
    images = run.out["in/references"]
    names = {name: ["run"] * len(images) for name in ("class_name", "dataset", "category")}
    method.fit_references([{"image": images, **names}])


@torch.no_grad()
def test_pieces(run):
    method = build(run)
    assert (method.length, method.head_width) == (12, 6)
    text = method.class_text("")
    run.out["text/unit"] = normalize(run.out["text"])
    run.check("text/unit", text)
    features = method.encode(run.out["in/images"])
    for place, layer in ((0, 2), (3, 8)):
        tokens = torch.cat([features.classes[place][:, None], features.levels[place].flatten(1, 2)], 1)
        run.check(f"tok/block_{layer}", tokens)
    for number, side in ((1, 3), (2, 5)):
        run.out[f"patches_{number}"] = run.out[f"aggregated_{number}"][:, 1:]
        run.check(f"patches_{number}", neighbour_means(features.levels[0], side))
        assert torch.equal(run.out[f"aggregated_{number}"][:, 0], run.out["tok/block_2"][:, 0])
    run.check("adapted_0", method.adaptor(run.out["tok/block_2"]))
    sets = method.token_sets(features)
    assert len(sets) == 12
    for number in (0, 2, 11):
        run.out[f"unit_{number}"] = normalize(run.out[f"projected_{number}"])
        run.check(f"unit_{number}", sets[number])


@torch.no_grad()
def test_zero_shot(run):
    method = build(run)
    images = run.out["in/images"]
    scores = method.compare(method.encode(images), method.texts(["any"] * 3))
    run.check("zero_shot/map_grid", scores.patches.sigmoid())
    prediction = method.finish(scores, images.shape[-2:])
    run.check("zero_shot/map_smooth", prediction.anomaly_map)
    run.check("zero_shot/score", prediction.image_score)


@torch.no_grad()
def test_few_shot(run):
    method = build(run)
    fit(run, method)
    (category,) = method.memory.categories
    banks = method.memory.levels_of(category)
    assert len(banks) == 12
    for name, bank in (("bank_0", banks[0]), ("bank_last", banks[-1])):
        run.out[f"few_shot/{name}/unit"] = normalize(run.out[f"few_shot/{name}"])
        run.check(f"few_shot/{name}/unit", bank)
    images = run.out["in/images"]
    features = method.encode(images)
    distance = method.nearest(features, banks)
    run.check("few_shot/memory_map_grid", distance)
    run.check("few_shot/memory_score", distance.amax((1, 2)))
    scores = method.compare(features, method.texts(["any"] * 3), banks)
    run.check("few_shot/map_grid", scores.memory + method.alpha * scores.patches[:, 0].sigmoid())
    prediction = method.score(images, ["any"] * 3)
    run.check("few_shot/map_smooth", prediction.anomaly_map)
    run.check("few_shot/score", prediction.image_score)


@pytest.mark.parametrize("gradients", ["published", "intended"])
def test_a_training_step(run, train, gradients):
    """The same losses either way; the published code's gradients are of targets that it has overwritten by then."""
    prefix = "" if gradients == "published" else "alias_free/"
    method = build(run, gradients=gradients).train()
    optimizer = method.configure_optimizers()
    batch = {"image": train["in/train_images"], "mask": train["in/train_masks"][:, 0] > 0.5}
    batch |= {"label": train["in/train_labels"], "class_name": ["any"] * 3}
    terms = method.loss(method.encode_for_loss(batch["image"]), batch)
    run.out.update({f"{prefix}{key}": value for key, value in train.items() if key.startswith("loss/")})
    for ours, theirs in (("image", "focal_image"), ("focal", "focal_mask"), ("l1", "l1"), ("alignment", "alignment")):
        run.check(f"{prefix}loss/{theirs}", terms[ours])
    total = torch.stack(list(terms.values())).sum()
    run.check(f"{prefix}loss/total", total)
    total.backward()
    published = {key: value for key, value in train.items() if key.startswith(f"{prefix}grad/")}
    after = {key.replace("/grad/", "/after/").replace("grad/", "after/"): None for key in published}
    named = method.published_state({key.removeprefix(f"{prefix}grad/"): value for key, value in published.items()})
    for name, gradient in named.items():
        run.out[f"{prefix}grad/{name}"] = gradient
        run.check(f"{prefix}grad/{name}", method.get_parameter(name).grad)
    optimizer.step()
    named = method.published_state({key.removeprefix(f"{prefix}after/"): train[key] for key in after})
    for name, expected in named.items():
        # Adam's first step is the gradient's sign: where that is as good as zero, it may differ.
        off = (method.get_parameter(name).detach() - expected).abs() > 2e-6
        assert off.float().mean() < 0.01, name


def test_masks_on_the_grid(run, train):
    """Without antialias: of each patch the pixels about its centre count; a half stays a half."""
    batch = {"image": train["in/train_images"], "mask": train["in/train_masks"][:, 0] > 0.5}
    grid = upsample(batch["mask"].float(), (8, 8), align_corners=False)
    rounded = torch.where(grid < 0.5, 0, torch.where(grid > 0.5, 1, grid))
    assert torch.equal(rounded, train["in/gts"][:, 0])
    assert ((rounded > 0) & (rounded < 1)).any()


# -- traps -----------------------------------------------------------------------------------------------------


def test_what_is_beyond_the_border_counts_as_zero():
    means = neighbour_means(torch.ones(1, 5, 5, 2), 3)[0, :, :, 0]
    assert means[2, 2] == pytest.approx(1)
    edge = torch.exp(torch.tensor(-1 / 32.0))
    assert means[2, 0] == pytest.approx(float((1 + edge) / (1 + 2 * edge)), abs=1e-6)
    assert means[0, 0] == pytest.approx(float(means[2, 0]) ** 2, abs=1e-6)


def test_overwritten_targets_change_the_gradient_and_not_the_loss():
    """As autograd gives it with the target overwritten in place behind its back."""
    torch.manual_seed(0)
    p, target = torch.rand(40) * 0.8 + 0.1, (torch.rand(40) > 0.6).float()
    first, second, third = (p.clone().requires_grad_() for _ in range(3))
    shared = target.clone()
    true = second * shared + (1 - second) * (1 - shared)
    loss = (F.binary_cross_entropy(second, shared, reduction="none") * (1 - true) ** 4).mean()
    shared.data[shared == 0] = -1  # what a shallow copy does
    loss.backward()
    ours = focal_loss(first, target, torch.where(target == 0, -1, target))
    ours.backward()
    torch.testing.assert_close(ours, loss)
    torch.testing.assert_close(first.grad, second.grad)
    focal_loss(third, target).backward()
    assert (first.grad - third.grad).abs().max() > 0.1 * third.grad.abs().max()


def test_alignment_is_of_all_pairs_of_the_batch():
    torch.manual_seed(0)
    tokens = normalize(torch.randn(3, 6, 4))
    target = torch.tensor([[1, 1, 0, 0, 0.5, 0], [0, 0, 0, 0, 0, 0], [1, 0, 1, 0.5, 0.5, 0]])
    sign = torch.where(target == 0, -1, target)
    pairs, cosines = sign[:, :, None] * sign[:, None], tokens @ tokens.mT
    expected = cosines[pairs == -1].mean() - cosines[pairs == 1].mean()
    torch.testing.assert_close(alignment_loss(tokens, target), F.relu(expected))
    like = normalize(torch.where(target[..., None] == 1, tokens, 5 - tokens))
    assert alignment_loss(like.flip(1), target) >= 0
    for one in (0.0, 1.0):  # nothing to tell apart
        assert alignment_loss(tokens, torch.full_like(target, one)) == 0


@torch.no_grad()
def test_the_map_plays_no_part_in_the_zero_shot_score(tiny):
    method = build_tiny(tiny)
    scores = method.compare(method.encode(random_batch(2)["image"]), method.texts(["a", "b"]))
    other = method.finish(scores._replace(patches=scores.patches + 1), (64, 64))
    assert torch.equal(other.image_score, scores.image[:, 0].sigmoid())


# -- on a tiny CLIP --------------------------------------------------------------------------------------------


def build_tiny(tiny, **options):
    method = AFCLIP(tiny, None, 64, **{"layers": [2, 4], **options}).eval()
    method.allow_untrained = True
    return method


def test_conformance(tiny):
    options = {"layers": [1, 3], "memory_layers": [2], "neighbours": [3], "length": 4, "gradients": "intended"}
    check_method(AFCLIP, backbone=tiny, pretrained=None, image_size=64, **options)


def test_it_exports_with_references(tiny):
    def with_references(**options):
        method = AFCLIP(**options)
        method.fit_references([random_batch(2, seed=1)])
        return method

    dict(iter_checks(with_references, backbone=tiny, pretrained=None, image_size=64, layers=[2, 4]))["check_export"]()


@torch.no_grad()
def test_the_largest_distance_is_of_what_is_inspected(tiny):
    method = build_tiny(tiny)
    memory = torch.zeros(1, 4, 4)
    memory[0, 0, 0], memory[0, 2, 2] = 1.0, 0.5
    scores = method.compare(method.encode(random_batch(1)["image"]), method.texts(["a"]))._replace(memory=memory)
    roi = torch.zeros(1, 64, 64, dtype=torch.bool)
    roi[:, 20:, 20:] = True
    everywhere, inside = method.finish(scores, (64, 64)), method.finish(scores._replace(roi=roi), (64, 64))
    assert float(everywhere.image_score - inside.image_score) == pytest.approx(0.5, abs=1e-6)


def test_an_image_without_a_mask_teaches_the_image_score_alone(tiny):
    method, batch = build_tiny(tiny).train(), random_batch(4)
    features = method.encode_for_loss(batch["image"])
    whole = method.loss(features, batch)
    batch["has_mask"][1] = False
    some = method.loss(features, batch)
    assert torch.equal(some["image"], whole["image"])
    assert not torch.equal(some["focal"], whole["focal"])
    batch["has_mask"][:] = False
    alone = method.loss(features, batch)
    assert float(alone["focal"].detach()) == float(alone["alignment"].detach()) == 0
    torch.stack(list(alone.values())).sum().backward()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"neighbours": [2]}, "neighbours are odd numbers of patches"),
        ({"length": 73}, "length must be from 1 to 72"),
        ({"head_width": 0}, "head_width must be at least 1"),
        ({"layers": [5]}, "different block numbers from 1 to 4"),
    ],
)
def test_settings_out_of_range(tiny, options, message):
    with pytest.raises(MethodError, match=message):
        AFCLIP(tiny, None, 64, **{"layers": [2], **options})


# -- files -----------------------------------------------------------------------------------------------------


def test_the_authors_two_files_in_every_form(run, tmp_path, monkeypatch):
    """A folder, either file, a name, or plain tensors; and our own file of it, which knows the settings."""
    expected = run.method["adaptor.attention.attn.to_q.weight"]
    save_file(run.method, tmp_path / "both.safetensors")
    for given in (FOLDER, FOLDER / "mvtec_prompt.pt", FOLDER / "mvtec_adaptor.pt", tmp_path / "both.safetensors"):
        method = build(run, weights=str(given))
        assert torch.equal(method.adaptor.to_q.weight, expected)
        assert torch.equal(method.words, run.method["state_prompt_embedding"][0])
    again = vlad.load(save_run(method, tmp_path / "run")).method
    assert again.length == 12
    assert again.head_width == 6
    assert torch.equal(again.adaptor.to_out.bias, method.adaptor.to_out.bias)


def test_the_authors_files_have_names(run, tmp_path, monkeypatch):
    from vlad.methods import af_clip_published as module

    assert list(AFCLIP.published_weights) == ["mvtec", "visa"]
    for one in (*module.PUBLISHED.values(), *module._ADAPTORS.values()):
        assert one.url.startswith("https://raw.githubusercontent.com/Faustinaqq/AF-CLIP/bb7edec")
        assert len(one.blob) == 40
    fetched = []
    monkeypatch.setattr(
        module.InRepository, "fetch", lambda self: fetched.append(self.file) or FOLDER / self.file.rpartition("/")[2]
    )
    method = build(run, weights="mvtec")
    assert set(fetched) == {"weight/mvtec_prompt.pt", "weight/mvtec_adaptor.pt"}
    assert method.origin == "weights mvtec"


class Evil:
    def __reduce__(self):
        return (print, ("code ran",))


def test_files_that_are_refused(run, tmp_path, capsys):
    shutil.copy(FOLDER / "mvtec_prompt.pt", tmp_path / "mvtec_prompt.pt")
    with pytest.raises(WeightsError, match=r"mvtec_adaptor\.pt does not exist"):
        build(run, weights=str(tmp_path))
    for write in (torch.save, lambda content, file: file.write_bytes(pickle.dumps(content))):
        write(Evil(), tmp_path / "mvtec_adaptor.pt")
        with pytest.raises(WeightsError, match=r"mvtec_adaptor\.pt (is refused|cannot be read)"):
            build(run, weights=str(tmp_path / "mvtec_adaptor.pt"))
    assert "code ran" not in capsys.readouterr().out
    torch.save({"weight": torch.zeros(2)}, tmp_path / "mvtec_adaptor.pt")
    with pytest.raises(WeightsError, match="neither a vlad checkpoint nor in the published format of AFCLIP"):
        build(run, weights=str(tmp_path))
    shutil.copy(FOLDER / "mvtec_prompt.pt", tmp_path / "visa_prompt.pt")
    with pytest.raises(WeightsError, match=r"several weights: mvtec_prompt\.pt, visa_prompt\.pt"):
        build(run, weights=str(tmp_path))
    with pytest.raises(WeightsError, match=r"adaptor\.to_k\.weight has shape \(48, 48\), expected \(32, 48\)"):
        build(run, head_width=4)

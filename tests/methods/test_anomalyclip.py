"""AnomalyCLIP against its published code, number by number, and what the published code cannot do."""

import hashlib
import pickle
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tests_support import DATA, Golden, golden, save_run

import vlad
from vlad.checkpoint import export_weights
from vlad.clip import AttentionBranch
from vlad.clip.attention import local_attention, project_out, project_qkv
from vlad.clip.blocks import run_blocks
from vlad.errors import MethodError, WeightsError
from vlad.methods.anomalyclip import AnomalyCLIP
from vlad.published import InRepository
from vlad.testing import CHECKS, iter_checks, random_batch

LAYERS = (2, 4, 6, 8)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Golden:
    """The published run: eight blocks, the local path from the fourth, four layers of which the first lies ahead."""
    found = golden(DATA / "anomalyclip", tmp_path_factory.mktemp("anomalyclip"))
    for name in ("scores", "train"):
        found.out.update(load_file(DATA / "anomalyclip" / f"{name}.safetensors"))
    return found


def released(tensors, width=64):
    """Returns a file in the released format, with the projections that nothing uses."""
    depth = sum(key.startswith("compound_prompts_text.") for key in tensors)
    dead = {f"compound_prompt_projections.{n}.weight": torch.zeros(896, width) for n in range(depth)}
    return {"prompt_learner": {**dead, **tensors}}


def build(run, tmp_path, **options):
    torch.save(released(run.method), tmp_path / "epoch_15.pth")
    config = run.meta["config"]
    settings = {
        "layers": config["features"],
        "local_from": config["v_layers"] - config["dpam"] + 2,
        "sigma": config["sigma"],
        "weights": str(tmp_path / "epoch_15.pth"),
        **options,
    }
    return AnomalyCLIP(run.backbone, None, config["image"], **settings).eval()


def test_settings_are_read_off_the_file(run, tmp_path):
    method, config = build(run, tmp_path), run.meta["config"]
    assert (method.length, method.depth, method.deep_length) == (config["n_ctx"], config["depth"], config["t_n_ctx"])


@torch.no_grad()
def test_text(run, tmp_path):
    method = build(run, tmp_path)
    assert torch.equal(method.text_tower.tokenize(method.sentences()).int(), run.out["text.tokens"])
    run.check("text.features", method.texts(["anything"])[0])
    raw = run.out["text.features_raw_without_half"]
    run.out["text.features_without_half"] = F.normalize(raw, dim=-1)
    exact = build(run, tmp_path, half_prompts=False).texts(["anything"])[0]
    run.check("text.features_without_half", exact)
    assert (exact - method.texts(["anything"])[0]).abs().max() > 1e-4


@torch.no_grad()
def test_outputs(run, tmp_path):
    method = build(run, tmp_path)
    images = torch.cat([run.out[f"img{n}.image"] for n in range(3)])
    features = method.encode(images)
    scores = method.compare(features, method.texts(["01"] * 3))
    prediction = method.finish(scores, images.shape[-2:])
    run.check("cls01.image_scores", prediction.image_score)
    for n in range(3):
        run.check(f"img{n}.map_sum", prediction.unsmoothed_map[n])
        run.check(f"img{n}.anomaly_map", prediction.anomaly_map[n])
        run.check(f"img{n}.cls_feature_raw", features.image[n])
    for level, layer in enumerate(LAYERS):
        without = run.out[f"img0.patch_feature_raw.layer{layer}"][:, 1:]  # the class token
        run.out[f"img0.patch_feature_raw.layer{layer}.patches"] = without
        run.check(f"img0.patch_feature_raw.layer{layer}.patches", features.levels[level][0])
        abnormal = scores.patches[:, level].sigmoid()
        for n in range(3):
            run.out[f"img{n}.similarity.layer{layer}.patches"] = run.out[f"img{n}.similarity.layer{layer}"][:, 1:]
            both = torch.stack([1 - abnormal[n], abnormal[n]], -1)
            run.check(f"img{n}.similarity.layer{layer}.patches", both)
        upsampled = method.map_of(scores._replace(patches=scores.patches[:, level : level + 1]), images.shape[-2:])[0]
        run.check(f"img0.map_up.layer{layer}", torch.stack([1 - upsampled, upsampled], -1))


@pytest.mark.parametrize("kind", ["batch3", "plain", "ffn"])
@torch.no_grad()
def test_towers(run, tmp_path, kind):
    """Both paths; no local path; and, of the core's pieces, the branch with an MLP that is published and never run."""
    method = build(run, tmp_path, local_from=9 if kind == "plain" else 4)
    images = torch.cat([run.out[f"img{n}.image"] for n in range(3)])
    features = method.encode(images)
    run.check(f"{kind}.cls_feature_raw", features.image)
    levels = [level.flatten(1, 2) for level in features.levels]
    if kind == "ffn":
        tower = method.backbone.image
        blocks = tower.visual.transformer.resblocks
        tokens = run_blocks(
            blocks, tower.embed(images), layers=range(1, 9), branch=AttentionBranch(4), branch_layers=[4]
        )
        for level, number in enumerate(LAYERS):
            stream = tokens.branch[4] if number == 4 else tokens.hidden_states[number]
            if number > 4:
                before, block = tokens.hidden_states[number - 1], blocks[number - 1]
                values = local_attention("vv", *project_qkv(block.attn, block.ln_1(before)))
                stream = before + project_out(block.attn, values)
                stream = stream + block.mlp(block.ln_2(stream))
            levels[level] = tower.project(stream[:, 1:])
    for level, layer in zip(levels, LAYERS, strict=True):
        run.out[f"{kind}.layer{layer}"] = run.out[f"{kind}.patch_feature_raw.layer{layer}"][:, 1:]
        run.check(f"{kind}.layer{layer}", level)


def step(run, method):
    """Returns features and text of the training batch as the joints hand them on, scores, and the named losses."""
    features, text = method.encode(run.out["train.images"]), method.texts(["01"] * 4)
    scores = method.compare(features, text)
    return scores, method.losses(scores.patches, scores.image[:, 0], run.out["train.gt"], run.out["train.labels"])


def test_losses(run, tmp_path):
    method = build(run, tmp_path).train()
    scores, terms = step(run, method)
    logits = run.out["train.logits_image"]
    torch.testing.assert_close(scores.image[:, 0], logits[:, 1] - logits[:, 0], rtol=1e-4, atol=1e-4)
    for layer in range(4):
        up = method.map_of(scores._replace(patches=scores.patches[1:2, layer : layer + 1]), (112, 112))
        run.check(f"train.prob_up.{layer}", torch.stack([1 - up, up], 1))
    expected = {
        "image": run.out["train.loss.image_ce"],
        "focal": 4 * sum(run.out[f"train.loss.focal.{n}"] for n in range(4)),
        "dice": 4 * sum(run.out[f"train.loss.dice.{n}"] for n in (0, 2, 4, 6)),
        "dice_normal": 4 * sum(run.out[f"train.loss.dice.{n}"] for n in (1, 3, 5, 7)),
    }
    assert terms.keys() == expected.keys()
    for name, term in terms.items():
        run.out[f"train.{name}"] = expected[name]
        run.check(f"train.{name}", term)
    run.check("train.loss.total", torch.stack(list(terms.values())).sum())
    batch = {
        **{"image": run.out["train.images"], "mask": run.out["train.gt"], "label": run.out["train.labels"]},
        **{"has_mask": torch.ones(4, dtype=torch.bool), "class_name": ["01"] * 4},
    }
    again = method.loss(method.encode_for_loss(batch["image"]), batch)
    for name, term in again.items():
        assert torch.equal(term, terms[name]), name


def named(run, what):
    """Returns tensors of the published training step under our names."""
    prefix = f"train.{what}."
    learner = {key.removeprefix(prefix): value for key, value in run.out.items() if key.startswith(prefix)}
    found = {"words": torch.cat([learner["ctx_pos"], learner["ctx_neg"]]).flatten(0, 1)}
    return found | {f"deep_prompts.block_{n + 2}": learner[f"compound_prompts_text.{n}"] for n in range(8)}


def test_gradients_and_the_step(run, tmp_path):
    method = build(run, tmp_path).train()
    optimizer = method.configure_optimizers()
    torch.stack(list(step(run, method)[1].values())).sum().backward()
    for name, gradient in named(run, "grad").items():
        own = method.get_parameter(name).grad
        run.out[f"train.grad.{name}"] = gradient
        if name == "words":
            run.check(f"train.grad.{name}", own)
            continue
        # Each sentence's gradient of a deep prompt is rounded to half precision: where the published one rounds to the
        # other neighbour, the two differ by one part in 1024 of that number.
        run.check(f"train.grad.{name}", own, rtol=1e-3)
        rounded = ((own - gradient).abs() > 1e-4 * gradient.abs().max()).float().mean()
        assert rounded < 0.05, name
    assert not any(p.requires_grad for p in method.backbone.parameters())
    optimizer.step()
    for name, expected in named(run, "after").items():
        # Adam's first step is the gradient's sign: where that is as good as zero, it may differ.
        off = (method.get_parameter(name).detach() - expected).abs() > 1e-4
        assert off.float().mean() < 0.01, name


# -- without goldens: on a tiny CLIP -------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"layers": [1, 3, 4], "local_from": 2, "length": 5, "deep_length": 2}])
@pytest.mark.parametrize("check", [check.__name__ for check in CHECKS])
def test_conforms(tiny, check, options):
    dict(iter_checks(AnomalyCLIP, backbone=tiny, pretrained=None, image_size=64, **options))[check]()


def build_tiny(tiny, **options):
    method = AnomalyCLIP(tiny, None, 64, **options).eval()
    method.allow_untrained = True
    return method


def test_by_default_the_last_layer_and_a_quarter_of_the_depth(tiny):
    method = build_tiny(tiny)
    assert (method.layers, method.local_from, method.depth, method.length) == ((4,), 1, 2, 12)


@torch.no_grad()
def test_the_text_is_encoded_once_until_the_prompts_change(tiny, monkeypatch):
    method, calls = build_tiny(tiny), []
    monkeypatch.setattr(
        method.text_tower, "run", lambda *a, _real=method.text_tower.run, **k: calls.append(1) or _real(*a, **k)
    )
    batch = random_batch(3)
    first = method.score(batch["image"], batch["class_name"])
    again = method.score(batch["image"], ["other", "names", "here"])  # no class name matters
    assert torch.equal(first.anomaly_map, again.anomaly_map)
    assert len(calls) == 1
    method.words.add_(0.5)
    assert not torch.equal(method.score(batch["image"], batch["class_name"]).anomaly_map, first.anomaly_map)
    method.deep_prompts["block_2"].add_(0.5)
    method.score(batch["image"], batch["class_name"])
    assert len(calls) == 3


@torch.no_grad()
def test_the_local_path_never_changes_the_image_score(tiny):
    batch = random_batch(2)
    torch.manual_seed(0)
    first = build_tiny(tiny, local_from=1).score(batch["image"], batch["class_name"])
    torch.manual_seed(0)
    second = build_tiny(tiny, local_from=3).score(batch["image"], batch["class_name"])
    torch.testing.assert_close(first.image_score, second.image_score, rtol=1e-5, atol=1e-6)
    assert (first.anomaly_map - second.anomaly_map).abs().max() > 1e-3


@torch.no_grad()
def test_maps_of_layers_are_added(tiny):
    batch = random_batch(2)
    torch.manual_seed(0)
    whole = build_tiny(tiny, layers=[2, 4]).score(batch["image"], batch["class_name"])
    total = 0
    for layer in (2, 4):
        torch.manual_seed(0)
        total = total + build_tiny(tiny, layers=[layer]).score(batch["image"], batch["class_name"]).anomaly_map
    torch.testing.assert_close(whole.anomaly_map, total, rtol=1e-5, atol=1e-6)


def test_an_image_without_a_mask_teaches_the_image_score_alone(tiny):
    method, batch = build_tiny(tiny).train(), random_batch(3)
    features = method.encode_for_loss(batch["image"])
    batch["has_mask"][1] = False  # the anomalous one
    terms = method.loss(features, batch)
    scores = method.compare(features, method.texts(batch["class_name"]))
    rows = [0, 2]
    expected = method.losses(scores.patches[rows], scores.image[:, 0], batch["mask"][rows], batch["label"])
    for name, term in terms.items():
        torch.testing.assert_close(term, expected[name])
    batch["has_mask"][:] = False
    alone = method.loss(features, batch)
    torch.testing.assert_close(alone["image"], terms["image"])
    assert float(alone["focal"]) == float(alone["dice"]) == 0
    torch.stack(list(alone.values())).sum().backward()


def test_rows_of_the_last_block_that_nobody_reads_are_not_run(tiny):
    method, seen = build_tiny(tiny), []
    blocks = method.backbone.image.visual.transformer.resblocks
    hooks = [block.mlp.c_fc.register_forward_hook(lambda m, i, o: seen.append(o.shape[1])) for block in blocks]
    method.encode(random_batch(1)["image"])
    for hook in hooks:
        hook.remove()
    assert seen == [17, 17, 17, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 3}, "depth must be from 1 to 2"),
        ({"local_from": 0}, "local_from is a block number"),
        ({"length": 3, "deep_length": 4}, "deep_length must be from 1 to length"),
        ({"length": 73}, "length at most 72"),
        ({"layers": [5]}, "layers must be different block numbers from 1 to 4"),
    ],
)
def test_settings_out_of_range(tiny, options, message):
    with pytest.raises(MethodError, match=message):
        AnomalyCLIP(tiny, None, 64, **options)


# -- files ---------------------------------------------------------------------------------------------------


def saved(method):
    """Returns the trained part of a method as the published code saves it."""
    ids = method.text_tower.tokenize(method.sentences())
    embedded = method.text_tower.embed(ids).detach()
    learner = {}
    for row, name in enumerate(("pos", "neg")):
        learner[f"ctx_{name}"] = torch.randn(1, 1, method.length, 32)
        learner[f"tokenized_prompts_{name}"] = ids[row].int()[None, None]
        learner[f"token_prefix_{name}"] = embedded[row, :1][None, None].clone()
        learner[f"token_suffix_{name}"] = embedded[row, 1 + method.length :][None, None].clone()
    for n in range(method.depth - 1):
        learner[f"compound_prompts_text.{n}"] = torch.randn(method.deep_length, 32)
    return learner


@pytest.fixture
def learner(tiny):
    return saved(AnomalyCLIP(tiny, None, 64, length=5, deep_length=3))


def load(tiny, tmp_path, learner):
    torch.save(released(learner, 32), tmp_path / "epoch_15.pth")
    return AnomalyCLIP(tiny, None, 64, weights=str(tmp_path / "epoch_15.pth"))


def test_a_released_file_and_our_own_are_the_same_method(tiny, tmp_path, learner):
    method = load(tiny, tmp_path, learner).eval()
    assert (method.length, method.depth, method.deep_length) == (5, 2, 3)
    assert torch.equal(method.words[1], learner["ctx_neg"][0, 0])
    assert torch.equal(method.deep_prompts["block_2"], learner["compound_prompts_text.0"])
    run = save_run(method, tmp_path / "run")
    file = export_weights(run, tmp_path / "own.safetensors")
    assert file.stat().st_size < 10_000  # no projections, no embeddings, no CLIP
    batch = random_batch(2)
    with torch.no_grad():
        expected = method.score(batch["image"], batch["class_name"]).anomaly_map
        for other in (vlad.load(run).method, AnomalyCLIP(tiny, None, 64, weights=str(file)).eval()):
            assert torch.equal(other.score(batch["image"], batch["class_name"]).anomaly_map, expected)


def test_files_that_do_not_fit_are_refused(tiny, tmp_path, learner):
    with pytest.raises(WeightsError, match=r"another CLIP: its embedding of the start token differs by"):
        load(tiny, tmp_path, {**learner, "token_prefix_pos": learner["token_prefix_pos"] + 1})
    other = learner["tokenized_prompts_neg"].clone()
    other[0, 0, 6] = 15000
    with pytest.raises(WeightsError, match=r"other sentences: its tokens \(neg\) are 49406 15000 14115 269 49407"):
        load(tiny, tmp_path, {**learner, "tokenized_prompts_neg": other})
    with pytest.raises(WeightsError, match=r"words has shape \(2, 5, 16\), expected \(2, 5, 32\)"):
        load(tiny, tmp_path, {**learner, **{f"ctx_{name}": torch.randn(1, 1, 5, 16) for name in ("pos", "neg")}})
    with pytest.raises(WeightsError, match="holds NaN or infinity in words"):
        load(tiny, tmp_path, {**learner, "ctx_pos": learner["ctx_pos"] * torch.nan})
    with pytest.raises(WeightsError, match="neither a vlad checkpoint nor in the published format of AnomalyCLIP"):
        load(tiny, tmp_path, {key: value for key, value in learner.items() if key != "ctx_neg"})
    save_file({"other": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match="neither a vlad checkpoint nor in the published format of AnomalyCLIP"):
        AnomalyCLIP(tiny, None, 64, weights=str(tmp_path / "other.safetensors"))
    torch.save(released(learner, 32), tmp_path / "epoch_15.pth")
    with pytest.raises(WeightsError, match=r"unexpected deep_prompts\.block_2"):
        AnomalyCLIP(tiny, None, 64, depth=1, weights=str(tmp_path / "epoch_15.pth"))


class Evil:
    def __reduce__(self):
        return (print, ("code ran",))


def test_a_pickle_with_code_is_refused(tiny, tmp_path, capsys):
    path = tmp_path / "evil.pth"
    torch.save({"prompt_learner": {"ctx_pos": Evil()}}, path)
    with pytest.raises(WeightsError, match=r"evil\.pth is refused: it holds Python objects"):
        AnomalyCLIP(tiny, None, 64, weights=str(path))
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(WeightsError, match=r"evil\.pth"):
        AnomalyCLIP(tiny, None, 64, weights=str(path))
    assert "code ran" not in capsys.readouterr().out


@pytest.fixture
def served(monkeypatch, tmp_path):
    """A host on this machine in place of GitHub's; returns the answers by path, which a test fills."""
    answers = {}

    class Host(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path in answers else 404)
            self.end_headers()
            self.wfile.write(answers.get(self.path, b""))

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Host)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("VLAD_GITHUB_RAW", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("VLAD_CACHE", str(tmp_path / "cache"))
    yield answers
    server.shutdown()
    server.server_close()


def test_the_authors_weights_by_name(tiny, tmp_path, learner, served, monkeypatch):
    torch.save(released(learner, 32), tmp_path / "file.pth")
    content = (tmp_path / "file.pth").read_bytes()
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    known = replace(AnomalyCLIP.published_weights["visa"], blob=blob)
    monkeypatch.setattr(AnomalyCLIP, "published_weights", {"visa": known})
    path = f"/zqhang/AnomalyCLIP/{known.commit}/checkpoints/9_12_4_multiscale/epoch_15.pth"
    with pytest.raises(WeightsError, match=r"cannot download .*epoch_15\.pth: Not Found.*weights: epoch_15\.pth"):
        AnomalyCLIP(tiny, None, 64, weights="visa")
    served[path] = content[:-1]
    with pytest.raises(WeightsError, match=r"is not the file that was committed there"):
        AnomalyCLIP(tiny, None, 64, weights="visa")
    served[path] = content
    assert torch.equal(AnomalyCLIP(tiny, None, 64, weights="visa").words[0], learner["ctx_pos"][0, 0])
    served.clear()  # now from the cache
    assert AnomalyCLIP(tiny, None, 64, weights="visa").origin.endswith("epoch_15.pth")
    with pytest.raises(WeightsError, match="neither a file nor published; did you mean"):
        AnomalyCLIP(tiny, None, 64, weights="visaa")


def test_what_is_published_is_named_by_commit_and_content():
    for known in AnomalyCLIP.published_weights.values():
        assert isinstance(known, InRepository)
        assert known.url.startswith("https://raw.githubusercontent.com/zqhang/AnomalyCLIP/45ed4dd")
        assert len(known.commit) == len(known.blob) == 40

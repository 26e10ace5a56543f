"""The block loop against open_clip itself: plain features, hidden states, any size, text, truncation."""

import copy

import open_clip
import pytest
import torch

from vlad.clip import AttentionBranch, Backbone, Numerics, append_prompts, overwrite_prompts, run_blocks
from vlad.clip.attention import attend
from vlad.clip.backbone import random_clip, save_local
from vlad.clip.similarity import restrict_patches, smooth, to_grid, upsample, zero_to_one
from vlad.clip.text import PackedSentences, pack_sentences
from vlad.encoders.positions import resize_positions
from vlad.errors import BackboneError

TINY_CLIP = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 64, "layers": 4, "width": 48, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
SENTENCES = ["a photo of a bottle.", "a close-up photo of a metal_nut with scratch.", "x"]


@pytest.fixture(scope="module")
def backbone(tiny_model):
    return Backbone(tiny_model, open_clip.get_tokenizer("ViT-B-32"))


@pytest.fixture(scope="module")
def images():
    return torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def close(a, b, tolerance=1e-5):
    assert float((a - b).abs().max() / b.abs().max()) < tolerance


@torch.no_grad()
def test_plain_features_equal_open_clip(backbone, tiny_model, images):
    close(backbone.image.encode(images), tiny_model.encode_image(images))
    tokens = backbone.text.tokenize(SENTENCES)
    close(backbone.text.encode(SENTENCES), tiny_model.encode_text(tokens))
    close(backbone.text.encode(SENTENCES, chunk=1), tiny_model.encode_text(tokens))


@torch.no_grad()
def test_hidden_states_equal_open_clip(backbone, tiny_model, images):
    tokens = backbone.image.run(backbone.image.embed(images), layers=[1, 3, 4])
    theirs = tiny_model.visual.forward_intermediates(
        images, indices=[0, 2, 3], output_fmt="NLC", output_extra_tokens=True
    )
    for number, patches in zip([1, 3, 4], theirs["image_intermediates"], strict=True):
        close(tokens.hidden_states[number][:, 1:], patches)
    close(tokens.last, tokens.hidden_states[4])


@torch.no_grad()
@pytest.mark.parametrize("size", [32, 96, 144])
def test_other_sizes_equal_open_clips_own_resize(size, tmp_path, images):
    model = random_clip(TINY_CLIP)
    save_local(model, TINY_CLIP, tmp_path)
    config = copy.deepcopy(TINY_CLIP)
    config["vision_cfg"]["image_size"] = size
    resized = open_clip.CustomTextCLIP(**config).eval()
    open_clip.load_checkpoint(resized, str(tmp_path / "open_clip_model.safetensors"))
    image = torch.randn(2, 3, size, size)
    ours = Backbone.load(f"local-dir:{tmp_path}")
    close(ours.image.encode(image), resized.encode_image(image))


def test_position_resize_variants_differ():
    positions = torch.randn(17, 8, generator=torch.Generator().manual_seed(0))
    assert resize_positions(positions, (4, 4), mode="bicubic", antialias=True) is positions
    variants = [
        resize_positions(positions, (7, 7), mode=mode, antialias=antialias)
        for mode, antialias in (("bicubic", True), ("bicubic", False), ("bilinear", False))
    ]
    assert all(v.shape == (50, 8) and torch.equal(v[0], positions[0]) for v in variants)
    assert not torch.allclose(variants[0], variants[1])
    assert not torch.allclose(variants[1], variants[2])


@torch.no_grad()
def test_rectangular_images_run(backbone):
    assert backbone.image.encode(torch.randn(1, 3, 32, 80)).shape == (1, 32)


def test_positions_are_resized_once_and_follow_the_tower(tiny_model, images):
    tower = Backbone(copy.deepcopy(tiny_model), None, text=False).image
    with torch.inference_mode():
        first = tower.embed(images[..., :32, :32])
    assert torch.equal(tower.embed(images[..., :32, :32]), first)
    assert tower.double().embed(images[..., :32, :32].double()).dtype == torch.float64


@torch.no_grad()
def test_the_mlp_leaves_its_input_alone(backbone, images):
    blocks = backbone.image.visual.transformer.resblocks
    x = backbone.image.embed(images)
    before = x.clone()
    alone = run_blocks(blocks, x, layers=[1, 2])
    assert torch.equal(x, before)
    with torch.enable_grad():
        learned = run_blocks(blocks, x.clone().requires_grad_(), layers=[1, 2])
    for number in (1, 2):
        close(alone.hidden_states[number], learned.hidden_states[number], 1e-6)


@torch.no_grad()
def test_packed_sentences_are_what_they_are_alone(backbone):
    tower = backbone.text
    packs, expected = [], []
    for sentences in (SENTENCES, ["a photo of a nut.", "a photo", "a photo of a very long bottle with a scratch"]):
        ids = tower.tokenize(sentences)
        ends = tower.ends(ids)
        x = tower.embed(ids) + tower.text.positional_embedding
        packs.append(pack_sentences(x, ends, 1))
        expected.append(tower.encode(sentences))
        assert len(packs[-1].tokens) == 1 + int(ends.sum())  # nothing beyond an end, the start once
    stack = PackedSentences.stack(packs)
    out = run_blocks(tower.text.transformer.resblocks, stack.tokens, mask=stack.mask).last
    close(tower.finish(out, stack.ends), torch.stack(expected))
    ids = tower.tokenize(["a photo of a nut.", "a photo"])
    pack = pack_sentences(tower.embed(ids) + tower.text.positional_embedding, tower.ends(ids), 4)
    assert pack.ends.tolist() == [int(tower.ends(ids)[0]), 3]  # an end among the shared tokens


def test_size_that_the_patch_does_not_divide(backbone):
    with pytest.raises(BackboneError, match="70x70 is no multiple of the patch size 16; use 64 or 80"):
        backbone.image.embed(torch.randn(1, 3, 70, 70))


@torch.no_grad()
def test_nothing_runs_beyond_the_last_layer(backbone, images):
    blocks = backbone.image.visual.transformer.resblocks
    ran = []
    hooks = [block.mlp.c_proj.register_forward_hook(lambda *_, n=n: ran.append(n)) for n, block in enumerate(blocks, 1)]
    x = backbone.image.embed(images)
    full = run_blocks(blocks, x, layers=[2], attended=[3])
    ran.clear()
    part = run_blocks(blocks, x, layers=[2], attended=[3], need_last=False)
    for hook in hooks:
        hook.remove()
    assert ran == [1, 2]  # block 3 stops after its attention
    assert torch.equal(part.hidden_states[2], full.hidden_states[2])
    assert torch.equal(part.attended[3], full.attended[3])


@torch.no_grad()
def test_the_branch_follows_its_definition(backbone, images):
    blocks = backbone.image.visual.transformer.resblocks
    x = backbone.image.embed(images)
    tokens = run_blocks(
        blocks, x, layers=[1, 2, 3], branch=AttentionBranch(first=2, restarts={4}), branch_layers=[2, 3, 4]
    )
    plain = run_blocks(blocks, x, layers=[1, 2, 3, 4])
    close(tokens.last, plain.hidden_states[4])  # the ordinary tokens are untouched

    def update(number, stream):
        block = blocks[number - 1]
        y = block.ln_1(stream)
        w, b = block.attn.in_proj_weight.chunk(3)[2], block.attn.in_proj_bias.chunk(3)[2]
        v = (y @ w.T + b).unflatten(-1, (block.attn.num_heads, -1)).transpose(1, 2)
        weights = (v @ v.transpose(-1, -2) / v.shape[-1] ** 0.5).softmax(-1)
        return block.attn.out_proj((weights @ v).transpose(1, 2).flatten(2))

    second = plain.hidden_states[1] + update(2, plain.hidden_states[1])
    close(tokens.branch[2], second)
    close(tokens.branch[3], second + update(3, plain.hidden_states[2]))
    close(tokens.branch[4], update(4, plain.hidden_states[3]))


@torch.no_grad()
def test_tokens_are_edited_behind_a_block_and_its_attention_replaced(backbone, images):
    tower, seen = backbone.image, []
    x = tower.embed(images)
    plain = tower.run(x, layers=[1, 2])

    def double(number, x):
        return 2 * x if number == 1 else x

    def own(number, q, k, v):
        seen.append((number, tuple(v.shape)))
        return attend(q, k, v)

    edited = tower.run(x, layers=[1], after=double)
    close(edited.hidden_states[1], 2 * plain.hidden_states[1])  # read behind the edit
    blocks = tower.visual.transformer.resblocks
    close(edited.last, run_blocks(blocks[1:], edited.hidden_states[1]).last)
    close(tower.run(x, attention=own).last, plain.last)
    assert seen == [(number, (3, 3, 17, 16)) for number in range(1, 5)]
    values = tower.run(x, layers=[1], attention=lambda n, q, k, v: attend(v, v, v))
    assert (values.hidden_states[1] - plain.hidden_states[1]).abs().max() > 1e-2


def test_contradictions_are_refused(backbone, images):
    blocks, x = backbone.image.visual.transformer.resblocks, backbone.image.embed(images)
    with pytest.raises(ValueError, match="from 1 to 4, got"):
        run_blocks(blocks, x, layers=[0, 5])
    with pytest.raises(ValueError, match="needs a branch"):
        run_blocks(blocks, x, branch_layers=[2])
    with pytest.raises(ValueError, match="starts at block 3"):
        run_blocks(blocks, x, branch=AttentionBranch(first=3), branch_layers=[2])
    with pytest.raises(ValueError, match="class_token_only"):
        run_blocks(blocks, x, layers=[4], class_token_only=True)


@torch.no_grad()
def test_appended_prompts_are_refreshed_and_order_does_not_matter(backbone, images):
    blocks, x = backbone.image.visual.transformer.resblocks, backbone.image.embed(images)
    prompts = {1: torch.randn(2, 48), 2: torch.randn(3, 2, 48)}
    tokens = run_blocks(blocks, x, before=append_prompts(prompts, x.shape[1]), layers=[1, 2])
    assert tokens.last.shape[1] == x.shape[1] + 2
    by_hand = run_blocks(blocks[:1], torch.cat([x, prompts[1].expand(3, -1, -1)], 1)).last
    close(tokens.hidden_states[1], by_hand)
    front = torch.cat([prompts[2], by_hand[:, :-2]], 1)  # no positions: the place in the sequence is free
    close(tokens.hidden_states[2][:, :-2], run_blocks(blocks[1:2], front).last[:, 2:])


def test_learned_words_and_overwritten_prompts_get_gradients_only(backbone):
    tower = backbone.text
    ids = tower.tokenize(["X X X X object."])
    words = tower.embed(ids).detach().clone()
    context = torch.nn.Parameter(words[:, 1:5].clone())
    deep = torch.nn.Parameter(torch.randn(2, tower.width))
    words = torch.cat([words[:, :1], context, words[:, 5:]], 1)
    feature = tower.run(words, tower.ends(ids), before=overwrite_prompts({2: deep}))
    feature.sum().backward()
    assert context.grad.abs().sum() > 0
    assert deep.grad.abs().sum() > 0
    assert all(p.grad is None for p in backbone.parameters())


def test_activation_switch(tiny, tiny_model):
    gelu = Backbone.load(tiny)
    quick = Backbone.load(tiny, numerics=Numerics(activation="quick_gelu"))
    image = torch.randn(1, 3, 64, 64)
    assert not torch.allclose(gelu.image.encode(image), quick.image.encode(image))
    assert type(quick.text.text.transformer.resblocks[0].mlp.gelu).__name__ == "QuickGELU"


@pytest.mark.parametrize(("size", "sigma"), [(40, 2.0), (24, 8.0), (9, 4.0)])
def test_smoothing_equals_scipy(size, sigma):
    from scipy.ndimage import gaussian_filter

    maps = torch.randn(2, size, size, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([torch.from_numpy(gaussian_filter(m.double().numpy(), sigma)) for m in maps])
    torch.testing.assert_close(smooth(maps, sigma).double(), expected, rtol=0, atol=1e-6)
    assert torch.equal(smooth(maps, 0), maps)


def test_maps_keep_float32_under_autocast():
    maps = torch.randn(1, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(smooth(maps, 2.0), smooth(maps, 2.0))
        out = upsample(to_grid(torch.randn(1, 16).bfloat16()), 16, align_corners=True)
    assert out.dtype == torch.float32
    assert out.shape == (1, 16, 16)


def test_maps_may_be_rectangular():
    maps = to_grid(torch.arange(12.0)[None], (3, 4))
    assert maps[0, 1].tolist() == [4, 5, 6, 7]
    with pytest.raises(ValueError, match="12 patches are no square grid"):
        to_grid(torch.zeros(1, 12))
    large = upsample(maps, (30, 60), align_corners=False)
    assert large.shape == (1, 30, 60)
    expected = torch.nn.functional.interpolate(maps[None], size=(30, 60), mode="bilinear")[0]
    torch.testing.assert_close(large, expected)
    from scipy.ndimage import gaussian_filter

    expected = torch.from_numpy(gaussian_filter(large[0].double().numpy(), 3.0))
    torch.testing.assert_close(smooth(large, 3.0)[0].double(), expected, rtol=0, atol=1e-5)


def test_patches_of_which_no_pixel_is_inspected():
    values = torch.tensor([[[1.0, 9.0], [3.0, 2.0]]])
    roi = torch.zeros(1, 8, 8, dtype=torch.bool)
    roi[0, 3:, :4] = True  # one row of pixels of the first patch, all of the one below it
    assert restrict_patches(values, roi).tolist() == [[[1, 1], [3, 1]]]
    assert restrict_patches(values, None) is values


def test_zero_to_one_of_a_constant_is_zero():
    scores = torch.tensor([[1.0, 5.0], [3.0, 5.0]])
    assert zero_to_one(scores).tolist() == [[0.0, 0.0], [1.0, 0.0]]

"""Patch memory: nearest neighbours exactly, in bounded memory; a state of unknown length; coresets."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.neighbors import NearestNeighbors
from tests_support import DATA
from torch import nn

from vlad.errors import MethodError
from vlad.memory import PatchMemory, coreset, memory_scores, nearest_distance

SKLEARN = {"cosine": "cosine", "l2": "euclidean"}


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize("neighbours", [1, 3])
def test_distances_equal_scikit_learn(metric, neighbours):
    queries, bank = noise(2, 5, 7, 16), noise(40, 16, seed=1)
    found = nearest_distance(queries, bank, metric=metric, neighbours=neighbours)
    search = NearestNeighbors(n_neighbors=neighbours, metric=SKLEARN[metric], algorithm="brute").fit(bank.double())
    expected = torch.from_numpy(search.kneighbors(queries.flatten(0, 2).double())[0]).mean(1).view(2, 5, 7)
    assert found.shape == (2, 5, 7)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_distances_equal_the_definition(metric):
    queries, bank = noise(1, 3, 4, 8), noise(9, 8, seed=1)
    for row in range(3):
        for column in range(4):
            query = queries[0, row, column].double()
            if metric == "cosine":
                each = 1 - torch.cosine_similarity(query[None], bank.double())
            else:
                each = torch.linalg.vector_norm(query - bank.double(), dim=1)
            found = nearest_distance(queries, bank, metric=metric)[0, row, column]
            assert float(found) == pytest.approx(float(each.min()), abs=1e-6)


def test_distances_equal_the_published_anomalydino():
    """faiss's distances of the published run, on its own tokens; outside its mask they are set to 0 there."""
    tensors = load_file(DATA / "anomalydino" / "v2_mask" / "tensors.safetensors")
    for name in ("test.good_000", "test.bad_001"):
        expected, inside = tensors[f"{name}.distances"], tensors[f"{name}.mask"].view(8, 8).bool()
        found = nearest_distance(tensors[f"{name}.tokens"].view(1, 8, 8, -1), tensors["ref0.tokens"])[0]
        assert inside.any()
        torch.testing.assert_close(found.double()[inside], expected[inside], rtol=0, atol=2e-5)


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_a_patch_of_the_memory_has_no_distance(metric):
    bank = 100 + noise(50, 64)  # long vectors, near each other: squares alone would round the distances away
    distance = nearest_distance(bank.view(1, 5, 10, 64), bank, metric=metric)
    assert float(distance.min()) >= 0
    assert float(distance.max()) <= 1e-6
    moved = bank.clone()
    moved[:, 0] += 0.01
    assert nearest_distance(moved.view(1, 5, 10, 64), bank, metric="l2") == pytest.approx(0.01, rel=1e-2)


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_chunks_change_nothing(metric):
    queries, bank = noise(3, 5, 7, 16), noise(40, 16, seed=1)
    whole = nearest_distance(queries, bank, metric=metric, neighbours=2)
    for chunk_bytes in (1, 1000, 5000):
        found = nearest_distance(queries, bank, metric=metric, neighbours=2, chunk_bytes=chunk_bytes)
        torch.testing.assert_close(found, whole, rtol=1e-6, atol=1e-6)


def test_memory_is_bounded():
    """No tensor made on the way is larger than the chunk, the bank or the queries."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        bytes = 0

        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            out = function(*arguments, **(options or {}))
            for tensor in out if isinstance(out, tuple | list) else [out]:
                if isinstance(tensor, torch.Tensor):
                    Largest.bytes = max(Largest.bytes, tensor.numel() * tensor.element_size())
            return out

    queries, bank = noise(2, 40, 40, 8), noise(3000, 8, seed=1)  # 38 MB of similarities
    for metric in ("cosine", "l2"):
        Largest.bytes = 0
        with Largest():
            nearest_distance(queries, bank, metric=metric, neighbours=3, chunk_bytes=1 << 20)
        assert 100_000 < Largest.bytes <= 1 << 20


def test_autocast_and_half_precision_change_no_distance():
    queries, bank = noise(1, 4, 4, 32), noise(20, 32, seed=1)
    expected = nearest_distance(queries, bank)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = nearest_distance(queries, bank)
        mean = memory_scores((queries,), (nn.functional.normalize(bank, dim=-1),))
    assert found.dtype == mean.dtype == torch.float32
    assert torch.equal(found, expected)
    torch.testing.assert_close(mean, expected)
    rounded = nearest_distance(queries.bfloat16(), bank)
    assert torch.equal(rounded, nearest_distance(queries.bfloat16().float(), bank))


def test_images_do_not_depend_on_their_batch():
    queries, bank = noise(4, 6, 6, 16), noise(30, 16, seed=1)
    together = nearest_distance(queries, bank)
    torch.testing.assert_close(torch.cat([nearest_distance(one[None], bank) for one in queries]), together)


def test_scores_are_the_mean_over_levels():
    queries, banks = (noise(2, 3, 3, 8), noise(2, 3, 3, 12)), (noise(9, 8, seed=1), noise(7, 12, seed=2))
    memory = PatchMemory()
    memory.fit({"mvtec_ad/bottle": banks})
    expected = (nearest_distance(queries[0], banks[0]) + nearest_distance(queries[1], banks[1])) / 2
    torch.testing.assert_close(memory_scores(queries, memory.levels_of("mvtec_ad/bottle")), expected)
    euclidean = PatchMemory(metric="l2")
    euclidean.fit({"mvtec_ad/bottle": banks})
    expected = sum(nearest_distance(q, b, metric="l2") for q, b in zip(queries, banks, strict=True)) / 2
    found = memory_scores(queries, euclidean.levels_of("mvtec_ad/bottle"), metric="l2")
    torch.testing.assert_close(found, expected)


def test_levels_and_widths_that_do_not_fit_are_refused():
    with pytest.raises(MethodError, match="1 levels of patches and the memory 2; fit the references with the same"):
        memory_scores((noise(1, 2, 2, 8),), (noise(3, 8), noise(3, 8)))
    with pytest.raises(MethodError, match=r"1 nearest of patches \(…, 8\) cannot be found in a memory \(3, 4\)"):
        nearest_distance(noise(1, 2, 2, 8), noise(3, 4))
    with pytest.raises(MethodError, match="5 nearest of patches"):
        nearest_distance(noise(1, 2, 2, 8), noise(3, 8), neighbours=5)


def filled():
    memory = PatchMemory()
    memory.add("mvtec_ad/bottle", (noise(5, 8), noise(5, 4)))
    memory.add("visa/Größe №1", (noise(7, 8, seed=1), noise(7, 4, seed=1)))
    return memory


def test_categories_are_kept_apart_and_grow():
    memory = filled()
    assert memory.categories == ("mvtec_ad/bottle", "visa/Größe №1")
    first, second = memory.levels_of("visa/Größe №1")
    torch.testing.assert_close(first, nn.functional.normalize(noise(7, 8, seed=1), dim=-1))
    memory.add("mvtec_ad/bottle", (noise(2, 8, seed=3), noise(2, 4, seed=3)))
    assert [tuple(bank.shape) for bank in memory.levels_of("mvtec_ad/bottle")] == [(7, 8), (7, 4)]
    assert torch.equal(memory.levels_of("visa/Größe №1")[1], second)
    with pytest.raises(MethodError, match="no reference images of 'mvtec_ad/botle'; did you mean mvtec_ad/bottle"):
        memory.levels_of("mvtec_ad/botle")
    memory.clear()
    assert memory.categories == ()
    assert list(memory.state_dict()) == ["names"]


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ((), "must be patch tokens"),
        ((torch.zeros(0, 8), torch.zeros(0, 4)), "must be patch tokens"),
        ((torch.zeros(1, 2, 8),), r"must be patch tokens \(N, D\) of each level, got \[\(1, 2, 8\)\]"),
        ((torch.full((3, 8), torch.nan), torch.ones(3, 4)), "NaN or infinite"),
        ((torch.ones(3, 8),), "other levels or widths"),
    ],
)
def test_references_that_are_no_patches_are_refused(levels, message):
    memory = filled()
    with pytest.raises(MethodError, match=message):
        memory.add("mvtec_ad/bottle", levels)
    assert len(memory.levels_of("mvtec_ad/bottle")[0]) == 5


class Method(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.memory = nn.Linear(2, 2), PatchMemory()


@pytest.mark.parametrize("before", [None, "mvtec_ad/other", "mvtec_ad/bottle"])
@pytest.mark.parametrize("way", ["state_dict", "torch", "safetensors", "assign"])
def test_the_state_comes_back_whatever_its_length(tmp_path, before, way):
    saved, method = Method(), Method()
    saved.memory = filled()
    if before:  # what the loading method held is forgotten
        method.memory.add(before, (noise(1, 3), noise(1, 3), noise(1, 3)))
    state = saved.state_dict()
    if way == "safetensors":
        save_file(state, tmp_path / "method.safetensors")
        state = load_file(tmp_path / "method.safetensors")
    elif way == "torch":
        torch.save(state, tmp_path / "method.ckpt")
        state = torch.load(tmp_path / "method.ckpt", weights_only=True)
    method.load_state_dict(state, strict=True, assign=way == "assign")
    assert method.memory.categories == saved.memory.categories
    for category in saved.memory.categories:
        found, expected = method.memory.levels_of(category), saved.memory.levels_of(category)
        assert len(found) == len(expected)
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))
    method.load_state_dict(Method().state_dict())  # an empty one empties it
    assert method.memory.categories == ()


def test_a_state_without_its_patches_is_refused():
    state = {key: value for key, value in filled().state_dict().items() if not key.startswith("bank_1")}
    with pytest.raises(RuntimeError, match="names visa/Größe №1 but holds no patches"):
        PatchMemory().load_state_dict(state)
    with pytest.raises(RuntimeError, match="names"):
        PatchMemory().load_state_dict({})


def test_memory_moves_with_its_module():
    memory = filled().to("meta")
    assert memory.names.device.type == "meta"
    assert all(buffer.device.type == "meta" for buffer in memory.buffers())


def test_coreset_covers_the_bank():
    centres = noise(6, 16) * 10
    bank = (centres[:, None] + noise(6, 30, 16, seed=1) * 0.1).flatten(0, 1)
    rows = coreset(bank, 6)
    assert sorted(int(row) // 30 for row in rows) == list(range(6))  # one of each cluster
    assert torch.equal(coreset(bank, 6), rows)
    assert torch.equal(coreset(bank, 3), rows[:3])
    assert not torch.equal(coreset(bank, 6, seed=1), rows)
    assert sorted(int(row) // 30 for row in coreset(bank, 6, projected=8)) == list(range(6))
    assert sorted(coreset(bank, 1000).tolist()) == list(range(180))  # all, each once
    assert sorted(coreset(torch.ones(5, 4), 5).tolist()) == list(range(5))


def test_coreset_is_greedy():
    """Each next row is the farthest from those before, by brute force."""
    bank = noise(40, 5)
    rows = coreset(bank, 10).tolist()
    for place in range(1, 10):
        far = torch.cdist(bank, bank[rows[:place]]).amin(1)
        assert float(far[rows[place]]) == pytest.approx(float(far.max()), rel=1e-5)


def test_limit_keeps_a_coreset():
    memory = PatchMemory(limit=4)
    memory.add("a", (noise(30, 8),))
    bank = nn.functional.normalize(noise(30, 8), dim=-1)
    assert torch.equal(memory.levels_of("a")[0], bank[coreset(bank, 4)])
    memory.add("a", (noise(30, 8, seed=1),))
    assert len(memory.levels_of("a")[0]) == 4


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_scores_can_be_exported(metric):
    class Scores(nn.Module):
        def forward(self, queries, banks):
            return memory_scores(queries, banks, metric=metric, neighbours=2)

    queries, banks = (noise(2, 3, 5, 8), noise(2, 3, 5, 8, seed=1)), (noise(9, 8, seed=2), noise(9, 8, seed=3))
    batch, rows = torch.export.Dim("batch", min=1), torch.export.Dim("rows", min=2)
    shapes = (({0: batch},) * 2, ({0: rows},) * 2)
    program = torch.export.export(Scores(), (queries, banks), dynamic_shapes=shapes)
    other = (tuple(q.repeat(2, 1, 1, 1) for q in queries), tuple(b[:5] for b in banks))
    torch.testing.assert_close(program.module()(*other), Scores()(*other))

"""What methods with learned text share: where words go, when text is encoded again, whose file it is."""

import pytest
import torch

from vlad.errors import WeightsError
from vlad.methods.learned_prompts import LearnedText, check_text, deep_edit, deep_prompts, run_sentences, write_words
from vlad.testing import random_batch


class Counted(LearnedText):
    """Text that is a parameter times the length of the class name."""

    def __init__(self, backbone, **options):
        super().__init__(backbone=backbone, image_size=64, layers=[2, 4])
        self.scale, self.other = (torch.nn.Parameter(torch.ones(2, 32)) for _ in range(2))
        self.calls = []

    def class_text(self, class_name):
        self.calls.append(class_name)
        return self.scale * len(class_name)

    def text_parameters(self):
        return [self.scale]


def test_text_is_encoded_again_where_what_it_depends_on_has_changed(tiny):
    method = Counted(tiny).eval()
    names = random_batch(3)["class_name"]
    first = method.texts(names)
    assert not first.requires_grad
    assert torch.equal(method.texts(names), first)
    with torch.no_grad():
        method.other.add_(1)
    method.texts(names)
    assert method.calls == ["bottle", "metal_nut"]
    with torch.no_grad():
        method.scale.mul_(2)
    assert torch.equal(method.texts(names), 2 * first)
    assert len(method.calls) == 4
    trained = method.train().texts(names)
    assert torch.equal(trained, 2 * first)
    trained.sum().backward()
    assert (method.scale.grad == 6 + 9 + 6).all()
    assert len(method.calls) == 6
    assert torch.equal(method.texts(names[:1] * 2)[1], 2 * first[0])
    assert torch.equal(method.fixed_texts(names), 2 * first)


def test_learned_words_take_the_place_of_words():
    fixed, words = torch.zeros(1, 6, 2), torch.ones(3, 2, 2)
    written = write_words(fixed, words, 2)
    assert written.shape == (3, 6, 2)
    assert written[0, :, 0].tolist() == [0, 0, 1, 1, 0, 0]


@torch.no_grad()
def test_sentences_of_known_ends_are_those_of_the_tower(tiny):
    tower = Counted(tiny).text_tower
    ids = tower.tokenize(["X X X object.", "X X X damaged object."])
    ends, words, prompts = tower.ends(ids), tower.embed(ids), deep_prompts(2, 2, tower.width)
    for half in (False, True):
        edit = deep_edit(prompts, 2, half=half)
        expected = tower.run(words, ends, before=edit)
        torch.testing.assert_close(run_sentences(tower, words, ends.tolist(), edit), expected)
        torch.testing.assert_close(run_sentences(tower, words[:, :12], ends, edit), expected)
    rounded = deep_edit(prompts, 2, half=True)(2, torch.zeros(2, 5, tower.width))[0, 1:3]
    assert torch.equal(rounded, prompts["block_2"].half().float())


def test_prompts_of_other_sentences_or_another_clip(tiny):
    tower = Counted(tiny).text_tower
    ids = tower.tokenize(["X X object.", "X X damaged object."])
    embedded = tower.embed(ids)
    learner = {"tokenized_prompts_pos": ids[:1].int()[None], "token_suffix_neg": embedded[1:, 3:][None].clone()}
    check_text("Some", learner, ids, embedded)
    with pytest.raises(WeightsError, match="Some file was trained on another CLIP: its embedding of the words"):
        check_text("Some", learner, ids, embedded + torch.randn(1, 1, 32))
    with pytest.raises(WeightsError, match=r"other sentences: its tokens \(pos\) are 49406 13568 14115"):
        check_text("Some", {"tokenized_prompts_pos": ids[1:].int()[None]}, ids, embedded)

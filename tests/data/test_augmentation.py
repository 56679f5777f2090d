"""Changed training texts: whole words move, vanish or are replaced; (seed, epoch, example) alone decides."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.config import Phase, default_config
from jaxlm.data.augmentation import (
    OBJECTIVES,
    Augmentation,
    AugmentedRows,
    check_augmentation,
    deleted_words,
    reordered,
    replaced,
    swapped_words,
    words_of,
)
from jaxlm.data.examples import WORD_STARTS, Examples
from jaxlm.data.permutation import uniforms
from jaxlm.data.text_encoder import TextEncoder
from jaxlm.errors import UserError
from tests.conftest import sentences


def encoded(tokenizer, texts, longest=32):
    found = TextEncoder(tokenizer, longest)(texts, [str(number) for number in range(len(texts))])
    columns = {"labels": np.arange(len(texts), dtype=np.int32), "weights": np.ones(len(texts), np.float32)}
    details = {WORD_STARTS: found.word_starts}
    return Examples([None] * len(texts), found.tokens, found.token_types, columns, details=details)


@pytest.fixture
def examples(tokenizer):
    return encoded(tokenizer, [(text,) for text in sentences(40)])


def augmentation_of(examples, tokenizer, **settings):
    return Augmentation(examples, words_of(examples, tokenizer), **{"share": 0.5} | settings)


def words_in(tokenizer, tokens):
    return tokenizer.decode(tokens[(tokens != tokenizer.begin_id) & (tokens != tokenizer.end_id)]).split()


def test_random_numbers_are_pinned_and_even():
    np.testing.assert_allclose(uniforms(3, (1, 2, 3)), PINNED, rtol=0, atol=1e-15)
    numbers = uniforms(20_000, (7,))
    assert (numbers >= 0).all()
    assert (numbers < 1).all()
    assert abs(np.histogram(numbers, 10, (0, 1))[0] - 2000).max() < 200
    assert (uniforms(5, (7,)) == numbers[:5]).all()
    assert abs(np.corrcoef(uniforms(20_000, (8,)), numbers)[0, 1]) < 0.03


PINNED = [0.07166370763826013, 0.8633317146052892, 0.35718975682944265]


def test_words_have_letters_and_all_their_pieces(tokenizer):
    examples = encoded(tokenizer, [("The captain, 42 stones.", "a river")])
    (words,) = words_of(examples, tokenizer)
    tokens = examples.tokens[0]
    spelled = ["".join(tokenizer.text_of(int(id)) for id in tokens[words == word]) for word in range(words.max() + 1)]
    assert [word.strip() for word in spelled][:2] == ["The", "captain"]
    assert spelled[-2:] == ["a", "river"]
    assert (words[(tokens == tokenizer.begin_id) | (tokens == tokenizer.end_id)] == -1).all()
    outside = "".join(tokenizer.text_of(int(id)) for id in tokens[words == -1])
    assert not any(map(str.isalnum, outside))
    assert examples.token_types[0][words == words.max()].all()


@given(
    texts=st.lists(st.integers(0, 1), min_size=1, max_size=12).map(sorted),
    probability=st.floats(0, 0.99),
    seed=st.integers(0, 99),
)
def test_each_text_keeps_a_word(texts, probability, seed):
    texts, numbers = np.array(texts), uniforms(len(texts), (seed,))
    gone = deleted_words(texts, numbers, probability)
    for text in set(texts.tolist()):
        own = texts == text
        assert not gone[own].all()
        assert gone[own].sum() in ((numbers[own] < probability).sum(), own.sum() - 1)
    assert (gone <= (numbers < probability)).all()


@settings(deadline=None)
@given(first=st.integers(1, 6), second=st.integers(0, 6), share=st.floats(0.01, 1), seed=st.integers(0, 99))
def test_swaps_stay_within_a_text(first, second, share, seed):
    texts = np.array([0] * first + [1] * second)
    order, swaps = swapped_words(texts, lambda count: uniforms(count, (seed,)), share)
    assert sorted(order.tolist()) == list(range(len(texts)))
    assert (texts[order] == texts).all()
    assert swaps == sum(max(1, round(share * size)) for size in (first, second) if size > 1)
    if swaps == 1:
        assert (order != np.arange(len(texts))).sum() == 2


def test_words_move_and_go_with_all_their_tokens():
    tokens = np.array([1, 10, 11, 99, 20, 30, 31, 32, 2], np.int32)  # 99: a comma
    words = np.array([-1, 0, 0, -1, 1, 2, 2, 2, -1], np.int32)
    moved = tokens[reordered(words, np.array([2, 1, 0]))]
    assert moved.tolist() == [1, 30, 31, 32, 99, 20, 10, 11, 2]
    changed = replaced(tokens, words, np.array([50, -1, 60], np.int32))
    assert changed.tokens.tolist() == [1, 50, 99, 20, 60, 2]
    assert changed.positions.tolist() == [0, 1, 3, 4, 5, 8]
    assert changed.words == 2
    assert replaced(tokens, words, np.array([-1, -1, -1], np.int32)).tokens.tolist() == tokens.tolist()


@pytest.mark.parametrize("way", ["delete", "swap"])
def test_changed_texts_have_the_words_of_the_original(examples, tokenizer, way):
    augmentation = augmentation_of(examples, tokenizer, share=1.0, deleted=0.2, swapped=0.2)
    differ = 0
    for segment in range(len(examples)):
        tokens, positions, words = augmentation.change(segment, way, (0, 0))
        before, after = (words_in(tokenizer, one) for one in (examples.tokens[segment], tokens))
        assert (tokens == examples.tokens[segment][positions]).all()
        if way == "swap":
            assert sorted(word.lower().strip(".") for word in after) == sorted(
                word.lower().strip(".") for word in before
            )
            assert words in (2, 4)
        else:
            assert len(after) >= 1
            assert words == augmentation.words[segment].max() + 1 - len(set(augmentation.words[segment][positions])) + 1
        differ += before != after
    assert differ > len(examples) / 2


def test_the_share_is_that_of_the_setting_and_each_way_is_as_likely(tokenizer):
    examples = encoded(tokenizer, [(text,) for text in sentences(1000)])
    augmentation = augmentation_of(examples, tokenizer, share=0.3, deleted=0.1, swapped=0.1)
    ways = [augmentation.way(segment, (4, 2)) for segment in range(1000)]
    assert abs(ways.count("") - 700) < 50
    assert abs(ways.count("delete") - 150) < 40
    assert ways != [augmentation.way(segment, (4, 3)) for segment in range(1000)]
    assert ways != [augmentation.way(segment, (5, 2)) for segment in range(1000)]


def test_rows_depend_on_seed_and_step_alone_and_epochs_differ(examples, tokenizer):
    def make(seed=0, multiple=2):
        changes = augmentation_of(examples, tokenizer, deleted=0.2, swapped=0.2)
        return AugmentedRows(examples, [Phase(None, 32, 8)], seed, tokenizer.pad_id, multiple, changes)

    one, again, four = make(), make(), make(multiple=4)
    for step in (7, 0, 3):
        jumped = again.batch(step)
        for name, array in one.batch(step).items():
            np.testing.assert_array_equal(array, jumped[name])
            used = one._lay_out(step, one.shape).row_count
            np.testing.assert_array_equal(four.batch(step)[name][:used], array[:used])

    def texts_of_epoch(rows, epoch):
        found = {}
        for step in range(5 * epoch, 5 * epoch + 5):
            batch = rows.batch(step)
            for row, slot in np.argwhere(batch["weights"] > 0):
                text = batch["tokens"][row][batch["segment_ids"][row] == slot + 1].tolist()
                found[int(batch["labels"][row, slot])] = text
        return found

    first, second, original = texts_of_epoch(one, 0), texts_of_epoch(one, 1), dict(enumerate(examples.tokens))
    assert set(first) == set(second) == set(original)
    assert first != second
    changed = [number for number in original if first[number] != original[number].tolist()]
    assert 10 <= len(changed) <= 30
    assert all(len(first[number]) <= len(original[number]) for number in original)
    assert "of 40 examples are changed in the first epoch: " in one.describe()
    assert one.describe().startswith("40 examples per epoch; ")
    shapes = {one.batch(step)["tokens"].shape for step in range(100)}
    assert len(shapes) <= 4


def test_labels_and_types_stay_with_their_texts(tokenizer):
    pairs = list(itertools.pairwise(sentences(41)))
    examples = encoded(tokenizer, pairs, 64)
    changes = augmentation_of(examples, tokenizer, share=1.0, deleted=0.3)
    found = changes.changed_examples([3, 0], [(0, 0), (0, 1)])
    assert found.columns["labels"].tolist() == [3, 0]
    for tokens, types in zip(found.tokens, found.token_types, strict=True):
        assert len(tokens) == len(types)
        assert (np.diff(types) >= 0).all()
        assert [(tokens[types == kind] == tokenizer.end_id).sum() for kind in (0, 1)] == [1, 1]
        assert len(tokens[types == 1]) > 1


def test_a_text_without_words_stays(tokenizer):
    examples = encoded(tokenizer, [("...",), ("",)])
    changes = augmentation_of(examples, tokenizer, share=1.0, deleted=0.5, swapped=0.5)
    for segment, way in itertools.product((0, 1), ("delete", "swap")):
        assert changes.change(segment, way, (0, 0)).tokens.tolist() == examples.tokens[segment].tolist()


@pytest.mark.parametrize("objective", ["tagging", "span", "choice", "embedding"])
@pytest.mark.parametrize("way", ["delete", "swap", "replace"])
def test_objectives_whose_labels_belong_to_parts_of_a_text_are_refused(objective, way):
    config = default_config()
    config.train.objective = objective
    check_augmentation(config)
    config.task[f"{way}_words"] = 0.1
    with pytest.raises(UserError, match=rf"task\.{way}_words=0\.1 applies to .*, not {objective}; remove it"):
        check_augmentation(config)
    config.train.objective = OBJECTIVES[0]
    check_augmentation(config)

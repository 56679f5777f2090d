"""The sentences of tagged files as examples: labels at first pieces, windows, and words without pieces."""

import json

import numpy as np
import pytest

from jaxlm.data.example_rows import Shape, fill_rows, lay_out
from jaxlm.data.tasks.table import read_task
from jaxlm.errors import UserError
from tests.conftest import sentences

WORDS = " ".join(sentences(12)).split()  # longer than a model of 32 tokens


@pytest.fixture
def tagged(task_config, tmp_path):
    """Returns the data of a training file with this content."""

    def make(content, name="a.conll", evaluation=(), select="none", length=32, **task):
        (tmp_path / name).write_text(content)
        config = task_config(tmp_path / name, "tagging", evaluation=evaluation, **task)
        config.evaluation.select = select
        config.data.sequence_length = length
        return read_task(config)

    return make


def test_the_first_piece_of_each_word_has_its_label(tagged):
    data = tagged("captain\tB-X\nzzyzx\tI-X\n\u200b\tO\n\u00a0\tO\nsees\tO\n\nthe\tB-Y\n")
    assert data.labels == ("B-X", "B-Y", "I-X", "I-Y", "O")
    examples, tokenizer = data.train, data.tokenizer
    pieces = [tokenizer.encode(word).ids for word in ("captain", "zzyzx", "\u200b", "\u00a0", "sees")]
    sizes = [len(part) for part in pieces]
    assert sizes[1] > 1
    assert sizes[3] == 0
    assert examples.tokens[0].tolist() == [tokenizer.begin_id, *np.concatenate(pieces), tokenizer.end_id]
    words = examples.token_columns["words"][0]
    starts = 1 + np.cumsum(sizes) - sizes
    with_pieces = [number for number, size in enumerate(sizes) if size]
    assert np.flatnonzero(words).tolist() == [starts[number] for number in with_pieces]
    assert words[words > 0].tolist() == [number + 1 for number in with_pieces]
    labels, weights = (examples.token_columns[name][0] for name in ("labels", "weights"))
    tags = ["B-X", "I-X", "O", "O", "O"]
    assert [data.labels[label] for label in labels[words > 0]] == [tags[number] for number in with_pieces]
    assert weights.tolist() == (words > 0).astype(float).tolist()
    assert examples.example.tolist() == [0, 1]


def test_each_word_of_a_long_sentence_is_scored_once_where_it_has_most_context(tagged):
    tags = ["B-X" if number % 3 else "O" for number in range(len(WORDS))]
    data = tagged("".join(f"{word}\t{tag}\n" for word, tag in zip(WORDS, tags, strict=True)) + "\nthe\tO\n")
    examples = data.train
    assert len(examples) == 2
    assert examples.longest <= 32
    assert examples.example.tolist() == [0] * (len(examples.tokens) - 1) + [1]
    assert len(examples.tokens) > 4
    found = np.concatenate([column[column > 0] for column in examples.token_columns["words"][:-1]])
    assert sorted(found.tolist()) == list(range(1, len(WORDS) + 1))
    for words, labels, tokens in zip(
        *(examples.token_columns[name] for name in ("words", "labels")), examples.tokens, strict=True
    ):
        at = np.flatnonzero(words)
        if len(tokens) == 32 and words.max() < len(WORDS) and words[at[0]] > 1:
            assert at[0] >= 6  # context before the first word and after the last one
            assert at[-1] <= 25
        for place in at[:-1]:
            assert data.labels[labels[place]] == tags[words[place] - 1]
            assert tokens[place] == data.tokenizer.encode(WORDS[words[place] - 1]).ids[0]
    layout = lay_out(examples, examples.segments_of([1, 0]), Shape(32, 8))
    batch = fill_rows(examples, layout, Shape(32, 8), layout.row_count, 0)
    assert (batch["words"] > 0).sum() == batch["weights"].sum() == len(WORDS) + 1


def test_a_word_longer_than_the_model_is_cut_or_refused(tagged):
    content = f"the\tO\n{'tac' * 30}\tB-X\nsees\tO\n"
    data = tagged(content)
    assert data.train.truncated == 1
    assert data.train.longest == 32
    words = np.concatenate(data.train.token_columns["words"])
    assert sorted(words[words > 0]) == [1, 2, 3]
    with pytest.raises(UserError, match=r"a\.conll, line 2: a word of \d+ tokens, but at most 30 fit; shorten it"):
        tagged(content, truncation="refuse")


def test_a_model_too_short_for_a_word_is_refused(tagged):
    with pytest.raises(UserError, match=r"data\.sequence_length=2: no word fits between begin and end"):
        tagged("the\tO\ncat\tB-X\n", length=2)


def test_a_sentence_without_words_is_an_example(tagged):
    rows = [{"words": ["the", "cat"], "tags": ["O", "B-X"]}, {"words": [], "tags": []}]
    data = tagged("\n".join(map(json.dumps, rows)), "a.jsonl")
    assert [len(tokens) for tokens in data.train.tokens][1] == 2
    assert data.train.token_columns["words"][1].tolist() == [0, 0]


def test_tags_of_an_evaluation_set_may_go_on_where_those_of_training_only_begin(tagged, tmp_path):
    (tmp_path / "b.conll").write_text("the\tB-X\ncat\tI-X\n")
    data = tagged("the\tB-X\ncat\tO\n", evaluation=(str(tmp_path / "b.conll"),))
    columns = data.sets["evaluation"].token_columns
    labels = columns["labels"][0][columns["words"][0] > 0]
    assert [data.labels[label] for label in labels] == ["B-X", "I-X"]


@pytest.mark.parametrize(
    ("evaluation", "task", "message"),
    [
        ("the\tB-X\ncat\tB-Z\n", {}, r"b\.conll, line 2: the tag B-Z is not one of B-X, I-X, O; fix it, or set"),
        ("the\tO\n\ncat\tNN\n", {}, r"b\.conll, line 3: the tag 'NN' is not one of bio, whose tags are O, B-TYPE"),
        ("", {}, r"b\.conll contains no sentences; set task\.evaluation"),
        ("the\tO\ncat\tI-X\n", {"scheme": "iob2"}, r"b\.conll, line 2: the tag 'I-X' continues no entity"),
        ("the\tO\n", {"labels": ("O", "B-Y")}, r"a\.conll, line 1: the tag B-X is not one of O, B-Y"),
        ("the\tO\n", {"tags": "0", "words": "1", "scheme": "none"}, r"b\.conll, line 1: the tag the is not one of"),
    ],
)
def test_tags_that_are_not_known_are_refused(tagged, tmp_path, evaluation, task, message):
    (tmp_path / "b.conll").write_text(evaluation)
    with pytest.raises(UserError, match=message):
        tagged("a\tB-X\nriver\tO\n", evaluation=(str(tmp_path / "b.conll"),), **task)


def test_tags_that_differ_only_in_case_are_refused(tagged):
    with pytest.raises(UserError, match=r"has the tags B-Per and B-per, which differ only in case; spell them alike"):
        tagged("the\tB-per\ncat\tB-Per\n")


def test_a_file_with_one_tag_is_refused(tagged):
    with pytest.raises(UserError, match=r"has only the tag NN; at least 2 are needed: set task\.tags"):
        tagged("the\tNN\ncat\tNN\n", scheme="none")


def test_a_tag_that_only_the_selecting_part_has_is_known(tagged):
    lines = [f"{word}\tB-T{number}\n\n" for number, word in enumerate(dict.fromkeys(WORDS))]
    data = tagged("".join(lines), select="split")
    assert len(data.sets["selection"]) > 0
    assert len(data.labels) == 2 * len(lines) + 1


def test_tags_can_weigh_more(tagged):
    data = tagged("the\tB-X\ncat\tO\nsees\tO\n", class_weights=("B-X=4",))
    weights = data.train.token_columns["weights"][0]
    assert weights[weights > 0].tolist() == [4, 1, 1]

"""Filled templates as token sequences: the whole text as the tokenizer has it, and only a row's texts are cut."""

import pytest

from jaxlm.data.templates import TemplateEncoder, parse_template
from jaxlm.errors import UserError
from jaxlm.tokenizer.tokenizer import load_tokenizer
from tests.tokenizer.examples import byte_level, metaspace, saved, wordpiece


@pytest.fixture(scope="module", params=["wordpiece", "byte_level", "metaspace"])
def any_tokenizer(request, tmp_path_factory):
    made = {"wordpiece": wordpiece, "byte_level": byte_level, "metaspace": metaspace}[request.param]()
    return load_tokenizer(saved(made, tmp_path_factory.mktemp("tokenizer") / request.param))


def encoded(template, texts, tokenizer, longest=64, truncation="longest_first"):
    """Returns the tokens of one row without begin and end, and whether it lost some."""
    encoder = TemplateEncoder(parse_template(template), tokenizer, longest, truncation)
    found = encoder([texts], ["row 1"])
    tokens = found.tokens[0]
    assert (tokens[0], tokens[-1]) == (tokenizer.begin_id, tokenizer.end_id)
    assert not found.token_types[0].any()
    return tokens[1:-1].tolist(), found.truncated == 1


def test_a_template_is_parsed():
    template = parse_template("{{{a b}}} [MASK], {c}{#1 x} {c}")
    assert template.literals == ("{", "} [MASK], ", "", " ", "")
    assert template.fields == ("a b", "c", "#1 x", "c")
    assert template.columns == ("a b", "c", "#1 x")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("It was [MASK].", r"names no column with a text; write it in braces"),
        ("{sentence It was [MASK].", r"a brace without its other half"),
        ("sentence} It was [MASK].", r"a brace without its other half"),
        ("{} It was [MASK].", r"\{\} names no column"),
    ],
)
def test_a_malformed_template_is_refused(text, message):
    with pytest.raises(UserError, match=message):
        parse_template(text)


@pytest.mark.parametrize(("text", "count"), [("{a} It was so.", "no"), ("{a} [MASK] or [MASK].", "2")])
def test_a_template_has_one_mask(text, count, any_tokenizer):
    with pytest.raises(UserError, match=rf"task\.template has {count} masks, and needs one: write \[MASK\]"):
        parse_template(text).before_mask(any_tokenizer)


def test_the_tokens_are_those_of_the_filled_text(any_tokenizer):
    mask = any_tokenizer.mask_token
    whole = any_tokenizer.encode(f"the cat sees? {mask}, a river.", find_special=True).ids.tolist()
    for template in ("{a}? [MASK], {b}.", f"{{a}}? {mask}, {{b}}."):
        assert encoded(template, ["the cat sees", " a river\n"], any_tokenizer) == (whole, False)
    assert whole.count(any_tokenizer.mask_id) == 1
    assert parse_template("{a}? [MASK], {b}.").before_mask(any_tokenizer) == "? "


def test_special_tokens_are_found_in_the_template_and_are_text_in_a_row(any_tokenizer):
    mask, end = any_tokenizer.mask_token, any_tokenizer.token(any_tokenizer.end_id)
    found, _ = encoded(f"{{a}} {end} it was [MASK]{{b}}", [f"a {mask} {end}", mask], any_tokenizer)
    assert found.count(any_tokenizer.mask_id) == found.count(any_tokenizer.end_id) == 1
    twice, _ = encoded("{a}[MASK]{a}", [mask], any_tokenizer)
    assert twice.count(any_tokenizer.mask_id) == 1


def test_only_the_texts_of_a_row_are_cut(any_tokenizer):
    long = "the house and the garden " * 10
    fixed = len(encoded("a {a} is it? {b} it was [MASK].", ["", ""], any_tokenizer)[0])
    for longest in range(fixed + 3, 40):
        tokens, cut = encoded("a {a} is it? {b} it was [MASK].", [long, "the cat"], any_tokenizer, longest)
        assert cut
        assert len(tokens) == longest - 2
        assert tokens.count(any_tokenizer.mask_id) == 1
    assert tokens[:1] == any_tokenizer.encode("a").ids.tolist()[:1]
    assert tokens[-2:] == encoded("[MASK].{a}", [""], any_tokenizer)[0][-2:]


def test_the_policy_says_which_text_is_cut_or_that_none_is(any_tokenizer):
    long, short = "the house and the garden " * 6, "the cat"
    template = "{a} {b} it was [MASK]."
    second = encoded(template, [short, long], any_tokenizer, 32, "second")
    assert second == encoded(template, [short, long], any_tokenizer, 32)
    with pytest.raises(UserError, match=r"row 1: \d+ tokens with the template, but at most 32 fit; shorten it"):
        encoded(template, [short, long], any_tokenizer, 32, "first")
    with pytest.raises(UserError, match=r"or set task\.truncation=longest_first"):
        encoded(template, [short, long], any_tokenizer, 32, "refuse")


def test_a_template_that_leaves_no_room_is_refused(any_tokenizer):
    with pytest.raises(UserError, match=r"task\.template has \d+ tokens without the texts of a row, which leaves them"):
        encoded("{a} " + "the house and the garden " * 6 + "[MASK]", ["the cat"], any_tokenizer, 16)


def test_a_question_with_enumerated_answers_is_a_template(any_tokenizer):
    template = "the question: {q}\n- a: {first}\n- b: {second}\n- c: {third}\nthe answer: [MASK]"
    texts = ["the house " * 30, "a cat", "a dog", "a river"]
    tokens, cut = encoded(template, texts, any_tokenizer, 96)
    assert cut
    assert len(tokens) == 94
    assert tokens[-1] == any_tokenizer.mask_id
    tail = encoded("- c: {third}\nthe answer: [MASK]", ["a river"], any_tokenizer)[0][2:]
    assert tokens[-len(tail) :] == tail  # the answers are shorter than the question, and whole

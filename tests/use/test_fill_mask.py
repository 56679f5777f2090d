import io
import json

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxlm
from jaxlm.cli import main
from jaxlm.errors import UserError
from jaxlm.tokenizer.tokenizer import load_tokenizer
from jaxlm.use.loading import load_trained
from jaxlm.use.model import Model
from tests.untrained import LENGTH, make_workdir

WORD_PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sees", "##s", "##ing", ".", "(", "un"]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return make_workdir(tmp_path_factory.mktemp("predict") / "run")


@pytest.fixture(scope="module")
def model(workdir):
    return jaxlm.load(workdir)


@pytest.fixture(scope="module")
def word_piece(model, tmp_path_factory):
    """The same model with a lower-casing WordPiece vocabulary."""
    folder = tmp_path_factory.mktemp("vocab")
    (folder / "vocab.txt").write_text("\n".join(WORD_PIECES) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}))
    return Model(model.trained._replace(tokenizer=load_tokenizer(folder)))


def logits_of(model, text):
    """Returns a text's token ids and logits, computed in a row of LENGTH."""
    ids = model.tokenize(text)
    tokens = np.pad(ids, (0, LENGTH - len(ids)))[None]
    logits = model.logits(tokens, (np.arange(LENGTH) < len(ids))[None].astype(np.int32))[0]
    return ids, np.asarray(logits)


def test_probabilities_are_a_softmax_over_words(model):
    text = "The cat [MASK] the house."
    ids, logits = logits_of(model, text)
    scores = logits[list(ids).index(model.tokenizer.mask_id)].astype(float)
    scores[[i for i in range(len(scores)) if not model.tokenizer.text_of(i).strip()]] = -np.inf
    expected = np.exp(scores) / np.exp(scores).sum()
    candidates = model.fill_mask(text, top=1000)[0]
    assert len(candidates) == (expected > 0).sum()
    assert [c.probability for c in candidates] == pytest.approx(sorted(expected[expected > 0], reverse=True), rel=1e-3)
    assert candidates[0].token == model.tokenizer.token(int(expected.argmax()))


@pytest.mark.parametrize(
    "text", ["x [MASK] y", "x[MASK] y", "[MASK] y", "x  [MASK]", "a [MASK] [MASK] b", "é [MASK]\ty"]
)
def test_the_filled_text_has_the_word_in_place_of_the_mask(model, text):
    for mask in model.fill_mask(text):
        for candidate in mask:
            assert candidate.text in [
                text[:start] + candidate.word + text[start + 6 :]
                for start in range(len(text))
                if text[start : start + 6] == "[MASK]"
            ]


def test_targets_are_tokenized_in_context(model):
    tokens = {c.word: c.token for c in model.fill_mask("The cat [MASK] it.", targets=["an", "a", "the"])[0]}
    assert tokens == {
        "an": "▁an",
        "a": "▁a",
        "the": "the",
    }  # ▁the is not a piece: the space before it is a piece of its own
    tokens = {c.word: c.token for c in model.fill_mask("The cat[MASK] it.", targets=["s"])[0]}
    assert tokens == {"s": "s"}
    (first, second) = model.fill_mask("[MASK] cat [MASK].", targets=["an", "a"])
    assert {c.token for c in first} == {c.token for c in second} == {"▁an", "▁a"}
    assert {c.text for c in second} == {"[MASK] cat an.", "[MASK] cat a."}


def test_targets_keep_their_probability_among_all_words(model):
    every = {c.token: c.probability for c in model.fill_mask("The cat [MASK] it.", top=1000)[0]}
    found = model.fill_mask("The cat [MASK] it.", top=1, targets=["an", "a"])[0]
    assert [c.probability for c in found] == sorted((every["▁an"], every["▁a"]), reverse=True)
    assert {c.text for c in found} == {"The cat an it.", "The cat a it."}


def test_targets_of_a_word_piece_vocabulary(word_piece):
    def tokens(text, *targets):
        return {c.word: c.token for c in word_piece.fill_mask(text, targets=targets)[0]}

    assert tokens("the [MASK].", "Cat", "sees") == {"Cat": "cat", "sees": "sees"}
    assert tokens("([MASK].", "cat") == {"cat": "cat"}
    assert tokens("the cat[MASK].", "s", "ing") == {"s": "##s", "ing": "##ing"}
    assert word_piece.fill_mask("the [MASK].", targets=["Cat"])[0][0].text == "the Cat."
    for target, error in [
        ("cating", "not one token here but cat ##ing"),
        ("dog", r"no word for the target 'dog', only \[UNK\]"),
        (" ", "not one token here but nothing"),
        ("the cat", "not one token"),
    ]:
        with pytest.raises(UserError, match=error):
            tokens("the [MASK].", target)


@settings(max_examples=25, deadline=None)
@given(before=st.text("the cat(s.  é", max_size=12), target=st.sampled_from(["the", "a", "cat", "s", "."]))
def test_a_target_of_one_token_spells_the_word(model, before, target):
    try:
        (candidate,) = model.fill_mask(f"{before}[MASK] x", targets=[target])[0]
    except UserError as error:
        assert "is not one token here" in str(error)  # noqa: PT017
    else:
        assert candidate.token.removeprefix("▁") == target
        assert candidate.text == f"{before}{target} x"


def test_tokenize_finds_the_mask_and_params_match_config(model):
    ids = model.tokenize("The [MASK].")
    assert ids.dtype == np.int32
    assert ids[0] == model.tokenizer.begin_id
    assert ids[-1] == model.tokenizer.end_id
    assert (ids == model.tokenizer.mask_id).sum() == 1
    assert model.params["encoder"]["embeddings"]["token"]["embedding"].shape[0] == model.config.vocab_size
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(model.params))


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda m: m.fill_mask("nothing"), r"no mask in 'nothing': write \[MASK\]"),
        (lambda m: m.fill_mask("x [MASK]", targets="the"), "list of str"),
        (lambda m: m.fill_mask("x [MASK]", targets=["seven stones"]), "is not one token here"),
        (lambda m: m.fill_mask("x [MASK]", top=0), "top=0: must be at least 1"),
        (lambda m: m.fill_mask(["x [MASK]", "nothing"]), r"no mask in 'nothing': write \[MASK\]"),
        (lambda m: m.fill_mask(["x [MASK]", 3]), "list of str"),
        (lambda m: m.fill_mask(None), "list of str"),
        (lambda m: Model(m.trained._replace(has_head=False)).fill_mask("x [MASK]"), "no masked-LM head"),
    ],
)
def test_invalid_arguments_raise_one_sentence(model, call, error):
    with pytest.raises(UserError, match=error):
        call(model)


def test_a_list_of_texts_gives_the_candidates_of_each(model):
    texts = ["The cat [MASK] it.", "[MASK] sees a [MASK]."]
    assert model.fill_mask(texts, top=3) == [model.fill_mask(text, top=3) for text in texts]
    assert model.fill_mask([]) == []


def test_a_model_without_a_head_embeds(model):
    params = {"encoder": model.params["encoder"]}
    bare = Model(model.trained._replace(has_head=False, params=params))
    assert bare.embed(["the cat"]) == pytest.approx(model.embed(["the cat"]), abs=1e-6)


def test_bfloat16_products_are_close_to_float32(workdir, model):
    other = jaxlm.load(workdir, compute_dtype="bfloat16")
    ids = model.tokenize("The cat sees.")[None]
    difference = np.abs(np.asarray(other.logits(ids)) - np.asarray(model.logits(ids)))
    assert 1e-4 < difference.max() < 0.3


def test_the_verb_prints_targets(workdir, capsys, monkeypatch):
    assert main(["fill-mask", f"--model={workdir}", "--targets=the, a", "The cat [MASK] it."]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "The cat [MASK] it."
    assert {tuple(line.split()[1:]) for line in lines[1:]} == {
        ("the", "The", "cat", "the", "it."), ("a", "The", "cat", "a", "it."),
    }  # fmt: skip
    monkeypatch.setattr("sys.stdin", io.StringIO("The [MASK].\n"))
    assert main(["fill-mask", f"--model={workdir}", "--json", "--targets=an"]) == 0
    assert json.loads(capsys.readouterr().out)["masks"][0][0]["token"] == "▁an"
    for arguments, error in [
        (("--targets=,", "x [MASK]"), "expected words separated by commas"),
        (("--targets=seven stones", "x [MASK]"), "'seven stones' is not one token here"),
        (("--top=0", "x [MASK]"), "--top=0: must be at least 1"),
        (("x",), "no mask in 'x'"),
    ]:
        assert main(["fill-mask", f"--model={workdir}", *arguments]) == 1
        assert error in capsys.readouterr().err


def test_each_mask_of_a_long_text_is_predicted_from_a_window(model):
    text = "the cat sees the house " * 20 + "[MASK] and a letter " + "the river " * 20
    (mask,) = model.fill_mask(text)
    assert len(mask) == 5
    assert load_trained(model.trained.directory).longest == LENGTH
    first, second = model.fill_mask("[MASK] cat " + text)
    assert [candidate.word for candidate in second] == [candidate.word for candidate in mask]
    assert first[0].text.startswith(f"{first[0].word} cat the cat")

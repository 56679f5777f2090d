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
def test_the_filled_text_has_the_token_in_place_of_the_mask(model, text):
    for number, mask in enumerate(model.fill_mask(text, top=80)):
        before, after = text.split("[MASK]")[number], text[text.index("[MASK]", 7 * number) + 6 :]
        before = "a [MASK] " if number else before
        for candidate in mask:
            starts = candidate.token.startswith("▁")
            expected = (
                before if starts else (before.rstrip() or before)
            )  # a token that continues a word is joined to it
            expected += " " if starts and before and not before[-1].isspace() else ""
            assert candidate.text == expected + candidate.word + after


def test_filled_texts_spell_the_tokens_that_were_predicted(model):
    tokenizer = model.tokenizer
    for text in ("The cat [MASK] the house.", "The cat[MASK]", "The [MASK] cat", "[MASK]"):
        ids = tokenizer.encode(text, find_mask=True).ids
        for candidate in model.fill_mask(text, top=80)[0]:
            filled = [tokenizer_id(tokenizer, candidate.token) if id == tokenizer.mask_id else id for id in ids]
            assert candidate.text == tokenizer.decode(filled)


def tokenizer_id(tokenizer, token):
    return next(id for id in range(tokenizer.vocab_size) if tokenizer.token(id) == token)


def test_a_word_piece_that_continues_a_word_is_joined_to_it(word_piece):
    def filled(text):
        return {c.token: c.text for c in word_piece.fill_mask(text, top=100)[0]}

    found = filled("the cat [MASK] .")
    assert found["##s"] == "the cats ."
    assert found["sees"] == "the cat sees ."
    assert filled("[MASK] cat")["##s"] == "s cat"
    found = filled("(the[MASK].")
    assert found["##s"] == "(thes."
    assert found["cat"] == "(the cat."  # `thecat` would be another word
    assert found["."] == "(the.."
    assert filled("([MASK].")["cat"] == "(cat."


@pytest.fixture(scope="module")
def chinese(model, tmp_path_factory):
    """The same model with a WordPiece vocabulary of Chinese characters."""
    folder = tmp_path_factory.mktemp("chinese")
    (folder / "vocab.txt").write_text("\n".join([*WORD_PIECES[:5], *"巴黎是法国的首都。", "##国", "cat"]) + "\n")
    return Model(model.trained._replace(tokenizer=load_tokenizer(folder)))


def test_chinese_is_filled_without_spaces(chinese):
    found = {c.token: c.text for c in chinese.fill_mask("巴黎是法[MASK]的首都。", top=100)[0]}
    assert found["国"] == found["##国"] == "巴黎是法国的首都。"
    assert found["首"] == "巴黎是法首的首都。"


@pytest.fixture(scope="module", params=[True, False], ids=["lstrip", "space-token"])
def byte_level(model, tmp_path_factory, request):
    """The same model with a byte-level vocabulary, whose mask takes the space before it or leaves it as a token."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = {piece: id for id, piece in enumerate(["<pad>", "<unk>", "<s>", "</s>", "<mask>", *"Ġabcdehlnorst.,"])}
    vocab = letters | {"Ġa": len(letters), "th": len(letters) + 1}
    tokenizer = Tokenizer(models.BPE(vocab, [("Ġ", "a"), ("t", "h")], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<pad>", "<unk>", "<s>", "</s>"])
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=request.param, special=True)])
    folder = tmp_path_factory.mktemp("byte-level")
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"pad": "<pad>", "unk": "<unk>", "bos": "<s>", "eos": "</s>", "cls": "<s>", "sep": "</s>", "mask": "<mask>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({f"{k}_token": v for k, v in names.items()}))
    return request.param, Model(model.trained._replace(tokenizer=load_tokenizer(folder)))


def test_a_byte_level_token_brings_its_space(byte_level):
    takes_space, model = byte_level
    found = {c.token: c.text for c in model.fill_mask("the hat <mask>.", top=100)[0]}
    assert found["Ġa"] == "the hat a."
    assert found["th"] == ("the hatth." if takes_space else "the hat th.")  # else the space is a token of its own
    found = {c.token: c.text for c in model.fill_mask("the hat<mask>.", top=100)[0]}
    assert found["Ġa"] == "the hat a."
    assert found["th"] == "the hatth."


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
    assert {c.word for c in word_piece.fill_mask("the [MASK].", targets=["Cat", "cat"])[0]} == {"Cat", "cat"}
    for target, error in [
        ("cating", "not one token here but cat ##ing"),
        ("dog", r"no word for the target 'dog', only \[UNK\]"),
        (" ", "not one token here but nothing"),
        ("the cat", "not one token"),
    ]:
        with pytest.raises(UserError, match=error):
            tokens("the [MASK].", target)


def test_a_target_of_several_tokens_is_left_out_with_a_warning(model, word_piece, caplog):
    found = word_piece.fill_mask("the [MASK]. [MASK]", targets=["cat", "cating", "dog"])
    assert [[c.word for c in mask] for mask in found] == [["cat"], ["cat"]]
    assert caplog.text.count("the target 'cating' is not one token here but cat ##ing") == 1
    assert caplog.text.count("no word for the target 'dog'") == 1
    with pytest.raises(UserError, match=r"'cating' is not one token here but cat ##ing.*; .*'dog'"):
        word_piece.fill_mask("the [MASK].", targets=["cating", "dog"])


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
        (lambda m: m.fill_mask("x [MASK]", top="2"), "top must be an int, not str"),
        (lambda m: m.fill_mask("x [MASK]", targets="the"), r"targets must be a list of str; pass \[target\]"),
        (lambda m: m.tokenize(["a"]), "text must be a str, not list"),
        (lambda m: m.embed(["a"], layers=1), "layers must be a list of int"),
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
    assert json.loads(capsys.readouterr().out)["texts"][0]["masks"][0][0]["token"] == "▁an"
    for arguments, error in [
        (("--targets=,", "x [MASK]"), "expected words separated by commas"),
        (("--targets=", "x [MASK]"), "--targets=: expected words separated by commas"),
        (("--targets=seven stones", "x [MASK]"), "'seven stones' is not one token here"),
        (("--top=0", "x [MASK]"), "--top=0: must be at least 1"),
        (("--top=3", "--targets=an", "x [MASK]"), "--top=3 has no effect beside --targets"),
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

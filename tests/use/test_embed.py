import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.errors import UserError
from jaxlm.model.heads import encode
from jaxlm.use import embed as module
from jaxlm.use.embed import Embedder, EmbedSettings, groups_of, settings_for
from jaxlm.use.loading import load_trained
from jaxlm.use.model import Model
from tests.conftest import sentences, write_checkpoint
from tests.huggingface.test_sentence_transformers import OLD, write_settings
from tests.untrained import LENGTH, make_workdir

TEXTS = ["", "The cat.", *sentences(30, seed=5), "a", "Every student sees the house " * 9]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return load_trained(make_workdir(tmp_path_factory.mktemp("embed") / "run"))


@pytest.fixture(scope="module")
def rotary(tmp_path_factory):
    """A pre-norm model with rotary positions, local windows, and products in bfloat16."""
    settings = {"positions": "rotary", "norm_position": "pre", "layer_pattern": "gl", "window": 8}
    return load_trained(make_workdir(tmp_path_factory.mktemp("rotary") / "run", **settings), "bfloat16")


@functools.cache
def program(model):
    def run(params, tokens):
        return encode(model, params, tokens, capture_intermediates=True, mutable=["intermediates"])

    return jax.jit(run, compiler_options={"xla_backend_optimization_level": 0})


def states(trained, text):
    """Returns the states of every layer for one text alone, without packing or padding, [layers + 1, n, D]."""
    tokens = Model(trained).tokenize(text)[None]
    if tokens.shape[1] > LENGTH:
        tokens = np.append(tokens[:, : LENGTH - 1], [[trained.tokenizer.end_id]], axis=1)
    final, captured = program(trained.model)(trained.params, tokens)
    layers = captured["intermediates"]["encoder"]
    of_layers = [layers[f"layers_{n}"]["__call__"][0][0] for n in range(trained.encoder.layers - 1)]
    return np.stack([x[0] for x in (layers["embeddings"]["__call__"][0], *of_layers, final)])


POOL = {"mean": lambda x: x.mean(0), "cls": lambda x: x[0], "max": lambda x: x.max(0), "lasttoken": lambda x: x[-1]}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pooling", "normalise", "layers"),
    [
        ("mean", False, (-1,)),
        ("mean", True, (1, -1)),
        ("cls", False, (0,)),
        ("max", True, (2, 1)),
        ("lasttoken", False, (-1,)),
    ],
)
def test_vectors_equal_those_of_each_text_alone(trained, pooling, normalise, layers):
    found = Model(trained).embed(TEXTS, pooling, normalise, layers)
    assert found.dtype == np.float32
    assert found.shape == (len(TEXTS), 16)
    for number in (0, 1, 2, len(TEXTS) - 1):
        each, vector = states(trained, TEXTS[number]), found[number]
        expected = POOL[pooling](each[list(layers)].mean(0))
        expected = expected / np.linalg.norm(expected) if normalise else expected
        assert vector == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_a_vector_does_not_depend_on_the_batch(trained):
    whole = Model(trained).embed(TEXTS)
    for number in (0, 1, 7, len(TEXTS) - 1):
        assert Model(trained).embed([TEXTS[number]])[0] == pytest.approx(whole[number], abs=1e-5)
    order = np.random.default_rng(0).permutation(len(TEXTS))
    shuffled = Model(trained).embed([TEXTS[n] for n in order], batch_tokens=100)
    assert shuffled == pytest.approx(whole[order], abs=1e-5)
    assert len({tuple(np.round(vector, 3)) for vector in whole}) == len(set(TEXTS))


@pytest.mark.slow
def test_bfloat16_with_rotary_positions_and_local_windows(rotary):
    whole = Model(rotary).embed(TEXTS, normalise=True)
    exact = load_trained(rotary.directory)
    for number in (0, 5, len(TEXTS) - 1):
        alone = Model(rotary).embed([TEXTS[number]], normalise=True)[0]
        assert alone @ whole[number] > 0.9995
        assert alone @ Model(exact).embed([TEXTS[number]], normalise=True)[0] > 0.999
        mean = states(exact, TEXTS[number])[-1].mean(0)
        assert Model(exact).embed([TEXTS[number]])[0] == pytest.approx(mean, abs=1e-5)


def test_an_empty_text_gives_the_vector_of_begin_and_end(trained):
    tokens = np.array([[trained.tokenizer.begin_id, trained.tokenizer.end_id]])
    expected = encode(trained.model, trained.params, tokens)[0].mean(0)
    assert Model(trained).embed(["", "the", ""])[[0, 2]] == pytest.approx(np.stack([expected] * 2), abs=1e-5)


def test_text_that_the_vocabulary_cannot_spell_is_refused_or_reported(trained, caplog):
    model = Model(trained)
    with pytest.raises(
        UserError, match=r"the texts: the vocabulary has no token for the words of this text, only \[UNK\]"
    ):
        model.embed(["Привет мир", "Столица"])
    assert model.embed([""]).shape == model.embed(["the cat"]).shape
    assert not caplog.text
    model.embed(["Привет", "the cat"])
    assert "tokens are [UNK], because the vocabulary has no token for their characters" in caplog.text


def test_few_programs_are_compiled(trained):
    settings = settings_for(trained)
    Embedder(trained, settings)(sentences(300))
    before = module._pooled.program._cache_size()
    for seed in range(5):
        Embedder(trained, settings)(sentences(300 + 20 * seed, seed=seed))
    assert module._pooled.program._cache_size() <= before + 2  # partial batches have a few sizes


def test_texts_that_are_too_long_are_truncated_and_counted_or_refused(trained):
    texts = ["short", "The old captain sees the house. " * 20, "The old captain sees the house. " * 30]
    embedder = Embedder(trained, settings_for(trained))
    first, second, third = embedder(texts)
    assert embedder.truncated == 2
    assert second == pytest.approx(third, abs=1e-5)
    assert not np.allclose(first, second, atol=0.1)
    assert embedder.tokens <= 3 * LENGTH
    with pytest.raises(UserError, match=r"text 2 is longer than the model's maximum of 40 tokens .*'The old captain"):
        Embedder(trained, settings_for(trained), too_long="refuse")(texts)


def test_groups_contain_every_text_and_are_bounded(monkeypatch):
    monkeypatch.setattr(module, "GROUP_TEXTS", 4)
    monkeypatch.setattr(module, "GROUP_CHARACTERS", 10)
    texts = ["a", "bb", "", "cccc", "d" * 30, "e", "f" * 9]
    groups = list(groups_of(texts))
    assert [text for group in groups for text in group] == texts
    assert [len(group) for group in groups] == [4, 1, 2]
    assert list(groups_of([])) == []


def test_a_special_token_in_a_text_is_special(trained):
    model, tokenizer = Model(trained), trained.tokenizer
    text = "the [MASK] of [SEP] cat"
    ids = model.tokenize(text)
    assert ids.tolist().count(tokenizer.mask_id) == 1
    assert ids.tolist().count(tokenizer.end_id) == 2
    states = encode(trained.model, trained.params, ids[None], np.ones((1, len(ids)), np.int32))
    np.testing.assert_allclose(model.embed([text, "the"])[0], np.mean(states[0], 0), atol=1e-5)


def test_parameters_that_are_not_finite_raise(trained):
    params = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), trained.params)
    with pytest.raises(UserError, match="the vector of text 1 is not finite"):
        Model(trained._replace(params=params)).embed(["x"])


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"pooling": "sum"}, "pooling=sum is not one of mean, cls, max, lasttoken"),
        ({"layers": (3,)}, "layers=3: must be from 0 .* to 2 for this model"),
        ({"layers": ()}, "layers="),
        ({"too_long": "cut"}, "too_long=cut is not one of"),
        ({"dimensions": 17}, "dimensions=17: must be from 1 to 16, the width of the model"),
        ({"dimensions": 0}, "dimensions=0: must be from 1 to 16"),
        ({"prompt": "query"}, "prompt=query: .* has no prompts; omit it"),
        ({"batch_tokens": -1}, "batch_tokens=-1: must not be negative"),
        ({"texts": "one text"}, "list of str"),
        ({"texts": [1]}, "list of str"),
    ],
)
def test_invalid_arguments_raise_one_sentence(trained, arguments, error):
    with pytest.raises(UserError, match=error):
        Model(trained).embed(**({"texts": ["x"]} | arguments))


def test_dimensions_are_the_first_ones_and_are_scaled_on_request(trained):
    model, texts = Model(trained), ["the cat", "a river"]
    whole = model.embed(texts, normalise=True)
    assert model.embed(texts, dimensions=5) == pytest.approx(model.embed(texts)[:, :5], abs=1e-6)
    cut = model.embed(texts, normalise=True, dimensions=5)
    assert cut == pytest.approx(whole[:, :5] / np.linalg.norm(whole[:, :5], axis=1, keepdims=True), abs=1e-6)


# sentence-transformers directories


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, text_file):
    return load_trained(write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "bert", text_file, head=False))


@pytest.mark.parametrize("transformer", ["", "0_Transformer"])
def test_a_sentence_transformers_directory_says_how_texts_are_embedded(checkpoint, tmp_path, transformer):
    directory = write_settings(tmp_path, transformer, sentence_bert_config={"max_seq_length": 24})
    model = checkpoint._replace(directory=directory)
    assert settings_for(model) == EmbedSettings("cls", True, (-1,), 24)
    assert settings_for(model, "max", False, (1, -1)) == EmbedSettings("max", False, (1, -1), 24)
    write_settings(tmp_path, transformer, {"pooling_mode": "max"}, ("Transformer", "Pooling"))
    assert settings_for(model)[:2] == ("max", False)
    assert settings_for(model, normalise=True, dimensions=8)[5:] == (8, True)


def test_the_limit_of_the_transformer_module_replaces_that_of_the_tokenizer(checkpoint, tmp_path):
    model = checkpoint._replace(directory=tmp_path, longest=20)
    for limit, longest in [(24, 24), (16, 16), (100, 40)]:  # the model has 40 positions
        write_settings(tmp_path, sentence_bert_config={"max_seq_length": limit})
        assert settings_for(model).longest == longest
    write_settings(tmp_path, sentence_bert_config={}, sentence_roberta_config={"max_seq_length": 9})
    assert settings_for(model).longest == 9
    write_settings(tmp_path, sentence_roberta_config={})
    assert settings_for(model).longest == 20


def test_the_default_is_the_mean_of_all_tokens(trained, checkpoint, tmp_path):
    assert settings_for(trained) == EmbedSettings("mean", False, (-1,), LENGTH, "")
    write_settings(tmp_path)
    (tmp_path / "sub").mkdir()
    other = checkpoint._replace(directory=tmp_path / "sub")  # the modules.json of its parent does not name it
    assert settings_for(other).pooling == "mean"


def test_prompts_are_found_as_by_sentence_transformers(checkpoint, tmp_path):
    prompts = {"query": "the ", "passage": "a ", "other": "every "}
    content = {"prompts": prompts, "default_prompt_name": "other", "truncate_dim": 10}
    model = checkpoint._replace(directory=write_settings(tmp_path, config_sentence_transformers=content))
    assert settings_for(model).dimensions == 10
    for name, prompt in {None: "every ", "query": "the ", "document": "", "passage": "a "}.items():
        assert settings_for(model, prompt=name).prompt == prompt
    with pytest.raises(UserError, match=r"prompt=corpus: the model has no such prompt; it has query, passage, other"):
        settings_for(model, prompt="corpus")
    found = Model(model).embed(["cat"], prompt="query")
    plain = Model(checkpoint).embed(["the cat"], pooling="cls", normalise=True)
    assert found == pytest.approx(plain[:, :10], abs=1e-5)


def test_a_directory_without_prompts_has_none_to_name(checkpoint, tmp_path):
    model = checkpoint._replace(directory=write_settings(tmp_path))
    with pytest.raises(UserError, match=r"prompt=query: .* has no prompts; omit it"):
        settings_for(model, prompt="query")


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"pooling": OLD | {"pooling_mode_mean_tokens": True}}, "sets the pooling to cls and mean; jaxlm supports"),
        ({"pooling": {"pooling_mode": "weightedmean"}}, "sets the pooling to weightedmean"),
        ({"pooling": {"pooling_mode": ["cls", "max"]}}, "sets the pooling to cls and max"),
        ({"kinds": ("Transformer",)}, "has no Pooling module; set the pooling with --pooling"),
        (
            {
                "pooling": {"pooling_mode": "mean", "include_prompt": False},
                "config_sentence_transformers": {"prompts": {"q": "q"}, "default_prompt_name": "q"},
            },
            "include_prompt",
        ),
    ],
)
def test_unsupported_settings_are_named(checkpoint, tmp_path, changes, error):
    with pytest.raises(UserError, match=error):
        settings_for(checkpoint._replace(directory=write_settings(tmp_path, **changes)))

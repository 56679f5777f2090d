"""`Model.logits` and `Model.encode`: packed texts, few compiled shapes, gradients, and invalid arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlm
from jaxlm.errors import UserError
from jaxlm.use import forward
from jaxlm.use.model import Model
from tests.untrained import LENGTH, make_workdir


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return jaxlm.load(make_workdir(tmp_path_factory.mktemp("forward") / "run", layers=1, token_types=2))


def rows(model, count: int, length: int) -> np.ndarray:
    return np.random.default_rng(length).integers(5, model.config.vocab_size, (count, length))


def close(actual, expected):
    return np.asarray(actual) == pytest.approx(np.asarray(expected), abs=1e-4)


@pytest.mark.slow
def test_packed_texts_have_the_outputs_that_they_have_alone(model):
    one, two = model.tokenize("The cat sees."), model.tokenize("a letter")
    row, segment_ids = np.concatenate([one, two])[None], np.repeat([1, 2], [len(one), len(two)])[None]
    for output, width in ((model.logits, model.config.vocab_size), (model.encode, model.config.width)):
        packed = output(row, segment_ids)
        assert (packed.shape, packed.dtype) == ((1, row.shape[1], width), np.float32)
        assert close(packed[0, : len(one)], output(one[None])[0])
        assert close(packed[0, len(one) :], output(two[None])[0])


@pytest.mark.slow
def test_the_logits_are_the_heads_of_the_states(model):
    tokens = rows(model, 2, 9)
    assert close(model.logits(tokens), model.trained.model.apply(
        {"params": model.params}, model.encode(tokens), method="predict"
    ))  # fmt: skip


def test_rows_of_a_full_length_are_padded_within_the_position_table(model):
    tokens = np.concatenate([rows(model, 3, LENGTH), rows(model, 3, LENGTH)], axis=1)
    segment_ids = np.repeat([[1, 2]], LENGTH, axis=1).repeat(3, axis=0)  # 80 tokens, padded to 128, of 40 positions
    packed = np.asarray(model.logits(tokens, segment_ids))
    assert np.isfinite(packed).all()
    assert close(packed[:, :LENGTH], model.logits(tokens[:, :LENGTH]))


def test_token_types_change_the_outputs_and_are_zero_by_default(model):
    tokens = rows(model, 2, 7)
    plain = model.logits(tokens)
    assert close(model.logits(tokens, token_types=np.zeros_like(tokens)), plain)
    assert np.abs(np.asarray(model.logits(tokens, token_types=np.ones_like(tokens))) - plain).max() > 1e-2


@pytest.mark.slow
def test_few_shapes_are_compiled(model):
    forward._outermost.program.clear_cache()
    for count in (1, 2, 3, 4):
        for length in (17, 20, 31, 32):
            assert model.logits(rows(model, count, length)).shape == (count, length, model.config.vocab_size)
    assert forward._outermost.program._cache_size() == 3  # 1, 2 and 4 rows of 32 tokens
    assert model.encode(np.zeros((0, 5), int)).shape == (0, 5, model.config.width)


@pytest.mark.slow
def test_gradients_and_jit_give_the_values_of_the_model(model):
    tokens, target = rows(model, 2, 11), 7

    def loss(params):
        logits = model.logits(tokens, params=params)
        assert logits.shape == (2, 11, model.config.vocab_size)  # the exact shape
        return -jax.nn.log_softmax(logits)[..., target].mean()

    expected = -jax.nn.log_softmax(model.logits(tokens))[..., target].mean()
    value, gradient = jax.value_and_grad(loss)(model.params)
    jitted, same = jax.jit(jax.value_and_grad(loss))(model.params)
    assert float(value) == pytest.approx(float(expected), abs=1e-4)
    assert float(jitted) == pytest.approx(float(expected), abs=1e-4)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4), gradient, same)
    bias, step = gradient["head"]["bias"], 1e-2
    moved = model.params | {"head": model.params["head"] | {"bias": model.params["head"]["bias"] - step * bias}}
    assert float(loss(moved)) - float(value) == pytest.approx(-step * float((bias**2).sum()), rel=0.05)


def test_a_callers_jit_and_vmap_trace_tokens(model):
    tokens = rows(model, 3, 10)
    expected = model.encode(tokens)
    assert close(jax.jit(model.encode)(tokens), expected)
    assert close(jax.vmap(lambda row: model.encode(row[None])[0])(jnp.asarray(tokens)), expected)
    assert close(jax.jit(lambda scale: scale * model.encode(tokens))(2.0), 2 * np.asarray(expected))
    shape = jax.eval_shape(model.logits, jax.ShapeDtypeStruct((4, 6), jnp.int32)).shape
    assert shape == (4, 6, model.config.vocab_size)


def test_a_model_without_a_head_encodes(model):
    tokens = rows(model, 2, 7)
    bare = Model(model.trained._replace(has_head=False, params={"encoder": model.params["encoder"]}))
    assert close(bare.encode(tokens), model.encode(tokens))
    assert close(bare.encode(tokens, params={"encoder": model.params["encoder"]}), model.encode(tokens))


def shorter(params):
    return params | {"head": {name: leaf[:-1] for name, leaf in params["head"].items() if name == "bias"}}


@pytest.mark.parametrize(("call", "error"), [
    (lambda m: m.logits([[1, 10**6]]), "tokens contain ids 1 to 1000000, but the model has 0 to 79"),
    (lambda m: m.logits([[1, 2**32 + 1]]), "tokens contain ids 1 to 4294967297"),
    (lambda m: m.logits([[-1, 1]]), "tokens contain ids -1 to 1"),
    (lambda m: m.logits([1, 2]), r"tokens must be integers of shape \[B, L\], not int64 \[2\]"),
    (lambda m: m.logits([[1.0]]), r"tokens must be integers of shape \[B, L\], not float64"),
    (lambda m: m.logits([[1], [2, 3]]), "in rows of equal length"),
    (lambda m: m.encode("the cat"), r"tokens must be integers of shape \[B, L\], not <U7"),
    (lambda m: m.encode(None), r"tokens must be integers of shape \[B, L\], not object"),
    (lambda m: m.encode([[1, 2]], [[0]]), r"segment_ids must have the shape of tokens \[1, 2\], not \[1, 1\]"),
    (lambda m: m.encode([[1, 2]], None, [[0, 2]]), "token_types contain ids 0 to 2, but the model has 0 to 1"),
    (lambda m: m.encode(np.ones((1, 41), int)), "rows of 41 tokens exceed the model's maximum length of 40"),
    (lambda m: m.encode(np.ones((1, 60), int), np.ones((1, 60), int)), "a segment or padding of 60 tokens exceeds"),
    (lambda m: m.logits([[1]], params={}), "params lack encoder/embeddings/"),
    (lambda m: m.logits([[1]], params={"encoder": m.params["encoder"]}), "params lack head/"),
    (lambda m: m.logits([[1]], params=shorter(m.params)), r"head/bias has the shape \[79\], but the model's is \[80\]"),
    (lambda m: Model(m.trained._replace(has_head=False)).logits([[1]]), "no masked-LM head"),
])  # fmt: skip
def test_invalid_arrays_are_one_sentence(model, call, error):
    with pytest.raises(UserError, match=error):
        call(model)


def test_shapes_are_checked_inside_a_trace(model):
    with pytest.raises(UserError, match=r"segment_ids must have the shape of tokens \[2, 3\], not \[2, 2\]"):
        jax.jit(model.encode)(jnp.ones((2, 3), int), jnp.ones((2, 2), int))
    with pytest.raises(UserError, match="rows of 41 tokens exceed"):
        jax.eval_shape(model.encode, jax.ShapeDtypeStruct((1, 41), jnp.int32))
    with pytest.raises(UserError, match="tokens contain ids 99 to 99"):
        jax.grad(lambda params: model.logits([[99]], params=params).sum())(model.params)


def test_a_model_without_token_types_rejects_them(tmp_path):
    plain = jaxlm.load(make_workdir(tmp_path / "run", layers=1))
    with pytest.raises(UserError, match="token_types are given, but the model has none"):
        plain.encode([[1, 2]], token_types=[[0, 0]])

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.config import SETTINGS, check_config, default_config
from jaxlm.model import attention, encoder, layers
from jaxlm.model.config import encoder_config
from jaxlm.model.execution import Execution, choose_execution
from jaxlm.model.heads import MaskedLM, encode, init_params, predict
from jaxlm.model.presets import PRESETS
from jaxlm.runtime.compiling import compiler_options

UNOPTIMIZED = {"xla_backend_optimization_level": 0}
TINY = {"vocab_size": 50, "layers": 2, "width": 16, "heads": 2, "feed_forward_width": 20}


def architecture(preset="", **changes):
    config = default_config()
    config.model.update(PRESETS[preset] if preset else {})
    config.model.update(TINY)
    config.model.update(changes)
    config.data.sequence_length = 32
    check_config(config)
    return encoder_config(config.model)


def random_params(config, seed=0):
    """Weights that expose errors: no bias is 0, no scale is 1, and products have about the size of their inputs."""
    random = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: init_params(config, 0))

    def leaf(path, shape):
        noise = random.standard_normal(shape.shape)
        kind = path[-1].key
        if kind == "kernel":
            noise = noise / math.sqrt(shape.shape[0])
        return jnp.asarray(1 + 0.3 * noise if kind == "scale" else noise if kind == "kernel" else noise / 2, "float32")

    return jax.tree_util.tree_map_with_path(leaf, shapes)


def random_tokens(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, TINY["vocab_size"], shape).astype(np.int32)


def forward(config, execution=Execution()):  # noqa: B008
    """Returns the logits at every position."""

    def logits(params, tokens, segment_ids=None, token_types=None, seeds=None, **flags):
        model = MaskedLM(config, execution)
        states = encode(model, params, tokens, segment_ids, token_types=token_types, dropout_seeds=seeds, **flags)
        return predict(model, params, states)

    return logits


@functools.cache
def applied(config, execution=Execution()):  # noqa: B008
    """The same, compiled as in training; cached by architecture."""
    return jax.jit(forward(config, execution), static_argnames="causal")


def quickly(function):
    """jit without LLVM optimizations, which compiles in a third of the time, for tests up to rounding."""
    return jax.jit(function, compiler_options=UNOPTIMIZED)


def pack(documents, length):
    """Returns tokens and segment_ids [1, L] of documents one after another, with padding at the end."""
    tokens, segments = np.zeros(length, np.int32), np.zeros(length, np.int32)
    start = 0
    for number, document in enumerate(documents, 1):
        tokens[start : start + len(document)] = document
        segments[start : start + len(document)] = number
        start += len(document)
    return tokens[None], segments[None]


# Independent references: one document at a time, NumPy in float64, no code of jaxlm.


def standardise(x, weights, epsilon):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon) * weights["scale"] + weights.get("bias", 0)


def exact_gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def dense(x, weights):
    return x @ weights["kernel"] + weights.get("bias", 0)


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def bert_logits(params, tokens, token_types, heads, first_position=0):
    """BERT as in arXiv 1810.04805 with its masked-LM head: norms after the sums, epsilon 1e-12."""
    table = params["encoder"]["embeddings"]
    x = table["token"]["embedding"][tokens] + table["token_type"]["embedding"][token_types]
    for index in range(len(tokens)):
        x[index] += table["position"]["embedding"][first_position + index]
    x = standardise(x, table["norm"], 1e-12)
    for number in range(sum(name.startswith("layers_") for name in params["encoder"])):
        layer = params["encoder"][f"layers_{number}"]
        query, key, value = (dense(x, layer["attention"][name]) for name in ("query", "key", "value"))
        width = x.shape[1] // heads
        mixed = np.zeros_like(x)
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            mixed[:, part] = softmax(query[:, part] @ key[:, part].T / math.sqrt(width)) @ value[:, part]
        x = standardise(x + dense(mixed, layer["attention"]["output"]), layer["attention_norm"], 1e-12)
        hidden = exact_gelu(dense(x, layer["feed_forward"]["up"]))
        x = standardise(x + dense(hidden, layer["feed_forward"]["down"]), layer["feed_forward_norm"], 1e-12)
    x = standardise(exact_gelu(dense(x, params["head"]["transform"])), params["head"]["norm"], 1e-12)
    return x @ table["token"]["embedding"].T + params["head"]["bias"]


def turned(x, base):
    """Rotary positions, one pair at a time: component i pairs with component i + half."""
    half, out = x.shape[1] // 2, np.zeros_like(x)
    for position in range(len(x)):
        for i in range(half):
            angle = position / base ** (2 * i / x.shape[1])
            first, second = x[position, i], x[position, i + half]
            out[position, i] = first * math.cos(angle) - second * math.sin(angle)
            out[position, i + half] = first * math.sin(angle) + second * math.cos(angle)
    return out


def modernbert_logits(params, tokens, heads, first_share=0.0):
    """ModernBERT as in arXiv 2412.13663: norms before, none first; every third layer global, others 64 to each side.

    After the first layer values have `first_share` of its values in them (arXiv 2410.17897).
    """
    table = params["encoder"]["embeddings"]
    x = standardise(table["token"]["embedding"][tokens], table["norm"], 1e-5)
    distance = np.abs(np.subtract.outer(np.arange(len(tokens)), np.arange(len(tokens))))
    first_value = None
    for number in range(sum(name.startswith("layers_") for name in params["encoder"])):
        layer = params["encoder"][f"layers_{number}"]
        everything = number % 3 == 0
        y = x if number == 0 else standardise(x, layer["attention_norm"], 1e-5)
        query, key, value = (dense(y, layer["attention"][name]) for name in ("query", "key", "value"))
        first_value = value if number == 0 else first_value
        value = (1 - first_share) * value + first_share * first_value
        width = x.shape[1] // heads
        mixed = np.zeros_like(x)
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            base = 160_000 if everything else 10_000
            scores = turned(query[:, part], base) @ turned(key[:, part], base).T / math.sqrt(width)
            mixed[:, part] = softmax(np.where((distance <= 64) | everything, scores, -np.inf)) @ value[:, part]
        x = x + dense(mixed, layer["attention"]["output"])
        y = standardise(x, layer["feed_forward_norm"], 1e-5)
        gate, up = dense(y, layer["feed_forward"]["gate"]), dense(y, layer["feed_forward"]["up"])
        x = x + dense(exact_gelu(gate) * up, layer["feed_forward"]["down"])
    x = standardise(x, params["encoder"]["final_norm"], 1e-5)
    x = standardise(exact_gelu(dense(x, params["head"]["transform"])), params["head"]["norm"], 1e-5)
    return x @ table["token"]["embedding"].T + params["head"]["bias"]


def in_float64(params):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)


def test_bert_matches_the_paper_padded_and_packed():
    config = architecture("bert_base", **TINY | {"width": 24, "heads": 3, "feed_forward_width": 40, "layers": 3},
                          max_positions=40)  # fmt: skip
    params, documents = random_params(config), [random_tokens(size, seed=size) for size in (11, 1, 17, 5)]
    types = [np.arange(len(document)) % 2 for document in documents]
    tokens, segment_ids = pack(documents, 40)
    token_types, _ = pack(types, 40)
    logits = applied(config)(params, tokens, segment_ids, token_types)[0]
    expected = [bert_logits(in_float64(params), *pair, heads=3) for pair in zip(documents, types, strict=True)]
    np.testing.assert_allclose(logits[:34], np.concatenate(expected), atol=1e-4)
    assert np.std(expected[0]) > 1, "logits this small would agree whatever they are"

    alone = applied(config)(params, documents[2][None])
    np.testing.assert_allclose(alone[0], bert_logits(in_float64(params), documents[2], 0, heads=3), atol=1e-4)


def test_roberta_counts_positions_from_row_two():
    config = architecture("roberta_base", norm_epsilon=1e-12, max_positions=34)
    params, document = random_params(config), random_tokens(32)
    logits = applied(config)(params, document[None])[0]
    expected = bert_logits(in_float64(params), document, 0, heads=2, first_position=2)
    np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_modernbert_matches_the_paper_padded_packed_and_beyond_its_window():
    config = architecture("modernbert_base", **TINY | {"width": 24, "layers": 4, "feed_forward_width": 40})
    params = random_params(config)
    documents = [random_tokens(size, seed=size) for size in (150, 3, 70, 1)]
    tokens, segment_ids = pack(documents, 240)
    logits = applied(config)(params, tokens, segment_ids)[0]
    expected = [modernbert_logits(in_float64(params), document, heads=2) for document in documents]
    np.testing.assert_allclose(logits[:224], np.concatenate(expected), atol=1e-4)
    assert np.std(expected[0]) > 1, "logits this small would agree whatever they are"


@pytest.mark.parametrize("rematerialise", ["none", "full"])
def test_later_layers_mix_in_the_values_of_the_first(rematerialise):
    config = architecture("modernbert_base", **TINY | {"layers": 3}, value_residual=0.4)
    params, document = random_params(config), random_tokens(30)
    logits = applied(config, Execution(rematerialise=rematerialise))(params, document[None])[0]
    np.testing.assert_allclose(logits, modernbert_logits(in_float64(params), document, 2, first_share=0.4), atol=1e-4)


# Packing and padding

PACKABLE = {
    "learned": {"positions": "learned", "layers": 1},
    "rotary": {"positions": "rotary", "layers": 1, "norm": "rms_norm"},
    "alibi": {"positions": "alibi", "norm_position": "post"},
    "local": {"positions": "rotary", "layers": 3, "layer_pattern": "lg", "window": 6, "local_rotary_base": 100.0},
    "local_alibi": {"positions": "alibi", "layers": 1, "layer_pattern": "l", "window": 4},
    "causal": {"positions": "learned", "layers": 1},
}


@pytest.mark.parametrize(
    ("name", "execution"),
    [(name, Execution()) for name in PACKABLE] + [("local", Execution("bfloat16"))],
    ids=str,
)
def test_another_document_in_the_row_changes_no_bits(name, execution):
    config = architecture(**PACKABLE[name])
    params, run = random_params(config), applied(config, execution)
    flags = {"causal": True} if name == "causal" else {}
    before, middle, after = (random_tokens(size, seed=size) for size in (9, 12, 7))
    own = slice(9, 21)

    def logits(before, after):
        tokens, segment_ids = pack([before, middle, after], 32)
        return run(params, tokens, segment_ids, **flags)[0]

    first = logits(before, after)
    second = logits((before + 1) % 50, (after + 7) % 50)
    np.testing.assert_array_equal(first[own], second[own])
    assert (first[:9] != second[:9]).any()

    alone = quickly(functools.partial(forward(config, execution), **flags))(params, middle[None])[0]
    tolerance = 2e-5 if execution == Execution() else 0.2
    np.testing.assert_allclose(first[own], alone, atol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["learned", "alibi", "local"])
def test_a_packed_document_has_the_same_gradients_as_alone(name):
    """With respect to every parameter, for a loss on B only: the gradients of A's embeddings are zero."""
    config = architecture(**PACKABLE[name], tied_output=False)
    params, run = random_params(config), forward(config)
    before, middle = np.arange(9, dtype=np.int32), 20 + np.arange(12, dtype=np.int32) % 9
    tokens, segment_ids = pack([before, middle], 32)

    def loss(params, tokens, segment_ids, own):
        return jnp.square(run(params, tokens, segment_ids)[0, own]).sum()

    packed = quickly(jax.grad(lambda p: loss(p, tokens, segment_ids, slice(9, 21))))(params)
    alone = quickly(jax.grad(lambda p: loss(p, middle[None], None, slice(0, 12))))(params)
    for (path, ours), theirs in zip(jax.tree_util.tree_leaves_with_path(packed), jax.tree.leaves(alone), strict=True):
        scale = max(float(np.abs(theirs).max()), 1.0)
        np.testing.assert_allclose(ours / scale, theirs / scale, atol=2e-5, err_msg=jax.tree_util.keystr(path))
    table = packed["encoder"]["embeddings"]["token"]["embedding"]
    assert not np.asarray(table[before]).any()
    assert np.asarray(table[middle]).any(-1).all()


@pytest.mark.parametrize("name", ["learned", "rotary", "local"])
def test_a_row_that_begins_inside_a_document_treats_the_piece_as_a_document(name):
    """The pipeline cuts rows from the stream: the end of one document, then whole ones, then the start of another."""
    config = architecture(**PACKABLE[name])
    params, run = random_params(config), applied(config)
    stream = [random_tokens(size, seed=size) for size in (20, 10, 25)]
    pieces = [stream[0][12:], stream[1], stream[2][:14]]
    packed = np.split(np.asarray(run(params, *pack(pieces, 32))[0]), [8, 18])
    for piece, ours in zip(pieces, packed, strict=True):
        np.testing.assert_allclose(ours, run(params, *pack([piece], 32))[0, : len(piece)], atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["bert_base", "modernbert_base"])
def test_padding_changes_no_outputs_alone_or_in_a_batch(preset):
    """The first is longer than the local window."""
    config = architecture(preset, layers=3, max_positions=64, **({"window": 8} if preset == "modernbert_base" else {}))
    params, run = random_params(config), quickly(forward(config))
    sentences = [random_tokens(size, seed=size) for size in (31, 7, 2, 24)]
    tokens, segment_ids = (np.concatenate(rows) for rows in zip(*[pack([s], 40) for s in sentences], strict=True))
    batch, first = run(params, tokens, segment_ids), run(params, tokens[:1], segment_ids[:1])
    for number, sentence in enumerate(sentences[:2]):
        alone = run(params, sentence[None])[0]
        np.testing.assert_allclose(batch[number, : len(sentence)], alone, atol=2e-5)
    np.testing.assert_allclose(first[0, :31], batch[0, :31], atol=2e-5)


def test_token_ids_in_padding_change_no_bits():
    config = architecture("bert_base")
    params, (tokens, segment_ids) = random_params(config), pack([random_tokens(10)], 32)
    first = applied(config)(params, tokens, segment_ids)
    second = applied(config)(params, np.where(segment_ids == 0, 33, tokens), segment_ids)
    np.testing.assert_array_equal(first[0, :10], second[0, :10])


@pytest.mark.parametrize(
    ("preset", "execution"),
    [
        ("bert_base", Execution()),
        ("mosaicbert_base", Execution("bfloat16")),
        ("modernbert_base", Execution("bfloat16")),
        ("modernbert_base", Execution("bfloat16", "bfloat16")),
    ],
    ids=str,
)
def test_rows_of_padding_have_finite_outputs_and_gradients(preset, execution):
    pattern = {"layer_pattern": "l", "window": 6} if preset == "modernbert_base" else {}
    config = architecture(preset, layers=1, **pattern)
    params, run = random_params(config), forward(config, execution)
    tokens, segment_ids = (np.concatenate([x, 0 * x, 0 * x]) for x in pack([random_tokens(20)], 32))

    def loss(params):
        logits = run(params, tokens, segment_ids)
        return jnp.square(logits).mean(), logits

    grads, logits = quickly(jax.grad(loss, has_aux=True))(params)
    assert np.isfinite(logits).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_causal_states_depend_on_no_later_token_outside_the_prefix():
    config = architecture(positions="learned")
    params, run = random_params(config), applied(config)
    tokens = random_tokens(1, 12)
    changed = tokens.copy()
    changed[0, 7] += 1 if tokens[0, 7] == 0 else -1

    def differs(**flags):
        return (run(params, tokens, **flags) != run(params, changed, **flags)).any(-1)[0].tolist()

    assert differs() == [True] * 12
    assert differs(causal=True) == [False] * 7 + [True] * 5
    assert differs(causal=True, prefix=np.array([4], np.int32)) == [False] * 7 + [True] * 5
    assert differs(causal=True, prefix=np.array([8], np.int32)) == [True] * 12


# Combinations of settings

SWITCHES = ("norm_bias", "attention_bias", "feed_forward_bias", "first_norm", "embedding_norm", "tied_output",
            "output_bias", "output_bias_from_frequencies", "head_transform", "head_bias")  # fmt: skip
CHOICES = dict.fromkeys(SWITCHES, (True, False)) | {
    name: SETTINGS["model"][name].choices
    for name in ("norm", "norm_position", "activation", "positions", "head_activation", "initialization")
} | {
    "embedding_width": (0, 12), "layer_pattern": ("g", "l", "gl"), "token_types": (0, 1, 2), "position_offset": (0, 2),
    "dropout": (0.0, 0.2), "attention_dropout": (0.0, 0.2), "window": (1, 6),
    "value_residual": (0.0, 0.5),
}  # fmt: skip


@pytest.mark.slow
@settings(deadline=None, max_examples=20, derandomize=True)
@given(
    st.fixed_dictionaries({name: st.sampled_from(values) for name, values in CHOICES.items()}),
    st.sampled_from([Execution(), Execution("bfloat16")]),
)
def test_any_combination_of_settings_works(choices, execution):
    config = architecture(**choices)
    model, params = MaskedLM(config, execution), random_params(config)
    tokens, segment_ids = pack([random_tokens(4), random_tokens(3)], 8)
    states = encode(model, params, tokens, segment_ids, dropout_seeds=jnp.ones((1, 2), jnp.uint32))
    logits = predict(model, params, states)
    assert states.dtype == execution.activation_dtype
    assert logits.dtype == jnp.float32
    assert logits.shape == (1, 8, 50)
    assert np.isfinite(logits).all()


def test_swiglu_and_rms_norm_match_their_papers():
    config = architecture(norm="rms_norm", activation="swiglu", layers=1, positions="none", norm_epsilon=1e-6,
                          first_norm=True, embedding_norm=False)  # fmt: skip
    params, tokens = random_params(config), random_tokens(1, 8)
    states = quickly(lambda: encode(MaskedLM(config), params, tokens))()[0]
    weights = in_float64(params)["encoder"]

    def scaled(x, name):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * name["scale"]

    x, layer = weights["embeddings"]["token"]["embedding"][tokens[0]], weights["layers_0"]
    y, mixed = scaled(x, layer["attention_norm"]), np.zeros_like(x)
    query, key, value = (dense(y, layer["attention"][name]) for name in ("query", "key", "value"))
    for part in (slice(0, 8), slice(8, 16)):
        mixed[:, part] = softmax(query[:, part] @ key[:, part].T / math.sqrt(8)) @ value[:, part]
    x = x + dense(mixed, layer["attention"]["output"])
    y = scaled(x, layer["feed_forward_norm"])
    gate = dense(y, layer["feed_forward"]["gate"])
    hidden = gate / (1 + np.exp(-gate)) * dense(y, layer["feed_forward"]["up"])
    x = scaled(x + dense(hidden, layer["feed_forward"]["down"]), weights["final_norm"])
    np.testing.assert_allclose(states, x, atol=2e-5)


def test_embeddings_of_another_width_are_projected():
    config = architecture(embedding_width=12, positions="learned", embedding_norm=True, layers=1)
    params = random_params(config)
    shapes = jax.tree.map(jnp.shape, params)
    assert shapes["encoder"]["embeddings"]["token"]["embedding"] == (50, 12)
    assert shapes["encoder"]["embeddings"]["position"]["embedding"] == (512, 12)
    assert shapes["encoder"]["embeddings"]["projection"]["kernel"] == (12, 16)
    assert shapes["head"]["transform"]["kernel"] == (16, 12)
    tokens = random_tokens(1, 8)
    embedded = encoder.Embeddings(config, Execution()).apply(
        {"params": params["encoder"]["embeddings"]}, tokens, np.arange(8)[None], None, None
    )
    table = in_float64(params)["encoder"]["embeddings"]
    x = table["token"]["embedding"][tokens[0]] + table["position"]["embedding"][:8]
    np.testing.assert_allclose(embedded[0], dense(standardise(x, table["norm"], 1e-5), table["projection"]), atol=1e-5)


# Execution


@pytest.mark.slow
def test_rematerialised_layers_have_the_same_tree_values_and_gradients():
    config = architecture("bert_base", layers=1, dropout=0.1, attention_dropout=0.1)
    tokens, segment_ids = pack([random_tokens(20)], 24)
    seeds = np.array([[1, 2]], np.uint32)
    results = []
    for execution in [Execution(rematerialise=policy) for policy in ("none", "attention", "dots", "full")]:
        params = quickly(MaskedLM(config, execution).init)(jax.random.key(0), tokens)["params"]
        run = forward(config, execution)
        loss = lambda p, run=run: jnp.square(run(p, tokens, segment_ids, None, seeds)).mean()  # noqa: E731
        results.append((params, quickly(jax.value_and_grad(loss))(params)))
    plain = results[0]
    for again in results[1:]:
        assert jax.tree.structure(plain) == jax.tree.structure(again)
        jax.tree.map(np.testing.assert_array_equal, plain[0], again[0])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), plain[1], again[1])


@pytest.mark.slow
def test_rematerialised_layers_need_less_memory():
    config = architecture(layers=4, feed_forward_width=128)
    tokens, params = random_tokens(16, 128), jax.eval_shape(lambda: init_params(config, 0))

    def temporary_bytes(execution):
        run = forward(config, execution)
        lowered = jax.jit(jax.grad(lambda p: jnp.square(run(p, tokens)).mean())).lower(params)
        compiled = lowered.compile(compiler_options(jax.default_backend()) | UNOPTIMIZED)
        return compiled.memory_analysis().temp_size_in_bytes

    none, attention, dots, full = (
        temporary_bytes(Execution(rematerialise=policy)) for policy in ("none", "attention", "dots", "full")
    )
    assert attention < 0.8 * none
    assert dots < 0.7 * none
    assert full < min(0.5 * none, 0.8 * dots)


def products(jaxpr):
    """Yields the matrix products in a jaxpr and its inner jaxprs."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from products(inner)


@pytest.mark.parametrize("execution", [Execution(), Execution("bfloat16"), Execution("bfloat16", "bfloat16")], ids=str)
def test_products_are_in_the_compute_dtype_and_float32_products_are_exact(execution):
    """On GPUs and TPUs, float32 products are computed in TF32 or bfloat16 unless their precision is set."""
    config = architecture("modernbert_base")
    run, params = forward(config, execution), jax.eval_shape(lambda: init_params(config, 0))
    jaxpr = jax.make_jaxpr(jax.grad(lambda p: run(p, random_tokens(1, 8)).sum()))(params)
    forwards = list(products(jax.make_jaxpr(lambda p: run(p, random_tokens(1, 8)))(params).jaxpr))
    assert {equation.invars[0].aval.dtype for equation in forwards} == {jnp.dtype(execution.compute_dtype)}
    for equation in products(jaxpr.jaxpr):
        if {operand.aval.dtype for operand in equation.invars} == {jnp.dtype("float32")}:
            assert set(equation.params["precision"] or ["default"]) == {jax.lax.Precision.HIGHEST}


# Dropout sites


def test_dropout_sites_are_all_different(monkeypatch):
    sites = []

    def spy(shape, rate, seeds, site):
        sites.append(site)
        return jnp.ones(shape, bool)

    monkeypatch.setattr(layers, "dropout_kept", spy)
    monkeypatch.setattr(attention, "dropout_kept", spy)
    config = architecture(layers=4, dropout=0.1, attention_dropout=0.1)
    tokens, seeds = np.zeros((1, 8), np.int32), jnp.zeros((1, 2), jnp.uint32)
    init = lambda: MaskedLM(config).init(jax.random.key(0), tokens, None, None, seeds, method="encode")  # noqa: E731
    jax.eval_shape(init)
    assert len(sites) == len(set(sites)) == 1 + 3 * 4


@pytest.mark.parametrize("rates", [{"dropout": 0.3}, {"attention_dropout": 0.3}], ids=str)
def test_dropout_depends_only_on_the_seeds_of_the_row(rates):
    config = architecture("bert_base", **{"dropout": 0.0, "attention_dropout": 0.0} | rates)
    params, run, tokens = random_params(config), quickly(forward(config)), np.repeat(random_tokens(1, 12), 3, 0)
    seeds = jnp.array([[1, 2], [3, 4], [1, 2]], jnp.uint32)
    plain, dropped = run(params, tokens), run(params, tokens, None, None, seeds)
    np.testing.assert_allclose(dropped[0], dropped[2], atol=1e-5)
    assert np.abs(dropped[0] - dropped[1]).max() > 0.05
    assert np.abs(dropped[0] - plain[0]).max() > 0.05


# Initial weights


@pytest.mark.slow
def test_initial_weights_follow_the_setting():
    cut = 0.8796  # standard deviation of a normal distribution truncated at two deviations
    residual = {"normal": 1, "depth_scaled": 4**-0.5, "zero_output": 0}
    for initialization, share in residual.items():
        config = architecture(
            width=64, feed_forward_width=96, initialization=initialization, initialization_std=0.02,
            tied_output=False, token_types=40, positions="learned", vocab_size=100,
        )  # fmt: skip
        params = init_params(config, 0)
        deviations = jax.tree.map(lambda leaf: float(leaf.std()) / (0.02 * cut), params)
        layer, tables = deviations["encoder"]["layers_1"], deviations["encoder"]["embeddings"]
        inner = [layer["attention"][name]["kernel"] for name in ("query", "key", "value")]
        inner += [layer["feed_forward"]["up"]["kernel"], deviations["head"]["transform"]["kernel"]]
        inner += [tables[name]["embedding"] for name in ("token", "position", "token_type")]
        np.testing.assert_allclose(inner, 1, rtol=0.05)
        into_the_stream = [layer["attention"]["output"]["kernel"], layer["feed_forward"]["down"]["kernel"]]
        np.testing.assert_allclose(into_the_stream, share, rtol=0.05)
        logits = 0 if initialization == "zero_output" else 1
        np.testing.assert_allclose(deviations["head"]["kernel"], logits, rtol=0.05)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            if path[-1].key in ("bias", "scale"):
                np.testing.assert_array_equal(leaf, 1.0 if path[-1].key == "scale" else 0.0)


@pytest.mark.slow
def test_the_compiler_does_not_recompute_lower_layers_in_each_layer():
    """On CPU, no fused operation between products may read the outputs of all lower layers: it has few arguments."""

    def most_arguments(layers):
        config, run = architecture(layers=layers, dropout=0.1), choose_execution("float32", "cpu", 1)
        params, tokens = random_params(config), random_tokens(2, 16)
        seeds = jnp.zeros((2, 2), jnp.uint32)
        loss = lambda params: (forward(config, run)(params, tokens, None, None, seeds) ** 2).sum()  # noqa: E731
        program = jax.jit(jax.grad(loss)).lower(params).compile(compiler_options("cpu")).as_text()
        return max(line.split("fusion(")[1].split("), kind")[0].count("%") for line in program.splitlines()
                   if " fusion(" in line)  # fmt: skip

    assert most_arguments(10) <= most_arguments(3)

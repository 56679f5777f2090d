import dataclasses
import math
import os
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.config import SETTINGS, check_config, default_config
from jaxlm.errors import UserError
from jaxlm.model.config import EncoderConfig, encoder_config
from jaxlm.model.execution import Execution, choose_execution
from jaxlm.model.flops import training_flops
from jaxlm.model.heads import MaskedLM, abstract_params, encode, gather_positions, parameter_count, predict
from jaxlm.model.kernels.dispatch import choose_attention
from jaxlm.model.presets import PRESETS
from jaxlm.runtime.parameter_paths import param_path
from jaxlm.settings import MAX_CHOSEN_VOCABULARY

GOLDEN = Path(__file__).parent.parent / "golden"
RENEW = "JAXLM_RENEW_GOLDEN"


def architecture(preset="", tokenizer_size=0, **changes):
    config = default_config()
    config.model.update(PRESETS[preset] if preset else {})
    config.model.update(changes)
    config.data.sequence_length = 64
    check_config(config)
    return encoder_config(config.model, tokenizer_size)


@pytest.mark.parametrize("name", ["default", "bert_base", "roberta_base", "modernbert_base", "mosaicbert_base"])
def test_parameter_tree_matches_the_golden_file(name):
    config = architecture(vocab_size=8192) if name == "default" else architecture(name)
    leaves = jax.tree_util.tree_leaves_with_path(abstract_params(config))
    tree = "".join(f"{param_path(path)} {'x'.join(map(str, leaf.shape))} {leaf.dtype}\n" for path, leaf in leaves)
    golden = GOLDEN / f"{name}.txt"
    if os.environ.get(RENEW):
        golden.write_text(tree)
    assert tree == golden.read_text(), (
        f"the parameters of {name} are not those of {golden}: checkpoints of before no longer load. "
        f"If this is intended, run the test with {RENEW}=1 to renew the file, and check its diff"
    )


@pytest.mark.parametrize(
    ("preset", "published"),
    [
        ("bert_base", 109_514_298),
        ("bert_large", 335_174_458),
        ("roberta_base", 124_697_433),
        ("modernbert_base", 149_655_232),
    ],
)
def test_parameter_count_matches_the_published_one(preset, published):
    assert parameter_count(architecture(preset)) == published


def test_every_model_setting_is_a_field_of_the_architecture():
    beginnings = {
        "init_from",
        "extend_positions",
        "reinitialize_layers",
        "remove_layers",
        "remove_units",
        "remove_heads",
    }  # what weights a run starts with
    assert {field.name for field in dataclasses.fields(EncoderConfig)} == set(SETTINGS["model"]) - beginnings


def test_vocabulary_follows_the_tokenizer_unless_set():
    assert architecture(tokenizer_size=100).vocab_size == 100
    assert architecture(tokenizer_size=100, vocab_size=128).vocab_size == 128
    with pytest.raises(UserError, match=r"vocab_size=64 is smaller than the tokenizer's 100 entries"):
        architecture(tokenizer_size=100, vocab_size=64)
    with pytest.raises(UserError, match=r"vocab_size must be at least 8"):
        architecture()


def test_embedding_width_follows_the_width_unless_set():
    assert architecture(vocab_size=64, width=48).embedding_width == 48
    assert architecture(vocab_size=64, width=48, embedding_width=20).embedding_width == 20


def test_layer_pattern_repeats_over_the_layers():
    config = architecture("modernbert_base")
    assert [index for index in range(22) if not config.is_local(index)] == [0, 3, 6, 9, 12, 15, 18, 21]
    assert not any(architecture("bert_base").is_local(index) for index in range(12))


def test_transposed_gradients_are_for_a_single_cpu_device_only():
    assert choose_execution("bfloat16", "cpu", 1) == Execution("bfloat16", "float32", True, True)
    assert choose_execution("bfloat16", "cpu", 2) == Execution("bfloat16", "float32", False, True)
    assert choose_execution("bfloat16", "tpu", 1) == Execution("bfloat16", "bfloat16")
    assert choose_execution("float32", "gpu", 1, rematerialise="full") == Execution(rematerialise="full")


PLAIN = {"vocab_size": 64, "width": 256, "heads": 4}


class OfTensor:
    """A mesh with this number of devices along `tensor`."""

    def __init__(self, tensor):
        self.shape = {"data": 1, "fsdp": 1, "tensor": tensor}

    def __repr__(self):
        return f"OfTensor({self.shape['tensor']})"


@pytest.mark.parametrize(
    ("platform", "dtype", "changes", "mesh", "kernel", "words"),
    [
        ("cpu", "bfloat16", {}, None, "xla", "only one"),
        ("gpu", "bfloat16", {"attention_dropout": 0.1}, None, "flash", "packed rows"),
        ("gpu", "float32", {}, None, "xla", "train.compute_dtype is float32"),
        ("tpu", "bfloat16", {}, None, "splash", "packed rows"),
        ("tpu", "bfloat16", {"layer_pattern": "gll"}, OfTensor(2), "splash", "packed rows"),
        ("tpu", "float32", {}, None, "xla", "train.compute_dtype is float32"),
        ("tpu", "bfloat16", {"attention_dropout": 0.1}, None, "xla", "model.attention_dropout is 0.1"),
        ("tpu", "bfloat16", {"positions": "alibi"}, None, "xla", "alibi"),
        ("tpu", "bfloat16", {}, OfTensor(8), "xla", "mesh.tensor=8 does not divide model.heads=4"),
    ],
    ids=str,
)
def test_auto_selects_a_kernel_that_supports_the_model_and_gives_the_reason(
    platform, dtype, changes, mesh, kernel, words
):
    config = architecture(**PLAIN | changes)
    chosen, why = choose_attention("auto", config, dtype, platform, mesh)
    assert chosen == kernel
    assert words in why
    assert choose_attention("xla", config, dtype, platform, mesh)[0] == "xla"
    if kernel == "splash":
        assert choose_attention("splash", config, dtype, platform, mesh)[0] == "splash"
    elif platform == "tpu":
        with pytest.raises(UserError, match=r"^train.attention=splash: .*; train.attention=auto"):
            choose_attention("splash", config, dtype, platform, mesh)


@pytest.mark.parametrize(
    ("kernel", "platform", "dtype", "changes", "words"),
    [
        ("splash", "cpu", "bfloat16", {}, "it runs on a TPU, and this is a CPU"),
        ("splash", "tpu", "bfloat16", {"attention_dropout": 0.1}, "does not support dropout"),
        ("flash", "tpu", "bfloat16", {}, "it runs on a GPU, and this is a TPU"),
        ("flash", "gpu", "float32", {}, "it needs bfloat16"),
        ("flash", "gpu", "bfloat16", {"positions": "alibi"}, "does not support a bias"),
        ("flash", "gpu", "bfloat16", {"width": 240}, "16, 32, 64 and 128, not 60"),
    ],
    ids=str,
)
def test_a_kernel_is_rejected_for_a_model_or_platform_that_it_does_not_support(kernel, platform, dtype, changes, words):
    with pytest.raises(UserError, match=f"^train.attention={kernel}: .*{words}"):
        choose_attention(kernel, architecture(**PLAIN | changes), dtype, platform, None)


def test_one_device_does_not_split_rows():
    rows = SimpleNamespace(mesh=OfTensor(2))
    assert choose_execution("bfloat16", "tpu", 2, rows=rows).rows is rows
    assert choose_execution("bfloat16", "tpu", 1, rows=rows).rows is None


def product_flops(jaxpr):
    """Returns the FLOPs, two per multiplication, of all matrix products in a jaxpr and its inner jaxprs."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            contracted = equation.params["dimension_numbers"][0][0]
            left = equation.invars[0].aval.shape
            total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                total += product_flops(inner)
    return total


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"activation": "swiglu"},
        {"embedding_width": 12},
        {"embedding_width": 12, "head_transform": False},
        {"head_transform": False, "tied_output": False},
        {"layer_pattern": "gl", "window": 64},
    ],
    ids=str,
)
def test_training_flops_are_three_times_the_products_of_the_forward_pass(changes):
    config = architecture(vocab_size=50, layers=3, width=16, heads=2, feed_forward_width=24, **changes)
    batch, length, predictions = 3, 20, 12
    params = abstract_params(config)
    tokens, places = jnp.zeros((batch, length), jnp.int32), jnp.zeros((batch, predictions // batch), jnp.int32)
    model = MaskedLM(config)
    apply = lambda params: predict(model, params, gather_positions(encode(model, params, tokens), places))  # noqa: E731
    counted = product_flops(jax.make_jaxpr(apply)(params).jaxpr)
    assert training_flops(config, batch, length, predictions) == 3 * counted


def test_training_flops_count_a_local_layer_by_its_window():
    wide, narrow = (architecture(vocab_size=50, layers=2, layer_pattern="gl", window=w) for w in (2000, 10))
    saved = training_flops(wide, 4, 512, 0) - training_flops(narrow, 4, 512, 0)
    assert saved == 6 * 4 * 512 * 2 * wide.width * (512 - 11)


@pytest.mark.parametrize("preset", [None, *PRESETS])
def test_presets_and_defaults_are_those_of_the_settings(preset):
    config = default_config()
    config.model.update(PRESETS[preset] if preset else {})
    made = EncoderConfig.preset(preset) if preset else EncoderConfig()
    assert made == encoder_config(config.model, 0 if preset else MAX_CHOSEN_VOCABULARY)


def test_fields_are_converted_and_the_embedding_width_follows_the_width():
    config = EncoderConfig(width=np.int64(64), heads=4, norm_epsilon=1)
    assert (config.embedding_width, type(config.width), config.norm_epsilon) == (64, int, 1.0)
    assert EncoderConfig.preset("bert_base", layers=3).layers == 3
    assert hash(config) == hash(EncoderConfig(width=64, norm_epsilon=1.0))


@pytest.mark.parametrize(("changes", "message"), [
    ({"heads": 3}, "model.heads=3 does not divide model.width=256"),
    ({"heads": 0}, "model.heads=0: must be at least 1"),
    ({"width": "wide"}, "model.width=wide: expected a whole number"),
    ({"layers": 2.5}, "model.layers=2.5: expected a whole number"),
    ({"activation": "gellu"}, "did you mean gelu?"),
    ({"norm_epsilon": float("nan")}, "model.norm_epsilon=nan"),
    ({"layer_pattern": "gx"}, "model.layer_pattern=gx"),
    ({"vocab_size": 0}, "model.vocab_size must be at least 8"),
])  # fmt: skip
def test_an_invalid_architecture_is_one_sentence(changes, message):
    with pytest.raises(UserError) as error:
        EncoderConfig(**changes)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [("bert-base", "there is no preset bert-base; did you mean bert_base?"), ("x", "the presets are bert_base, ")],
)
def test_an_unknown_preset_names_the_nearest(name, message):
    with pytest.raises(UserError) as error:
        EncoderConfig.preset(name)
    assert message in str(error.value)

"""Architectures converted to the form of another family compute the same function."""

import jax
import numpy as np
import pytest

from jaxlm.config import default_config
from jaxlm.huggingface.families import FAMILIES
from jaxlm.huggingface.family_config import choose_family
from jaxlm.huggingface.refit import refit, refit_params
from jaxlm.model.config import EncoderConfig, encoder_config
from jaxlm.model.heads import MaskedLM, abstract_params

PRE = {"positions": "rotary", "embedding_norm": True, "first_norm": False}
POST = {"positions": "learned", "embedding_norm": True, "norm_position": "post", "max_positions": 30}


def architecture(**changes) -> EncoderConfig:
    config = default_config()
    config.model.update(layers=2, width=24, heads=2, feed_forward_width=20, vocab_size=40, norm_epsilon=1e-5)
    config.model.update(changes)
    return encoder_config(config.model)


def random_params(encoder: EncoderConfig):
    random = np.random.RandomState(0)

    def draw(path, leaf):
        near = 1 if path[-1].key == "scale" else 0
        return (near + 0.3 * random.standard_normal(leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, abstract_params(encoder))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("modernbert", PRE | {"activation": activation, "feed_forward_bias": bias})
        for activation in ("relu_squared", "gelu", "silu", "relu")
        for bias in (True, False)
    ]
    + [
        ("modernbert", PRE | {"activation": "geglu", "head_transform": False, "tied_output": tied, "norm_bias": bias})
        for tied in (True, False)
        for bias in (True, False)
    ]
    + [
        ("modernbert", PRE | {"head_transform": False, "tied_output": False}),  # as in the quickstart
        ("roberta", POST | {"activation": "gelu"}),
        ("bert", POST | {"activation": "relu", "head_activation": "relu", "position_offset": 2}),
    ],
)
def test_a_refitted_encoder_computes_the_same(family, changes):
    before = architecture(**changes)
    assert choose_family(before, family).name == family
    after = refit(before, FAMILIES[family], pad_id=3)
    assert after != before
    params = random_params(before)
    refitted = refit_params(params, before, after)
    assert jax.tree.map(np.shape, refitted) == jax.tree.map(lambda leaf: leaf.shape, abstract_params(after))
    tokens = np.random.RandomState(1).randint(0, 40, (2, 17)).astype(np.int32)
    fast = {"xla_backend_optimization_level": 0}
    expected, found = (
        jax.jit(MaskedLM(encoder).apply, compiler_options=fast)({"params": p}, tokens)
        for encoder, p in ((before, params), (after, refitted))
    )
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_an_encoder_without_a_head_keeps_its_final_norm():
    before = architecture(**PRE, head_transform=False)
    after = refit(before, FAMILIES["modernbert"], 0)
    params = random_params(before)
    alone = refit_params({"encoder": params["encoder"]}, before, after)
    assert alone.keys() == {"encoder"}
    np.testing.assert_array_equal(alone["encoder"]["final_norm"]["scale"], params["encoder"]["final_norm"]["scale"])


def test_an_encoder_in_the_right_form_is_unchanged():
    encoder = architecture(**PRE, activation="geglu")
    assert refit(encoder, FAMILIES["modernbert"], 0) == encoder

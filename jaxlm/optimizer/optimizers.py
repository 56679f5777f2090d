"""The optimizer of a run as an optax transformation: AdamW, LAMB or Muon, with frozen parameters left out."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxlm.optimizer.muon import is_layer_matrix, muon
from jaxlm.optimizer.parameter_rules import decay_mask, frozen_mask, rate_multipliers
from jaxlm.runtime.parameter_paths import map_params


def make_optimizer(settings: Any, params: Any, compute_dtype: str = "float32") -> optax.GradientTransformation:
    """Returns the transformation of section `optimizer`: gradients to updates at a learning rate of 1.

    The train step multiplies the updates by the scheduled rate, so the optimizer state does not depend on the schedule
    and a run can be extended. Frozen parameters have no state, do not count in the gradient norm, and their update is
    None. params may be shapes. compute_dtype is the dtype of Muon's matrix products.

    AdamW (arXiv 1711.05101), LAMB (arXiv 1904.00962), Muon (arXiv 2502.16982). Raises UserError for invalid rules.
    """
    frozen = frozen_mask(settings, params)
    decay, multipliers = (drop_frozen(frozen, of(settings, params)) for of in (decay_mask, rate_multipliers))
    adam = optax.scale_by_adam(settings.beta1, settings.beta2, settings.epsilon)
    weight_decay = optax.add_decayed_weights(settings.weight_decay, mask=decay)
    if settings.name == "adamw":
        update = optax.chain(adam, weight_decay)
    elif settings.name == "lamb":
        update = optax.chain(adam, weight_decay, optax.scale_by_trust_ratio())
    else:
        # Checkpoints contain these names.
        kinds = map_params(lambda path, leaf: "matrix" if is_layer_matrix(path, leaf) else "rest", params)
        kinds = drop_frozen(frozen, kinds)
        # The train step multiplies every update by AdamW's learning rate; matrices have a peak rate of their own.
        ratio = settings.muon_learning_rate / settings.learning_rate
        multipliers = jax.tree.map(lambda kind, x: x * (ratio if kind == "matrix" else 1.0), kinds, multipliers)
        update = optax.chain(
            optax.partition({"matrix": muon(settings, compute_dtype), "rest": adam}, kinds), weight_decay
        )
    # Last in the chain, so that a multiplier also scales weight decay and is not undone by LAMB's trust ratio.
    rescale = optax.stateless(lambda updates, _: jax.tree.map(jnp.multiply, updates, multipliers))
    clip = [optax.clip_by_global_norm(settings.clip_norm)] if settings.clip_norm else []
    return _update_trainable(optax.chain(*clip, update, rescale, optax.scale(-1.0)), frozen)


def drop_frozen(frozen: Any, tree: Any) -> Any:
    """Returns the tree with None, which has no leaves for JAX, in place of frozen parameters."""
    return jax.tree.map(lambda is_frozen, leaf: None if is_frozen else leaf, frozen, tree)


def stop_frozen_gradients(frozen: Any, params: Any) -> Any:
    """Returns the parameters with `stop_gradient` applied to the frozen ones.

    The backward pass then ends at the lowest trainable parameter, which saves its products below.
    """
    return jax.tree.map(lambda is_frozen, leaf: jax.lax.stop_gradient(leaf) if is_frozen else leaf, frozen, params)


def _update_trainable(update: optax.GradientTransformation, frozen: Any) -> optax.GradientTransformation:
    """Returns the transformation applied to the trainable parameters only."""

    def step(gradients: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return update.update(drop_frozen(frozen, gradients), state, drop_frozen(frozen, params))

    return optax.GradientTransformation(lambda params: update.init(drop_frozen(frozen, params)), step)

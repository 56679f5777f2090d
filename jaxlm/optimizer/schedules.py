"""Learning-rate schedules."""

from typing import Any

import jax.numpy as jnp
import optax
from jax import Array


def make_schedule(settings: Any, total: float) -> Any:
    """Returns the learning rate's factor (0 to 1) as a function of the updates done, float32 scalar to float32 scalar.

    `total` is the run's length in the same unit: updates, or for a time budget any unit of time. Warm-up is linear;
    wsd is warm-up, stable, decay (arXiv 2404.06395), its "1-sqrt" fall that of arXiv 2405.18392.
    """

    def updates(share_or_steps: float) -> float:
        return share_or_steps * total if share_or_steps < 1 else share_or_steps

    warmup = min(updates(settings.warmup), total)
    rest = max(total - warmup, 1e-6)
    final = settings.final
    if settings.name == "linear":
        after = optax.linear_schedule(1.0, final, rest)
    elif settings.name == "cosine":
        after = optax.cosine_decay_schedule(1.0, rest, final)
    elif settings.name == "constant":
        after = optax.constant_schedule(1.0)
    else:
        fall = max(min(updates(settings.decay_steps), rest), 1e-6)
        straight = optax.linear_schedule(0.0, 1.0, fall, rest - fall)

        def after(count: Array) -> Array:
            share = straight(count)
            return 1 - (1 - final) * (jnp.sqrt(share) if settings.decay_shape == "1-sqrt" else share)

    def factor(done: Array) -> Array:
        # The first update already has a rate above zero: one step of the warm-up is done when it is.
        rising = jnp.minimum((done + 1) / max(warmup, 1.0), 1.0) if warmup > 0 else 1.0
        return jnp.where(done < warmup, rising, after(jnp.maximum(done - warmup, 0.0)))

    return factor

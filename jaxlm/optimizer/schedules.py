"""Learning-rate schedules: linear, cosine, warmup-stable-decay, constant, each with linear warm-up."""

from typing import Any

import jax.numpy as jnp
import optax
from jax import Array


def make_schedule(settings: Any, total: float) -> Any:
    """Returns a function from the number of completed updates to the learning rate's factor, 0 to 1; float32 scalars.

    `total` is the length of the run in the same unit: updates, or any unit of time for a run with a time budget.
    wsd is warmup-stable-decay (arXiv 2404.06395); its decay shape "1-sqrt" follows arXiv 2405.18392.
    """

    def length_of(share_or_steps: float) -> float:
        return share_or_steps * total if share_or_steps < 1 else share_or_steps

    warmup = min(length_of(settings.warmup), total)
    rest = max(total - warmup, 1e-6)
    final = settings.final
    if settings.name == "linear":
        after = optax.linear_schedule(1.0, final, rest)
    elif settings.name == "cosine":
        after = optax.cosine_decay_schedule(1.0, rest, final)
    elif settings.name == "constant":
        after = optax.constant_schedule(1.0)
    else:
        decay = max(min(length_of(settings.decay_steps), rest), 1e-6)
        progress = optax.linear_schedule(0.0, 1.0, decay, rest - decay)

        def after(count: Array) -> Array:
            share = progress(count)
            return 1 - (1 - final) * (jnp.sqrt(share) if settings.decay_shape == "1-sqrt" else share)

    def factor(done: Array) -> Array:
        # Counts the update in progress, so that the first one has a rate above 0.
        rising = jnp.minimum((done + 1) / max(warmup, 1.0), 1.0) if warmup > 0 else 1.0
        return jnp.where(done < warmup, rising, after(jnp.maximum(done - warmup, 0.0)))

    return factor

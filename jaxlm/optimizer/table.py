"""The update of a run: the optimizer of its config, with pruning and averaging if they are set."""

from typing import Any

from jaxlm.optimizer.optimizers import make_optimizer
from jaxlm.optimizer.parameter_rules import frozen_mask
from jaxlm.optimizer.pruning import pruned
from jaxlm.optimizer.update import Update, averaged, plain


def make_update(config: Any, params: Any, compute_dtype: str = "float32") -> Update:
    """Returns the update of sections `optimizer` and `pruning`; params may be shapes. Raises UserError."""
    update, frozen = (
        plain(make_optimizer(config.optimizer, params, compute_dtype)),
        frozen_mask(config.optimizer, params),
    )
    if config.pruning.sparsity:
        update = pruned(update, config.pruning, params, frozen)
    if config.optimizer.average:
        update = averaged(update, config.optimizer.average, frozen)
    return update

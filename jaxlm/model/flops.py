"""The FLOPs of a training step, counted from the architecture."""

from jaxlm.model.config import EncoderConfig


def training_flops(config: EncoderConfig, batch: int, length: int, predictions: int) -> float:
    """Returns the FLOPs of one update's matrix products, forward and backward (three times the forward).

    Counts the layers' products, attention's two (all of a row, or the window in local layers), the head's and the
    logits' at `predictions` positions; not lookups, norms, softmax, or what rematerialisation computes twice.
    """
    width, hidden, table = config.width, config.feed_forward_width, config.embedding_width
    layer = 4 * width * width + (3 if config.gated else 2) * width * hidden
    seen = sum(min(length, config.window + 1) if config.is_local(i) else length for i in range(config.layers))
    head = width * table if config.head_transform or table != width else 0
    per_token = config.layers * layer + 2 * width * seen + (table * width if table != width else 0)
    return 6.0 * (batch * length * per_token + predictions * (head + table * config.vocab_size))

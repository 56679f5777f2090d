"""The number of floating-point operations (FLOPs) in a training step, from the architecture."""

from jaxlm.model.config import EncoderConfig


def training_flops(config: EncoderConfig, batch: int, length: int, predictions: int) -> float:
    """Returns the FLOPs of the matrix products in one update, forward and backward (3 times the forward pass).

    Counts the products of the layers, the two of attention (over whole rows; in local layers, over the window), and the
    head and logits at `predictions` positions; not embedding lookups, norms, softmax or rematerialisation.
    """
    width, hidden, table = config.width, config.feed_forward_width, config.embedding_width
    layer = 4 * width * config.attention_width + (3 if config.gated else 2) * width * hidden
    keys = sum(min(length, config.window + 1) if config.is_local(i) else length for i in range(config.layers))
    head = width * table if config.head_transform or table != width else 0
    per_token = config.layers * layer + 2 * config.attention_width * keys + (table * width if table != width else 0)
    return 6.0 * (batch * length * per_token + predictions * (head + table * config.vocab_size))

"""TensorFlow for tf.data and TFDS: quiet, without GPUs, and without Keras, which takes a third of its import."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any


def import_tensorflow() -> Any:
    """Returns TensorFlow, quiet by default, and without GPUs, whose memory it would take from JAX."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # otherwise it logs at any level; no kernel of it is used
    with _without("keras.src.optimizers"):
        import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")
    return tf


@contextlib.contextmanager
def _without(module: str) -> Iterator[None]:
    """Makes the import of a module fail in the body, unless it or TensorFlow is there already.

    TensorFlow imports this one so that Keras is loaded at once. It ignores a failure, and `tf.keras` is then loaded
    when a program first uses it.
    """
    if module in sys.modules or "tensorflow" in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.modules.pop(module, None)  # another thread may have been here too

"""jaxlm: masked language models in JAX, from raw text to a trained encoder."""

__version__ = "0.1.0"


def load(directory):
    """Returns the trained model of a work directory as a `jaxlm.predict.Model`. Raises UserError."""
    from jaxlm.predict import load  # here, so that `import jaxlm` is quick

    return load(directory)

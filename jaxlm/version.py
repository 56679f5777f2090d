"""The version of jaxlm, recorded in checkpoints, token stores and model cards."""

__version__ = "0.1.0"

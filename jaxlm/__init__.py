"""jaxlm: language models of the BERT family in JAX, from raw text to a model in use."""

from typing import TYPE_CHECKING, Any

from jaxlm.version import __version__ as __version__

if TYPE_CHECKING:
    from pathlib import Path

    from jaxlm.use.model import Model
    from jaxlm.use.neighbours import nearest as nearest
    from jaxlm.use.neighbours import similarity as similarity


def load(directory: "str | Path", compute_dtype: str = "float32", step: int | str | None = None) -> "Model":
    """Returns the model in a work directory or a Hugging Face directory: `fill_mask`, `embed`, `score`, `apply`.

    compute_dtype is the dtype of matrix products: "float32", "bfloat16", or "auto", which is bfloat16 on hardware where
    it is faster. step selects a checkpoint of a work directory: its number, "best" (by the metric that selects the best
    checkpoint) or "latest" (the default). Raises UserError if the directory holds no model that can be loaded.
    """
    from jaxlm.use.model import load  # here, so that `import jaxlm` is quick

    return load(directory, compute_dtype, step)


def __getattr__(name: str) -> Any:
    if name in ("similarity", "nearest"):
        from jaxlm.use import neighbours

        return getattr(neighbours, name)
    raise AttributeError(f"module 'jaxlm' has no attribute {name!r}")

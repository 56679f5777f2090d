"""jaxlm: masked language models in JAX, from raw text to a model in use.

    import jaxlm

    jaxlm.train("quickstart", "runs/quickstart")
    model = jaxlm.load("runs/quickstart")
    print(model.fill_mask("Return the [MASK] of the array.")[0][0].text)

The names below are the public interface. Everything else may change in any version.
"""

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jaxlm.errors import UserError
from jaxlm.version import __version__ as __version__

if TYPE_CHECKING:
    from pathlib import Path

    from ml_collections import ConfigDict

    from jaxlm.config import default_config
    from jaxlm.model.config import EncoderConfig
    from jaxlm.use.fill_mask import Candidate
    from jaxlm.use.model import Model
    from jaxlm.use.neighbours import nearest, similarity
    from jaxlm.use.score import Score

__all__ = [
    "Candidate", "EncoderConfig", "Model", "Score", "UserError", "default_config", "load", "nearest", "similarity",
    "train",
]  # fmt: skip

# Imported when they are used, so that `import jaxlm` is quick.
_MODULES = {
    "Candidate": "jaxlm.use.fill_mask",
    "EncoderConfig": "jaxlm.model.config",
    "Model": "jaxlm.use.model",
    "Score": "jaxlm.use.score",
    "default_config": "jaxlm.config",
    "nearest": "jaxlm.use.neighbours",
    "similarity": "jaxlm.use.neighbours",
}


def load(directory: "str | Path", compute_dtype: str | None = None, step: int | str | None = None) -> "Model":
    """Returns the model in a work directory or a Hugging Face directory.

    compute_dtype is the dtype of matrix products: "float32", "bfloat16", or "auto", which is bfloat16 on hardware where
    it is faster. By default it is float32, and for the predictions of a fine-tuned model that of its run. step selects
    a checkpoint of a work directory: its number, "best" (by the metric that selects the best checkpoint) or "latest".
    By default it is the checkpoint that a run on labelled examples has selected, as results.json reports it, and the
    latest one of other runs. Raises UserError if the directory holds no model that can be loaded.
    """
    from jaxlm.use.model import load

    return load(directory, compute_dtype, step)


def train(config: "ConfigDict | str | Path", workdir: "str | Path", overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Trains a model in a work directory, or resumes the run that the directory holds, like the verb `jaxlm train`.

    config is the name of a recipe, such as "quickstart" or "bert_wwm_zh:mini", the path of a config file, or a
    ConfigDict that starts from `default_config()`. overrides change single settings: ["train.steps=100"]. Returns
    {"step": number of updates, "params_sha256": checksum of the parameters, "evaluation": metrics by the name of the
    evaluation set}. Raises UserError.
    """
    from jaxlm.trainer import train_from

    return train_from(config, workdir, overrides)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'jaxlm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

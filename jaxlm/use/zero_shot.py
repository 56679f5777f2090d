"""A masked language model as a classifier without training: a template, and the words of its labels at the mask."""

import re
from collections.abc import Sequence

from jaxlm.config import check_config, config_from_dict, config_to_dict
from jaxlm.data.tasks.table import check_settings
from jaxlm.data.tasks.template import OBJECTIVE, given_words, label_tokens, resolve_template
from jaxlm.errors import UserError
from jaxlm.settings import SETTINGS
from jaxlm.use.loading import Trained

LONGEST_TEXT = 512  # tokens of a filled template, unless the model reads fewer


def with_template(trained: Trained, template: str, label_words: Sequence[str]) -> Trained:
    """Returns a masked language model as one that was fine-tuned with train.objective=template.

    `label_words` has the entries of task.label_words; the labels are those that it names. Raises UserError.
    """
    directory = trained.directory
    if trained.fine_tuned:
        had = trained.config.task.template
        own = f" with the template {had}" if had else f" with train.objective={trained.config.train.objective}"
        raise UserError(f"{directory} was fine-tuned{own}, which it predicts with: remove task.template")
    if not trained.has_head:
        raise UserError(
            f"{directory} has no masked-LM head, which fills the mask of task.template; name a model that has one"
            " (...ForMaskedLM), or fine-tune this one with `jaxlm train --config=finetune`"
        )
    labels = tuple(given_words(label_words))
    if len(labels) < 2:
        raise UserError(
            "task.template needs task.label_words, two or more labels and their words at the mask, such as"
            " positive=great,negative=terrible"
        )
    config = config_from_dict(config_to_dict(trained.config), "config")
    defaults = {name: setting.default for name, setting in SETTINGS["data"].items()}  # not those of a training text
    config.data.update(defaults | {"sequence_length": min(trained.longest, LONGEST_TEXT)})
    config.train.update(objective=OBJECTIVE, phases=())
    config.task.update(template=template, label_words=tuple(label_words), labels=labels)
    resolve_template(config)
    check_config(config)
    check_settings(config, training=False)
    label_tokens(config, labels, trained.tokenizer)
    head = trained.params["head"] or None  # with a tied output, without a bias and a transform, it has no parameters
    return trained._replace(config=config, task_head=head, task_dtype=trained.execution.compute_dtype)


def as_options(message: str) -> str:
    """Returns a message with the options of `jaxlm classify` in place of settings."""
    message = message.replace("--config.task.", "--")
    return re.sub(r"\btask\.(template|label_words)\b", lambda name: f"--{name[1].replace('_', '-')}", message)

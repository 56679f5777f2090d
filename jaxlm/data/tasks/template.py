"""Texts with one class, each inside a template with a mask that the word of its class fills (arXiv 2001.07676)."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from jaxlm.data.examples import Examples
from jaxlm.data.tasks.sequences import Sequences
from jaxlm.data.templates import TemplateEncoder, parse_template
from jaxlm.data.text_encoder import TextEncoder
from jaxlm.errors import UserError
from jaxlm.settings import SETTINGS
from jaxlm.text.files import File
from jaxlm.text.known_tasks import KNOWN_TASKS
from jaxlm.text.labelled import Row
from jaxlm.tokenizer.single_words import not_words, tokens_of_word
from jaxlm.tokenizer.tokenizer import Tokenizer
from jaxlm.typed import listed

OBJECTIVE = "template"  # of section `train`


@dataclasses.dataclass(frozen=True)
class FilledTemplates(Sequences):
    """Rows with a class, whose texts fill the columns of task.template in their order.

    task.text has the columns of the files: those of the template, unless a model is used with other files.
    """

    def read(self, path: File, setting: str, config: Any, labelled: bool) -> list[Row]:
        template, columns = parse_template(config.task.template), config.task.text
        if len(columns) != len(template.columns):
            raise UserError(
                f"task.text={','.join(columns)}: the template has the columns {', '.join(template.columns)}; name one"
                " for each of them"
            )
        return super().read(path, setting, config, labelled)

    def encode(self, rows: Sequence[Row], labels: Sequence[str], encoder: TextEncoder, task: Any) -> Examples:
        template = parse_template(task.template)
        filled: Any = TemplateEncoder(template, encoder.tokenizer, encoder.longest, encoder.truncation)
        return super().encode(rows, labels, filled, task)


TEMPLATE = FilledTemplates("class")


def resolve_template(config: Any) -> None:
    """Sets task.text to the columns of the template, if examples are templates.

    Raises UserError if it names others, but for those that a known task has by itself.
    """
    task = config.task
    if config.train.objective != OBJECTIVE or not task.template:
        return
    columns, known = parse_template(task.template).columns, KNOWN_TASKS.get(task.name)
    if task.text not in (SETTINGS["task"]["text"].default, columns, known and known.text):
        raise UserError(
            f"task.text={','.join(task.text)}, but the template has the columns {', '.join(columns)}; name the columns"
            " in task.template, and remove task.text"
        )
    task.text = columns


def check_template(config: Any) -> None:
    """Raises UserError for a template or words of labels that are malformed, or that another objective would ignore."""
    task, objective = config.task, config.train.objective
    if objective != OBJECTIVE:
        for name in ("template", "label_words"):
            if task[name]:
                raise UserError(
                    f"task.{name} needs train.objective={OBJECTIVE}, not {objective}; set that, or remove task.{name}"
                )
        return
    if not task.template:
        raise UserError(
            "train.objective=template needs task.template, a text with columns and a mask, such as"
            " --config.task.template='{sentence} It was [MASK].'"
        )
    parse_template(task.template)
    given_words(task.label_words)


def given_words(entries: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Returns the words of labels in task.label_words: LABEL=WORD/WORD, or LABEL alone for its own name.

    Raises UserError for an empty part and a label that occurs twice.
    """
    found: dict[str, tuple[str, ...]] = {}
    for entry in entries:
        label, separator, words = (part.strip() for part in entry.partition("="))
        if label.lower() in {name.lower() for name in found}:
            raise UserError(f"task.label_words names the label {label} twice; join its words, as {label}=WORD/WORD")
        found[label] = tuple(word.strip() for word in words.split("/")) if separator else (label,)
        if not label or not all(found[label]):
            raise UserError(f"task.label_words={entry}: expected LABEL=WORD or LABEL=WORD/WORD")
    return found


def words_of_labels(task: Any, labels: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Returns the words of each label, by default its own name. Raises UserError for a label without one."""
    entries = given_words(task.label_words)
    if not entries:
        return {label: (label,) for label in labels}
    given, known = ({label.lower(): label for label in names} for names in (entries, labels))
    if unknown := [label for label in entries if label.lower() not in known]:
        raise UserError(
            f"task.label_words names {listed(unknown)}, which is not among the labels {listed(labels)}; fix it, or set"
            " task.label to the column with these labels"
        )
    if missing := [label for label in labels if label.lower() not in given]:
        raise UserError(f"task.label_words has no word for the label {listed(missing)}; add it, as {missing[0]}=WORD")
    return {label: entries[given[label.lower()]] for label in labels}


def label_tokens(config: Any, labels: Sequence[str], tokenizer: Tokenizer) -> tuple[tuple[int, ...], ...]:
    """Returns the tokens of the words of each label at the mask; () if examples are not templates.

    Raises UserError for a word that is not one token there, and for one that two labels have.
    """
    if config.train.objective != OBJECTIVE:
        return ()
    words = words_of_labels(config.task, labels)
    before = parse_template(config.task.template).before_mask(tokenizer)
    found = tuple(tuple(_token(tokenizer, before, word, name) for word in words[name]) for name in labels)
    _check_distinct(found, words, tokenizer)
    return found


def _token(tokenizer: Tokenizer, before: str, word: str, label: str) -> int:
    tokens = tokens_of_word(tokenizer, before, word)
    pieces = " ".join(tokenizer.token(token) for token in tokens)
    remedy = f"give the label a word of the vocabulary, as task.label_words={label}=WORD"
    if len(tokens) != 1:
        raise UserError(
            f"the word {word!r} of the label {label} is not one token but {pieces or 'nothing'}, and a mask stands for"
            f" one token; {remedy}"
        )
    if tokens[0] in not_words(tokenizer, tokenizer.vocab_size):
        raise UserError(f"the vocabulary lacks the word {word!r} of the label {label}, and has only {pieces}; {remedy}")
    return tokens[0]


def _check_distinct(found: Sequence[Sequence[int]], words: Mapping[str, Sequence[str]], tokenizer: Tokenizer) -> None:
    owner: dict[int, str] = {}
    for label, tokens in zip(words, found, strict=True):
        for token in tokens:
            if token in owner:
                both = f"the labels {owner[token]} and {label} have" if owner[token] != label else f"{label} has"
                twice = "" if owner[token] != label else " twice"
                raise UserError(
                    f"{both} the same word, {tokenizer.token(token)}{twice}; set different ones in task.label_words"
                )
            owner[token] = label

"""Checks of a tokenizer.json before anything is built from it, so that a damaged file is named with the wrong key."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jaxlm.errors import UserError
from jaxlm.typed import Record, records, shown


def check_definition(definition: dict[str, Any], file: Path) -> None:
    """Raises UserError if the model or the added tokens of a tokenizer.json have values of another type or range.

    The settings of its normalizer, pre-tokenizer and decoder are checked by the `tokenizers` library.
    """
    whole = Record(file, definition)
    if not isinstance(definition.get("model"), dict) or not definition["model"].get("vocab"):
        raise UserError(f"{file} is not a tokenizer; give a tokenizer.json of the `tokenizers` library")
    model = whole.record("model")
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        if whole.record(part, {}).content:
            whole.record(part).text("type")
    for name in ("type", "unk_token", "continuing_subword_prefix"):
        model.text(name, "")
    model.boolean("byte_fallback", False)
    entries = model.content["vocab"]
    if isinstance(entries, list):
        model.items("vocab", list)
        if not all(len(entry) == 2 and isinstance(entry[0], str) for entry in entries):
            raise model.error("vocab", "expected pairs of a token and its score")
        ids: list[int] = list(range(len(entries)))
    else:
        ids = list(checked_ids(model.record("vocab").content, file).values())
    added = records(f"{file}: added_tokens", whole.items("added_tokens", dict, []))
    for entry in added:
        entry.text("content")
        for name in ("single_word", "lstrip", "rstrip", "normalized", "special"):
            entry.boolean(name, False)
        ids.append(entry.integer("id"))
    _check_range(ids, file)


def checked_ids(vocabulary: dict[str, Any], file: Path) -> dict[str, int]:
    """Returns the vocabulary if it maps tokens to ids. Raises UserError."""
    for token, id in vocabulary.items():
        if not isinstance(id, int) or isinstance(id, bool) or id < 0:
            raise UserError(f"{file}: the token {shown(token)} has the id {shown(id)}, which is not a whole number from"
                            " 0: fetch the file again")  # fmt: skip
    _check_range(vocabulary.values(), file)
    return vocabulary


def _check_range(ids: Iterable[int], file: Path) -> None:
    """Raises UserError if ids are far beyond the number of tokens, for which tables of that length would be made."""
    known = set(ids)
    if max(known, default=0) > 2 * len(known) + 1000:
        raise UserError(
            f"{file}: the vocabulary has {len(known):,} tokens, but ids up to {shown(max(known))}: fetch the file again"
        )

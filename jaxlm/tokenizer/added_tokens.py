"""Tokens that are added to a vocabulary: read from a file, and found in text as whole words."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import regex

from jaxlm.errors import UserError
from jaxlm.storage import read_text

# The letters that the `tokenizers` library takes for parts of words.
_IN_WORD = r"[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}]"
_NO_SPACES = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Script=Tibetan}]")


def read_added(path: str | Path) -> list[str]:
    """Returns the tokens of a file, one a line, without spaces around them and empty lines. Raises UserError."""
    path = Path(path).expanduser()
    words = [line.strip() for line in read_text(path).splitlines()]
    words = [word for word in words if word]
    if not words:
        raise UserError(f"{path} holds no token to add; one a line is meant")
    return words


def whole_word_only(word: str) -> bool:
    """Returns whether letters beside it make it part of a longer word; in scripts without spaces they do not."""
    return not (_NO_SPACES.match(word[0]) and _NO_SPACES.match(word[-1]))


def added_entry(word: str, id: int) -> dict[str, Any]:
    """Returns the token's entry in a tokenizer.json; it takes the white space before it as its own."""
    return {
        "id": id, "content": word, "single_word": whole_word_only(word), "lstrip": True, "rstrip": False,
        "normalized": False, "special": False,
    }  # fmt: skip


def decoder_with_spaces(
    decoder: dict[str, Any], words: Sequence[str], space: str, spelled: Callable[[str], str] | None = None
) -> dict[str, Any]:
    """Returns a tokenizer.json's decoder that first puts the vocabulary's space in front of the words.

    `spelled` gives a text in the letters that a byte-level decoder reads, which are not those of every word.
    """
    other = [word for word in words if spelled and spelled(word) != word]
    plain = [word for word in words if word not in set(other)]
    steps = [_replace_token(word, f"{space}{spelled(word)}") for word in other] if spelled else []
    if plain:
        alternatives = "|".join(map(_escaped, plain))
        pattern = {"Regex": rf"\A(?=(?:{alternatives})\z)"}
        steps.append({"type": "Replace", "pattern": pattern, "content": space})
    return {"type": "Sequence", "decoders": [*steps, *decoder.get("decoders", [decoder])]}


def _replace_token(word: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"Regex": rf"\A{_escaped(word)}\z"}, "content": content}


def _escaped(word: str) -> str:
    return regex.escape(word, special_only=True, literal_spaces=True)


class WordFinder:
    """Finds words in text as the `tokenizers` library finds added tokens, so that an export gives the same ids.

    From the left, the longest at each place; one that a letter, mark, digit, "_" or joiner touches is no whole word
    and is passed over, with the characters it holds.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self._numbers = {word: number for number, word in enumerate(words)}
        self._whole = [whole_word_only(word) for word in words]
        self._pattern = regex.compile("|".join(regex.escape(word) for word in sorted(words, key=len, reverse=True)))
        self._before, self._after = regex.compile(rf"(?<={_IN_WORD})"), regex.compile(_IN_WORD)

    def replace(self, text: str, names: Sequence[str]) -> str:
        """Returns the text with word number i as `names[i]`."""

        def name(match: "regex.Match[str]") -> str:
            number = self._numbers[match[0]]
            inside = self._before.match(text, match.start()) or self._after.match(text, match.end())
            return match[0] if inside and self._whole[number] else names[number]

        return self._pattern.sub(name, text)

"""Tokens added to an existing vocabulary: reading them from a file, finding them in text, and exporting them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import regex

from jaxlm.errors import UserError
from jaxlm.storage import read_text

# The characters that the `tokenizers` library considers part of a word.
_IN_WORD = r"[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}]"
_SCRIPTS_WITHOUT_SPACES = regex.compile(
    r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Script=Tibetan}]"
)


def read_added(path: str | Path) -> list[str]:
    """Returns the tokens in a file, one per line, without surrounding white space and empty lines.

    Raises UserError if the file cannot be read, is not UTF-8 or contains no token.
    """
    path = Path(path).expanduser()
    words = [line.strip() for line in read_text(path).splitlines()]
    words = [word for word in words if word]
    if not words:
        raise UserError(f"{path} contains no tokens; write one token per line")
    return words


def whole_word_only(word: str) -> bool:
    """Returns whether a token must be found only as a whole word; not so in scripts that do not separate words."""
    return not (_SCRIPTS_WITHOUT_SPACES.match(word[0]) and _SCRIPTS_WITHOUT_SPACES.match(word[-1]))


def added_entry(word: str, id: int) -> dict[str, Any]:
    """Returns the entry of an added token in a tokenizer.json; the token includes the white space before it."""
    return {
        "id": id, "content": word, "single_word": whole_word_only(word), "lstrip": True, "rstrip": False,
        "normalized": False, "special": False,
    }  # fmt: skip


def decoder_with_spaces(
    decoder: dict[str, Any], words: Sequence[str], space: str, spelled: Callable[[str], str] | None = None
) -> dict[str, Any]:
    """Returns the decoder of a tokenizer.json, extended so that it puts a space before each added token.

    Args:
        decoder: The `decoder` of a tokenizer.json.
        words: The added tokens.
        space: The character that stands for a space in the vocabulary.
        spelled: Maps a text to the alphabet of a byte-level vocabulary; None for other vocabularies.
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
    """Finds words in text in the way in which the `tokenizers` library finds added tokens, so that exports agree.

    The search goes from left to right and takes the longest word at each position. A match next to a letter, mark,
    digit, "_" or joiner is not a whole word: it is skipped, and the search continues after it.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self._numbers = {word: number for number, word in enumerate(words)}
        self._whole = [whole_word_only(word) for word in words]
        self._pattern = regex.compile("|".join(regex.escape(word) for word in sorted(words, key=len, reverse=True)))
        self._before, self._after = regex.compile(rf"(?<={_IN_WORD})"), regex.compile(_IN_WORD)

    def replace(self, text: str, names: Sequence[str]) -> str:
        """Returns the text with each occurrence of word i replaced by `names[i]`."""

        def name(match: "regex.Match[str]") -> str:
            number = self._numbers[match[0]]
            inside = self._before.match(text, match.start()) or self._after.match(text, match.end())
            return match[0] if inside and self._whole[number] else names[number]

        return self._pattern.sub(name, text)

"""Finds where words begin in a text, by Unicode word boundaries, spaces, or a segmenter for one language."""

import functools
import importlib
import logging
from types import ModuleType

import numpy as np
import regex

from jaxlm.errors import UserError
from jaxlm.tokenizer.characters import code_points, is_space

RULES = ("unicode", "jieba", "icu", "spaces")

# Word_Break classes whose rules depend on at most two neighbors on either side. All others (marks, joiners, flags,
# Hebrew) are left to `regex`.
_CLASSES = (
    "Other", "ALetter", "Numeric", "Katakana", "ExtendNumLet", "MidLetter", "MidNum", "MidNumLet", "Single_Quote",
    "Double_Quote", "CR", "LF", "Newline", "WSegSpace",
)  # fmt: skip
_CODE = {name: number for number, name in enumerate(_CLASSES)}
_COMPLEX, _UNSEEN = len(_CLASSES), 255
_LETTER, _NUMBER = _CODE["ALetter"], _CODE["Numeric"]
_BOUNDARY = regex.compile(r"(?w)\b")


def check_rule(rule: str) -> None:
    """Raises UserError if a word rule is unknown or its segmenter is not installed."""
    if rule not in RULES:
        raise UserError(f"tokenizer.words={rule}: must be one of {', '.join(RULES)}")
    if rule in _PACKAGES:
        _segmenter(rule)


def word_boundaries(text: str, rule: str) -> np.ndarray:
    """Returns whether a word begins at each of the n characters of a text, and True for its end, bool [n + 1].

    Values at white space have no meaning. The rule "unicode" is Unicode Standard Annex 29 as implemented by `regex`;
    "spaces" separates words at white space; "jieba" and "icu" call these segmenters. The text must not contain
    surrogates.
    """
    if rule == "unicode":
        return unicode_boundaries(text, code_points(text))
    if rule == "spaces":
        found = np.ones(len(text) + 1, bool)
        found[1:-1] = is_space(code_points(text))[:-1]
        return found
    found = np.zeros(len(text) + 1, bool)
    if rule == "jieba":
        found[np.cumsum([0, *map(len, _jieba().cut(text))])] = True
    else:
        found[_icu_boundaries(text)] = True
    found[[0, -1]] = True
    return found


# Unicode


def unicode_boundaries(text: str, codes: np.ndarray) -> np.ndarray:
    """Returns whether there is a Unicode word boundary before each visible character of a text, bool [n + 1].

    `codes` are the code points of the text, uint32 [n]. A table of pairs of classes decides most positions, much faster
    than `regex`, which is called only for words with a character of a complex class.
    """
    n = len(codes)
    found = np.ones(n + 1, bool)
    if n < 2:
        return found
    classes = _classes(text, codes)
    pairs = classes[:-1] * np.uint8(16)
    pairs += classes[1:]
    kinds = _pair_table()[pairs]  # of the pair of characters i and i + 1
    found[1:n] = kinds != 1
    # A letter, a mark such as "." and a letter form one word, as do digits: neither side of the mark is a boundary.
    for before, after in ((2, 3), (4, 5)):
        marks = np.flatnonzero((kinds[:-1] & _bit(before) != 0) & (kinds[1:] & _bit(after) != 0))
        found[marks + 1] = False
        found[marks + 2] = False
    if (classes == _COMPLEX).any():
        _refine_by_regex(text, codes, classes, found)
    return found


def _bit(number: int) -> np.uint8:
    return np.uint8(1 << number)


@functools.cache
def _pair_table() -> np.ndarray:
    """Returns the kind of each pair of classes, at 16 * first + second, uint8 [256].

    Kind 1 is no boundary. Any other kind is a boundary, and a set of bits for marks that may be inside a word. Bit 2:
    letter, mark; bit 3: mark, letter; bit 4: digit, mark; bit 5: mark, digit.
    """
    table = np.zeros((16, 16), np.uint8)
    words = (_LETTER, _NUMBER, _CODE["Katakana"], _CODE["ExtendNumLet"])
    table[_LETTER, [_LETTER, _NUMBER]] = 1
    table[_NUMBER, [_LETTER, _NUMBER]] = 1
    table[_CODE["Katakana"], _CODE["Katakana"]] = 1
    table[words, _CODE["ExtendNumLet"]] = 1
    table[_CODE["ExtendNumLet"], words] = 1
    in_words = [_CODE[name] for name in ("MidLetter", "MidNumLet", "Single_Quote")]
    in_numbers = [_CODE[name] for name in ("MidNum", "MidNumLet", "Single_Quote")]
    table[_LETTER, in_words] |= _bit(2)
    table[in_words, _LETTER] |= _bit(3)
    table[_NUMBER, in_numbers] |= _bit(4)
    table[in_numbers, _NUMBER] |= _bit(5)
    return table.reshape(-1)


@functools.cache
def _class_table() -> np.ndarray:
    return np.full(0x110000, _UNSEEN, np.uint8)


def _classes(text: str, codes: np.ndarray) -> np.ndarray:
    """Returns the Word_Break class of each character, uint8 [n]; characters are looked up when they first occur."""
    table = _class_table()
    classes = table[codes]
    if (classes == _UNSEEN).any():
        new = np.unique(codes[classes == _UNSEEN])
        table[new] = _COMPLEX
        characters = "".join(map(chr, new.tolist()))
        for name, number in _CODE.items():
            for match in regex.finditer(rf"\p{{WB={name}}}", characters):
                table[ord(match[0])] = number
        classes = table[codes]
    return classes


def _refine_by_regex(text: str, codes: np.ndarray, classes: np.ndarray, found: np.ndarray) -> None:
    """Replaces the boundaries in each run without white space that contains a character of a complex class."""
    spaces = np.flatnonzero(is_space(codes))
    stretches = np.unique(np.searchsorted(spaces, np.flatnonzero(classes == _COMPLEX)))
    edges = np.concatenate([[-1], spaces, [len(codes)]])
    for space, end in zip(edges[stretches].tolist(), edges[stretches + 1].tolist(), strict=True):
        # The white space before the run is included, because a mark may combine with it.
        first = max(space, 0)
        found[first + 1 : end] = False
        if space < 0:
            found[0] = True
        found[[first + match.start() for match in _BOUNDARY.finditer(text[first:end]) if match.start()]] = True
        found[end] = True


# Segmenters


_PACKAGES = {"jieba": ("jieba", "zh"), "icu": ("PyICU", "icu")}  # rule -> package, extra of jaxlm


def _segmenter(rule: str) -> ModuleType:
    package, extra = _PACKAGES[rule]
    try:
        return importlib.import_module(rule)
    except ImportError as error:
        raise UserError(
            f"tokenizer.words={rule} needs {package}; run pip install '.[{extra}]' in the checkout of jaxlm"
        ) from error


@functools.cache
def _jieba():
    jieba = _segmenter("jieba")
    jieba.setLogLevel(logging.WARNING)
    return jieba.Tokenizer()


def _icu_boundaries(text: str) -> np.ndarray:
    icu = _segmenter("icu")
    breaks = icu.BreakIterator.createWordInstance(icu.Locale.getRoot())
    breaks.setText(text)
    # ICU counts UTF-16 code units.
    units = np.concatenate([[0], np.cumsum(1 + (code_points(text) > 0xFFFF))])
    return np.searchsorted(units, [0, *breaks])

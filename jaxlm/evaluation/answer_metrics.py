"""Exact match and F1 of answers, by the rules of SQuAD's official script; for scripts without spaces by characters."""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import regex

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_ASCII_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ANY_PUNCTUATION = regex.compile(r"[\p{P}\p{S}]")
# Scripts whose words are not separated by spaces.
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_UNSPACED_LETTER = regex.compile(f"[{_UNSPACED}]")
_UNSPACED_OR_WORD = regex.compile(rf"[{_UNSPACED}]\p{{M}}*|[^\s{_UNSPACED}]+")


def words(text: str) -> list[str]:
    """Returns the words of an answer in lower case, without ASCII punctuation and the articles a, an, the.

    These are the rules of evaluate-v1.1.py and evaluate-v2.0.py of SQuAD.
    """
    return _ARTICLES.sub(" ", text.lower().translate(_ASCII_PUNCTUATION)).split()


def characters(text: str) -> list[str]:
    """Returns the characters of an answer in scripts without spaces, and its other words, without punctuation."""
    return _UNSPACED_OR_WORD.findall(_ANY_PUNCTUATION.sub("", text.lower()))


SEGMENTATIONS: dict[str, Callable[[str], list[str]]] = {"words": words, "characters": characters}


def segmentation_for(texts: Sequence[str]) -> str:
    """Returns "characters" if most letters of the texts belong to scripts without spaces, else "words"."""
    letters = sum(character.isalpha() for text in texts for character in text)
    return "characters" if 2 * sum(len(_UNSPACED_LETTER.findall(text)) for text in texts) > letters else "words"


class Score(NamedTuple):
    """How well one answer agrees with the nearest of the correct ones, from 0 to 1."""

    exact: float
    f1: float


def score(text: str, correct: Sequence[str], segmentation: str) -> Score:
    """Returns the score of an answer; "" is no answer, and correct if there are no correct answers.

    As in evaluate-v2.0.py, correct answers without words, such as "the", do not count.
    """
    split = SEGMENTATIONS[segmentation]
    given = split(text)
    known = [found for found in map(split, correct) if found] or [[]]
    return Score(max(float(given == one) for one in known), max(_f1(given, one) for one in known))


def _f1(given: list[str], correct: list[str]) -> float:
    if not given or not correct:
        return float(given == correct)
    common = (Counter(given) & Counter(correct)).total()
    return 2 * common / (len(given) + len(correct))


def best_threshold(margins: Sequence[float], answered: Sequence[float], unanswered: Sequence[float]) -> float:
    """Returns the threshold with the highest total score; a question is left unanswered if its margin is above it.

    `margins` are the null score minus the score of the best answer; `answered` and `unanswered` are what each question
    scores with that answer and without one. The threshold lies halfway between two margins, or beyond all of them by 1.
    """
    order = np.argsort(margins, kind="stable")
    sorted_margins = np.asarray(margins, np.float64)[order]
    gains = (np.asarray(answered, np.float64) - np.asarray(unanswered, np.float64))[order]
    totals = np.concatenate([[0.0], np.cumsum(gains)])  # if the first k questions are answered
    possible = np.concatenate([[True], np.diff(sorted_margins) > 0, [True]])  # equal margins are treated alike
    best = int(np.where(possible, totals, -np.inf).argmax())
    ends = np.concatenate([[sorted_margins[0] - 2], sorted_margins, [sorted_margins[-1] + 2]])
    return float((ends[best] + ends[best + 1]) / 2)

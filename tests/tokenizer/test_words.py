import itertools
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.errors import UserError
from jaxlm.tokenizer.characters import code_points, is_space
from jaxlm.tokenizer.words import check_rule, word_boundaries

TRICKY = "aZé19_:,;.'\"’·\n\r\v\x85  \t\u3000\xa0\u202f字語アーのאב\u0301\u0308\u200d\u200c\u200b\xad🇩🇪🦙😀❤️กคप्र\0@/-カ"


def words(text, rule):
    """Returns the words that a rule finds, without white space, separated by "|"."""
    edges = np.flatnonzero(word_boundaries(text, rule)).tolist()
    return "|".join(part.strip() for part in (text[a:b] for a, b in itertools.pairwise(edges)) if part.strip())


@settings(deadline=None, max_examples=500)
@given(st.text(st.sampled_from(TRICKY)) | st.text())
def test_unicode_boundaries_equal_those_of_regex_at_visible_characters(text):
    expected = np.zeros(len(text) + 1, bool)
    expected[[match.start() for match in regex.finditer(r"(?w)\b", text)]] = True
    visible = ~is_space(code_points(text))
    assert (word_boundaries(text, "unicode")[:-1] == expected[:-1])[visible].all()
    assert word_boundaries(text, "unicode")[-1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It's 3.14, e.g. a_b: x.", "It's|3.14|,|e.g|.|a_b|:|x|."),
        ("well-known (x)!", "well|-|known|(|x|)|!"),
        (" Zoe\u0308  met\r\n🦙 Ana.", "Zoe\u0308|met|🦙|Ana|."),
        ("我们学习", "我|们|学|习"),
    ],
)
def test_unicode_words(text, expected):
    assert words(text, "unicode") == expected


def test_the_rule_spaces_separates_words_at_spaces():
    assert words("我们 喜欢\t学习。\nx-y", "spaces") == "我们|喜欢|学习。|x-y"


def test_jieba_finds_chinese_words():
    pytest.importorskip("jieba")
    assert words("我们喜欢学习机器学习", "jieba") == "我们|喜欢|学习|机器|学习"


@settings(deadline=None, max_examples=50)
@given(st.text(st.sampled_from(TRICKY + "我们喜欢学习")))
def test_jieba_accepts_any_text(text):
    pytest.importorskip("jieba")
    assert len(word_boundaries(text, "jieba")) == len(text) + 1


def test_boundaries_of_icu_are_converted_from_utf16(monkeypatch):
    class Breaks:
        def setText(self, text):
            assert text == "🦙ab"

        def __iter__(self):
            return iter([2, 4])

    icu = SimpleNamespace(
        BreakIterator=SimpleNamespace(createWordInstance=lambda locale: Breaks()),
        Locale=SimpleNamespace(getRoot=lambda: None),
    )
    monkeypatch.setitem(sys.modules, "icu", icu)
    assert word_boundaries("🦙ab", "icu").tolist() == [True, True, False, True]


@pytest.mark.parametrize(("rule", "extra"), [("jieba", "zh"), ("icu", "icu")])
def test_a_missing_segmenter_is_reported_with_its_extra(monkeypatch, rule, extra):
    monkeypatch.setitem(sys.modules, rule, None)
    with pytest.raises(UserError, match=rf"tokenizer.words={rule} needs .*pip install '\.\[{extra}\]'"):
        check_rule(rule)


def test_an_unknown_rule_is_rejected():
    with pytest.raises(UserError, match=r"words=no: must be one of unicode, jieba"):
        check_rule("no")

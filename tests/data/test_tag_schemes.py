"""Entities as seqeval counts them: values written by hand, and random tags compared with seqeval where it is."""

import random

import pytest

from jaxlm.data.tag_schemes import completed, entities, misplaced

# tags, and the entities in seqeval's default mode and in its strict mode with IOB2
CASES = [
    ("", [], []),
    ("O O", [], []),
    ("B-PER I-PER O B-LOC", [("PER", 0, 1), ("LOC", 3, 3)], [("PER", 0, 1), ("LOC", 3, 3)]),
    ("B-PER B-PER", [("PER", 0, 0), ("PER", 1, 1)], [("PER", 0, 0), ("PER", 1, 1)]),
    ("I-PER I-PER O", [("PER", 0, 1)], []),
    ("O I-PER B-PER", [("PER", 1, 1), ("PER", 2, 2)], [("PER", 2, 2)]),
    ("B-PER I-LOC I-LOC", [("PER", 0, 0), ("LOC", 1, 2)], [("PER", 0, 0)]),
    ("B-PER I-LOC I-PER", [("PER", 0, 0), ("LOC", 1, 1), ("PER", 2, 2)], [("PER", 0, 0)]),
    ("I-LOC I-PER B-PER I-PER", [("LOC", 0, 0), ("PER", 1, 1), ("PER", 2, 3)], [("PER", 2, 3)]),
    ("B-PER O I-PER", [("PER", 0, 0), ("PER", 2, 2)], [("PER", 0, 0)]),
    ("B-creative-work I-creative-work", [("creative-work", 0, 1)], [("creative-work", 0, 1)]),
    ("B I O I", [("_", 0, 1), ("_", 3, 3)], [("_", 0, 1)]),
]
IOBES = [
    ("B-PER E-PER S-PER S-PER", [("PER", 0, 1), ("PER", 2, 2), ("PER", 3, 3)]),
    ("B-PER I-PER E-PER I-PER", [("PER", 0, 2), ("PER", 3, 3)]),
    ("E-PER E-PER O E-LOC", [("PER", 0, 0), ("PER", 1, 1), ("LOC", 3, 3)]),
    ("S-PER I-PER E-LOC", [("PER", 0, 0), ("PER", 1, 1), ("LOC", 2, 2)]),
]


@pytest.mark.parametrize(("tags", "default", "strict"), CASES)
def test_entities_of_bio_and_iob2(tags, default, strict):
    assert entities(tags.split(), "bio") == default
    assert entities(tags.split(), "iob2") == strict


@pytest.mark.parametrize(("tags", "found"), IOBES)
def test_entities_of_iobes(tags, found):
    assert entities(tags.split(), "iobes") == found


def test_without_a_scheme_each_word_is_an_entity():
    assert entities(["NN", "B-X"], "none") == [("NN", 0, 0), ("B-X", 1, 1)]


@pytest.mark.parametrize(("scheme", "prefixes"), [("bio", "BI"), ("iob2", "BI"), ("iobes", "BIES")])
def test_entities_are_those_of_seqeval(scheme, prefixes):
    pytest.importorskip("seqeval", reason="seqeval is not installed")
    from seqeval.metrics.sequence_labeling import get_entities
    from seqeval.scheme import IOB2, Entities

    draw = random.Random(0)
    tags = ["O", "O", *(prefix + rest for prefix in prefixes for rest in ("-A", "-B-c", ""))]
    for _ in range(3000):
        sentence = draw.choices(tags, k=draw.randint(0, 9))
        if scheme == "iob2":
            wanted = [(one.tag, one.start, one.end - 1) for one in Entities([sentence], IOB2).entities[0]]
        else:
            wanted = get_entities(sentence)
        assert entities(sentence, scheme) == wanted, sentence


@pytest.mark.parametrize(
    ("tags", "scheme", "number", "fault"),
    [
        ("O NNP", "bio", 1, "is not one of bio, whose tags are O, B-TYPE, I-TYPE"),
        ("O B-", "bio", 1, "is not one of bio"),
        ("S-PER", "bio", 0, "is not one of bio"),
        ("b-PER", "iob2", 0, "is not one of iob2"),
        ("B-PER X-PER", "iobes", 1, "is not one of iobes, whose tags are O, B-TYPE, I-TYPE, E-TYPE, S-TYPE"),
        ("O I-PER", "iob2", 1, "continues no entity, and in iob2 an entity begins with B-PER"),
        ("B-LOC I-PER", "iob2", 1, "continues no entity"),
    ],
)
def test_tags_that_a_scheme_does_not_have(tags, scheme, number, fault):
    found = misplaced(tags.split(), scheme)
    assert found is not None
    assert found[0] == number
    assert found[1].startswith(fault)


def test_tags_that_a_scheme_has():
    assert misplaced(["I-PER", "B-PER", "I-PER", "O", "I-LOC", "B"], "bio") is None
    assert misplaced(["B-PER", "I-PER", "I-PER", "O", "B-LOC"], "iob2") is None
    assert misplaced(["NN", "$", "B-X"], "none") is None
    assert misplaced(["NN", ""], "none") == (1, "is empty")


def test_a_type_has_all_tags_of_its_scheme():
    assert completed(["B-PER", "O", "I-LOC"], "bio") == ("B-LOC", "B-PER", "I-LOC", "I-PER", "O")
    assert completed(["S-PER"], "iobes") == ("B-PER", "E-PER", "I-PER", "O", "S-PER")
    assert completed(["NN", "DT"], "none") == ("DT", "NN")

"""Values of JSON are checked for type and range, and the error names the file and the key."""

import pytest

from jaxlm.errors import UserError
from jaxlm.typed import Record, counted, records


def record(**content) -> Record:
    return Record("a.json", content)


def test_values_of_the_expected_type_are_returned():
    given = record(n=3, x=2, yes=True, name="a", inner={"k": None}, names=["a", "b"])
    assert (given.integer("n"), given.number("x"), given.boolean("yes"), given.text("name")) == (3, 2, True, "a")
    assert given.items("names", str) == ["a", "b"]
    assert given.record("inner").integer("k", 7) == 7
    assert given.record("missing", {}).content == {}


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (lambda r: r.integer("none"), "a.json lacks none; fetch the file again"),
        (lambda r: r.integer("text"), "a.json: text='1e-12': expected a whole number; fetch the file again"),
        (lambda r: r.integer("real"), "a.json: real=12.0: expected a whole number"),
        (lambda r: r.integer("yes"), "a.json: yes=True: expected a whole number"),
        (lambda r: r.integer("huge"), "expected a whole number from 0 to 2147483647"),
        (lambda r: r.number("huge"), "expected a finite number of at least 0"),
        (lambda r: r.number("text"), "a.json: text='1e-12': expected a number"),
        (lambda r: r.boolean("one"), "a.json: one=1: expected true or false"),
        (lambda r: r.text("one"), "a.json: one=1: expected text"),
        (lambda r: r.record("text"), "a.json: text='1e-12': expected an object"),
        (lambda r: r.record("inner").text("one"), "a.json: inner: one=1: expected text"),
        (lambda r: r.items("mixed", str), "a.json: mixed, item 1: 2: expected text"),
    ],
)
def test_other_values_are_named_with_the_file_and_the_key(read, message):
    given = record(
        text="1e-12", real=12.0, yes=True, huge=10**5000, one=1, inner={"one": 1}, mixed=["a", 2]
    )  # fmt: skip
    with pytest.raises(UserError) as caught:
        read(given)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 200


def test_a_list_of_objects_is_read_one_by_one():
    assert [entry.text("a") for entry in records("a.json", [{"a": "x"}])] == ["x"]
    with pytest.raises(UserError, match=r"a\.json: the list, item 1: 3: expected an object"):
        records("a.json", [{}, 3])


def test_a_number_agrees_with_its_words():
    assert [counted(n, "row does", "rows do") for n in (0, 1, 1200)] == ["0 rows do", "1 row does", "1,200 rows do"]

"""Questions in SQuAD's JSON, JSON Lines and Parquet, and the sentences about files that are none."""

import json

import pytest

from jaxlm.config import default_config
from jaxlm.errors import UserError
from jaxlm.text.squad import Answer, read_questions

CONTEXT = " Zoe\u0308  met\r\n🦙 Ana."


def squad(*questions, context=CONTEXT):
    return {"version": "v2.0", "data": [{"title": "x", "paragraphs": [{"context": context, "qas": list(questions)}]}]}


def question(id="q1", answers=({"text": "Ana", "answer_start": 14},), **more):
    return {"id": id, "question": "Who?", "answers": answers and list(answers)} | more


def read(path, labelled=True, **settings):
    config = default_config()
    config.data.update(settings)
    return read_questions(path, "task.train", config.data, labelled)


@pytest.fixture
def write(tmp_path):
    def write(content, name="a.json"):
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / name).write_text(text, encoding="utf-8", newline="")
        return tmp_path / name

    return write


def test_every_format_gives_the_same_questions_and_texts_are_as_given(write, tmp_path):
    import pyarrow
    from pyarrow import parquet

    rows = [question(), question("q2", [], is_impossible=True)]
    wanted = [
        {"id": "q1", "question": "Who?", "context": CONTEXT, "answers": [Answer("Ana", 14)]},
        {"id": "q2", "question": "Who?", "context": CONTEXT, "answers": []},
    ]
    flat = [row | {"context": CONTEXT} for row in rows]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in flat)
    lists = [{"text": ["Ana"], "answer_start": [14]}, {"text": [], "answer_start": []}]
    columns = {name: [row[name] for row in flat] for name in ("id", "question", "context")} | {"answers": lists}
    parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    for path in (write("\ufeff" + json.dumps(squad(*rows))), write(lines, "a.jsonl"), tmp_path / "a.parquet"):
        assert [row.values for row in read(path)] == wanted
    assert [row.place for row in read(tmp_path / "a.json")] == [
        f"{tmp_path}/a.json, question {id}" for id in ("q1", "q2")
    ]
    assert [row.place for row in read(tmp_path / "a.jsonl")] == [f"{tmp_path}/a.jsonl, line {line}" for line in (1, 2)]
    assert [row.values for row in read(write(lines, "b.json"), format="jsonl")] == wanted
    assert wanted[0]["answers"][0].is_in(CONTEXT)


def test_a_test_set_may_lack_answers_and_an_empty_list_then_says_nothing(write):
    unknown = question()
    del unknown["answers"]
    for content in (squad(unknown), squad(question(answers=[]))):
        assert read(write(content), labelled=False)[0].values["answers"] is None
    known = read(write(squad(question(), question("q2", []), unknown | {"id": "q3"})), labelled=False)
    assert [row.values["answers"] for row in known] == [[Answer("Ana", 14)], [], None]


def test_whole_numbers_are_ids_and_offsets_may_be_wrong(write):
    rows = read(write(squad(question(7, [{"text": "Ana", "answer_start": -1}]))))
    assert rows[0].values["id"] == "7"
    assert not rows[0].values["answers"][0].is_in(CONTEXT)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"a\.json is not valid JSON \(it is empty\)"),
        ('{"data": [', r"a\.json is not valid JSON"),
        ([], r"a\.json is not in the format of SQuAD"),
        ({"paragraphs": []}, r"a\.json is not in the format of SQuAD"),
        ({"data": []}, r"a\.json contains no questions; set task\.train"),
        ({"data": [3]}, r"a\.json: data, item 0: 3: expected an object"),
        ({"data": [{"title": "x"}]}, r"a\.json: data, item 0 lacks paragraphs"),
        ({"data": [{"paragraphs": [{"qas": []}]}]}, r"data, item 0: paragraphs, item 0 lacks context"),
        ({"data": [{"paragraphs": [{"context": "x"}]}]}, r"paragraphs, item 0 lacks qas"),
        (squad({"question": "Who?"}), r"qas, item 0: id=None: expected a text or a whole number"),
        (squad(question(True)), r"qas, item 0: id=True: expected a text"),
        (squad(question(question=5)), r"a\.json, question q1: question=5: expected text"),
        (squad(question(), question()), r"a\.json, question q1: the id q1 occurs twice"),
        (squad({"id": "q1", "question": "Who?"}, question("q2")), r"a\.json, question q1 lacks answers"),
        (squad(question(answers=[])), r"a\.json: no question has an answer; set task\.train"),
        (squad(question(answers=["Ana"])), r"question q1: answers, item 0: 'Ana': expected an object"),
        (squad(question(answers=[{"text": "Ana"}])), r"question q1: answers, item 0 lacks answer_start"),
        (squad(question(answers=[{"text": "Ana", "answer_start": 1.0}])), r"answer_start=1\.0: expected a whole"),
        (squad(question(answers=[{"answer_start": 1}])), r"question q1: answers, item 0 lacks text"),
        (squad(question(is_impossible=True)), r"question q1: is_impossible is true, but there are answers"),
        (squad(question(is_impossible="no")), r"question q1: is_impossible='no': expected true or false"),
        (squad(question(answers=None), question("q2")), r"question q1 lacks answers"),
        (squad(question(), context="\ud800"), r"half of a surrogate pair"),
    ],
)  # fmt: skip
def test_files_that_are_not_as_expected_get_one_sentence(write, content, message):
    with pytest.raises(UserError, match=message):
        read(write(content))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (question(), r"a\.jsonl, line 1: there is no column context; the columns are"),
        (question(context="x", answers=[{"text": "x"}]), r"a\.jsonl, line 1: answers, item 0 lacks answer_start"),
        (question(context="x") | {"answers": {"text": ["x"], "answer_start": []}}, r"1 text but 0 answer_start"),
        (question(context="\ud800"), r"line 1: context contains half of a surrogate pair"),
        (question("\ud800", context="x"), r"line 1: id contains half of a surrogate pair"),
    ],
)
def test_lines_that_are_not_as_expected_get_one_sentence(write, row, message):
    with pytest.raises(UserError, match=message):
        read(write(row, "a.jsonl"))


def test_other_formats_and_missing_files_are_named(write, tmp_path):
    with pytest.raises(UserError, match=r"a\.tsv has the format tsv, but questions are read from SQuAD's JSON"):
        read(write("id\tquestion\n", "a.tsv"))
    with pytest.raises(UserError, match=r"absent\.json does not exist: set task\.train"):
        read(tmp_path / "absent.json")


def test_questions_to_be_predicted_lie_in_tables_with_named_columns(write):
    rows = [("Who?", CONTEXT.replace("\r\n", " ")), ("Why?", "a, b")]
    wanted = [{"id": str(n), "question": q, "context": c, "answers": None} for n, (q, c) in enumerate(rows, 1)]
    tables = {
        "a.csv": ("question,context\n" + "".join(f'"{q}","{c}"\n' for q, c in rows), ("question", "context"), True),
        "a.tsv": ("".join(f"{c}\t{q}\n" for q, c in rows), ("1", "0"), False),
        "a.jsonl": ("".join(json.dumps({"q": q, "c": c}) + "\n" for q, c in rows), ("q", "c"), True),
    }
    config = default_config().data
    for name, (content, columns, header) in tables.items():
        found = read_questions(write(content, name), "--input", config, False, columns, header)
        assert [row.values for row in found] == wanted
    assert read(write("id,question,context\nx7,Who?,Ana\n", "b.csv"), labelled=False)[0].values["id"] == "x7"
    for name, labelled, message in [
        ("a.jsonl", False, "line 1: there is no column question; the columns are q, c: set task.text"),
        ("a.csv", True, "has the format csv, but questions are read from SQuAD's JSON"),
    ]:
        with pytest.raises(UserError, match=message):
            read(write(tables[name][0], name), labelled=labelled)

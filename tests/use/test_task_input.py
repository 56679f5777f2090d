"""The files that the verbs of fine-tuned models read and write: every format, folders, globs, and what is refused."""

import csv
import gzip
import json

import pyarrow
import pytest
from pyarrow import parquet

from jaxlm.cli import main
from jaxlm.use.model import load
from tests.conftest import sentences
from tests.untrained import make_fine_tuned

TEXTS = sentences(8, seed=3)
CONTEXT = "The cat sees the house. A river follows the bridge."


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    make_fine_tuned(folder / "classify")
    make_fine_tuned(folder / "tag", "tagging", ("B-PER", "I-PER", "O"))
    make_fine_tuned(folder / "answer", "span", (), stride=8)
    make_fine_tuned(folder / "rank", "reranking", (), text=("query", "passage"))
    return folder


@pytest.fixture(autouse=True)
def inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(capsys, models, verb, *options):
    """Returns what a verb prints, or its error."""
    status = main([verb, f"--model={models / verb}", *options])
    output = capsys.readouterr()
    return output.out if status == 0 else output.err.splitlines()[-1].removeprefix("jaxlm: ")


def predicted(capsys, models, verb, *options):
    return json.loads(run(capsys, models, verb, "--json", *options))["predictions"]


def write_parts(folder):
    """Writes the texts to files of six formats in a folder, and returns it; their names are in the order of TEXTS."""
    (folder / "deep").mkdir(parents=True)
    records = "".join(json.dumps({"sentence": text, "label": "unheard"}) + "\n" for text in TEXTS[3:5])
    (folder / "a.txt").write_text("".join(text + "\n" for text in TEXTS[:1]))
    (folder / "b.tsv").write_text(f'\ufefflabel\tsentence\n"\t{TEXTS[1]}\n')
    (folder / "c.csv").write_text(f'sentence\n"{TEXTS[2]}"\n')
    (folder / "d.jsonl.gz").write_bytes(gzip.compress(records.encode()))
    (folder / "deep" / "e.parquet").write_bytes(b"")
    parquet.write_table(pyarrow.table({"sentence": TEXTS[5:7]}), folder / "deep" / "e.parquet")
    (folder / "f.txt.gz").write_bytes(gzip.compress(TEXTS[7].encode()))
    for ignored in (".hidden.tsv", "notes.odd"):
        (folder / ignored).write_text("no header\n")
    return folder


def test_a_folder_and_a_glob_have_files_of_all_formats_in_order(models, tmp_path, capsys):
    expected = load(models / "classify").classify(TEXTS)
    folder = write_parts(tmp_path / "texts")
    for path in (folder, f"{folder}/**/*.[!o]*"):
        found = predicted(capsys, models, "classify", f"--input={path}")
        assert [one.pop("text") for one in found] == TEXTS
        assert found == expected


def test_every_format_of_output_has_the_same_predictions(models, capsys, tmp_path):
    (tmp_path / "a.txt").write_text("".join(text + "\n" for text in TEXTS))
    expected = load(models / "classify").classify(TEXTS)
    for ending in (".jsonl", ".csv", ".tsv", ".parquet"):
        assert f"wrote 8 predictions to a{ending}" in run(
            capsys, models, "classify", "--input=a.txt", f"--output=a{ending}"
        )
        again = run(capsys, models, "classify", "--input=a.txt", f"--output=a{ending}")  # predictions are replaced
        assert "wrote 8" in again
    assert [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()] == expected
    assert parquet.read_table("a.parquet").to_pylist() == expected
    for ending, delimiter in ((".csv", ","), (".tsv", "\t")):
        rows = list(csv.DictReader((tmp_path / f"a{ending}").open(), delimiter=delimiter))
        assert [row["label"] for row in rows] == [one["label"] for one in expected]
        assert [float(row["probabilities.calm"]) for row in rows] == [one["probabilities"]["calm"] for one in expected]


def test_a_text_may_lie_in_the_column_that_has_the_label_in_training(tmp_path, capsys):
    """As in a file without a header that has texts alone."""
    model = make_fine_tuned(tmp_path / "models" / "classify", label="0", text=("1",), header=False)
    make_fine_tuned(tmp_path / "models" / "rank", "reranking", (), text=("query", "passage"))
    (tmp_path / "a.csv").write_text("".join(f'"{text}"\n' for text in TEXTS))
    (tmp_path / "b.jsonl").write_text('{"label": "who sees", "passage": "the cat"}\n')
    expected = load(model).classify(TEXTS)
    assert len({one["probability"] for one in expected}) > 1
    found = predicted(capsys, tmp_path / "models", "classify", "--input=a.csv", "--field=0")
    assert [one.pop("text") for one in found] == TEXTS
    assert found == expected
    pair = predicted(capsys, tmp_path / "models", "rank", "--input=b.jsonl", "--field=label,passage")[0]
    assert (pair["query"], pair["score"]) == (
        "who sees", load(tmp_path / "models" / "rank").rank("who sees", ["the cat"])[0]["score"]
    )  # fmt: skip


def test_questions_lie_in_tables_with_named_columns(models, capsys, tmp_path):
    expected = load(models / "answer").answer([("who sees", CONTEXT), ("what follows", CONTEXT)])
    (tmp_path / "a.csv").write_text(f'frage,text\nwho sees,"{CONTEXT}"\nwhat follows,"{CONTEXT}"\n')
    (tmp_path / "a.tsv").write_text(f"{CONTEXT}\twho sees\n{CONTEXT}\twhat follows\n")
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"question": q, "context": CONTEXT}) + "\n" for q in ("who sees", "what follows"))
    )
    for options in (["--input=a.csv", "--field=frage,text"], ["--input=a.tsv", "--no-header", "--field=1,0"],
                    ["--input=a.jsonl"]):  # fmt: skip
        found = predicted(capsys, models, "answer", *options)
        assert [one.pop("question") for one in found] == ["who sees", "what follows"]
        assert found == expected
    run(capsys, models, "answer", "--input=a.csv", "--field=frage,text", "--output=answers.json")
    assert json.loads((tmp_path / "answers.json").read_text()) == {one["id"]: one["text"] for one in expected}
    message = run(capsys, models, "answer", "--input=a.csv")
    assert "a.csv, line 1: there is no column question; the columns are frage, text: set --field" in message


def test_tags_in_a_file_are_not_looked_at(models, capsys, tmp_path):
    expected = load(models / "tag").tag(["the cat sees", "a river"])
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.conll").write_text("the\tX-1\ncat\t?\nsees\tI-\n")
    (tmp_path / "in" / "b.jsonl").write_text('{"words": ["a", "river"], "tags": ["B-LOC", "unheard"]}\n')
    assert predicted(capsys, models, "tag", "--input=in") == expected
    run(capsys, models, "tag", "--input=in", "--output=out.conll")
    lines = [f"{w}\t{t}" for one in expected for w, t in [*zip(one["words"], one["tags"], strict=True), ("", "")]]
    assert (tmp_path / "out.conll").read_text() == "\n".join(lines).replace("\t\n", "\n").rstrip("\t") + "\n"


def test_passages_of_several_queries_are_shown_under_their_query(models, capsys, tmp_path):
    pairs = [("who", "the cat"), ("what", "a river"), ("who ", "the dog")]
    (tmp_path / "a.tsv").write_text("query\tpassage\n" + "".join(f"{q}\t{p}\n" for q, p in pairs))
    lines = run(capsys, models, "rank", "--input=a.tsv").splitlines()
    assert [line for line in lines if not line.startswith(" ")] == ["who", "what"]
    assert [line.split()[0] for line in lines] == ["who", "1", "2", "what", "1"]
    (tmp_path / "b.tsv").write_text("query\tpassage\nwho\tthe cat\nwho\tthe dog\n")
    assert len(run(capsys, models, "rank", "--input=b.tsv").splitlines()) == 2


WRONG = [
    ("classify", ["--input=in", "--output=in/b.tsv"], "--output=in/b.tsv is in/b.tsv, one of the files of --input=in"),
    ("classify", ["--input=absent"], "there is no file or folder absent; check the path"),
    ("classify", ["--input=in/*.csv"], "no file matches in/*.csv; check the folder"),
    ("classify", ["--input=empty"], "the folder empty has no files"),
    ("classify", ["--input=odd"], "none of the 1 files in the folder odd has a known ending"),
    ("classify", ["--input=in/a.txt", "--output=labels.jsonl"], "labels.jsonl exists and does not contain predictions"),
    ("classify", ["--input=in/a.txt", "--output=labels.csv"], "labels.csv exists and does not contain predictions"),
    ("classify", ["--input=short.tsv"], "short.tsv: 1 row does not have 2 columns (line 3); fix the file"),
    ("classify", ["--input=in/b.tsv", "--field=sentence,id"], "--field=sentence,id: "),
    ("classify", ["--input=in/b.tsv", "--field="], "--field=: the name of a column is empty; name columns such as"),
    ("tag", ["a cat", "--output=tags.jsonl"], "tags.jsonl exists and does not contain predictions"),
    ("tag", ["a cat", "--output=tags.csv"], "--output=tags.csv: the name must end in .jsonl, .parquet, .conll"),
    ("answer", ["--input=q.csv", "--context=in/a.txt"], "--context has no effect on q.csv, whose rows have one each"),
    ("answer", ["--input=s.json", "--field=a,b"], "--field=a,b has no effect on s.json, SQuAD's own format: remove it"),
    ("answer", ["--input=q.csv", "--field=question"], "--field=question: train.objective=span needs two columns"),
    ("rank", ["--input=in/b.tsv", "--query=who"], "--query has no effect on in/b.tsv, whose rows have one each"),
    ("rank", ["the cat"], "but there are 0 tabs; or give the query of all passages with --query"),
]


@pytest.mark.parametrize(("verb", "options", "message"), WRONG, ids=lambda value: str(value)[:40])
def test_what_cannot_be_read_or_written_is_one_sentence(models, tmp_path, capsys, verb, options, message):
    files = {
        "in/a.txt": "the cat\n", "in/b.tsv": "sentence\nthe cat\n", "odd/a.odd": "x", "empty/.hidden": "",
        "labels.jsonl": '{"label": "calm", "sentence": "mine"}\n', "labels.csv": "label,sentence\ncalm,mine\n",
        "short.tsv": "sentence\tid\nthe cat\t1\na river\n", "tags.jsonl": '{"words": ["a"], "tags": ["O"]}\n',
        "q.csv": "question,context\nwho,the cat\n", "s.json": '{"data": []}',
    }  # fmt: skip
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert message in run(capsys, models, verb, *options)
    assert {name: (tmp_path / name).read_text() for name in files} == files


def test_rows_that_training_skips_are_errors_in_prediction(tmp_path, capsys):
    make_fine_tuned(tmp_path / "models" / "classify", bad_rows="skip")
    (tmp_path / "a.tsv").write_text("sentence\tid\nthe cat\t1\na river\n")
    message = run(capsys, tmp_path / "models", "classify", "--input=a.tsv")
    assert message == "a.tsv: 1 row does not have 2 columns (line 3); fix the file"

import json

import pytest

from jaxlm.cli import main
from jaxlm.errors import UserError
from jaxlm.use.model import load
from tests.untrained import make_fine_tuned

pytest.importorskip("jaxlm.data.tasks.spans")
CONTEXT = "The cat sees the house. A river follows the bridge. " * 4
QUESTIONS = ["who sees", "what follows the bridge"]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return make_fine_tuned(tmp_path_factory.mktemp("answer") / "run", "span", (), stride=8)


def test_an_answer_is_a_slice_of_the_context(workdir, tmp_path, capsys):
    found = load(workdir).answer([(question, CONTEXT) for question in QUESTIONS])
    for one in found:
        assert one["text"] == CONTEXT[one["start"] : one["end"]]
    (tmp_path / "context.txt").write_text(CONTEXT)
    (tmp_path / "a.txt").write_text("".join(f"{question}\t{CONTEXT}\n" for question in QUESTIONS))
    for options in ([f"--context={tmp_path / 'context.txt'}", *QUESTIONS], [f"--input={tmp_path / 'a.txt'}"]):
        assert main(["answer", f"--model={workdir}", "--json", *options]) == 0
        shown = json.loads(capsys.readouterr().out)["predictions"]
        assert [one.pop("question") for one in shown] == QUESTIONS
        assert shown == found
    assert main(["answer", f"--model={workdir}", f"--context={tmp_path / 'context.txt'}", QUESTIONS[0]]) == 0
    text = found[0]["text"] or "(no answer)"
    assert capsys.readouterr().out == f"{found[0]['score']:9.3f}  {QUESTIONS[0]}  {' '.join(text.split())}\n"


def test_only_answers_to_the_same_questions_are_replaced(workdir, tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"id": f"q{n}", "question": q, "context": CONTEXT}) + "\n" for n, q in enumerate(QUESTIONS))
    )
    output = tmp_path / "out.json"
    command = ["answer", f"--model={workdir}", f"--input={tmp_path / 'a.jsonl'}", f"--output={output}"]
    assert main(command) == 0
    written = output.read_bytes()
    assert list(json.loads(written)) == ["q0", "q1"]
    assert main(command) == 0
    assert output.read_bytes() == written
    for other in ('{"q0": "a"}', '{"q0": "a", "q1": "b", "name": "mine"}', '{"q0": "a", "q1": 3}', '["q0", "q1"]', "{"):
        output.write_text(other)
        assert main(command) == 1
        assert f"--output={output} exists and does not contain predictions" in capsys.readouterr().err
        assert output.read_text() == other


def test_a_question_needs_a_context(workdir, capsys):
    assert main(["answer", f"--model={workdir}", "who sees"]) == 1
    assert "text 1: expected a question and its context, separated by one tab" in capsys.readouterr().err
    with pytest.raises(UserError, match="question 1 must be a pair of str"):
        load(workdir).answer(["who sees"])

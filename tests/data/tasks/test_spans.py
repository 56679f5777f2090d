"""Questions as windows of their contexts: every token is covered, and offsets are those of the context as given."""

import json

import numpy as np
import pytest

from jaxlm.data.tasks.spans import SPANS, answer_tokens, window_starts, windows_over
from jaxlm.data.tasks.table import check_task, read_task
from jaxlm.data.text_encoder import TextEncoder
from jaxlm.errors import UserError
from jaxlm.text.labelled import Row
from jaxlm.text.squad import Answer
from jaxlm.tokenizer.tokenizer import load_tokenizer
from tests.conftest import sentences

HARD = " Zoe\u0308  met\r\n🦙 Ana."


def row(context, *answers, question="what does he see?", id="q"):
    return Row(id, {"id": id, "question": question, "context": context, "answers": list(answers)})


def answer(context, text, start=0):
    return Answer(text, context.index(text, start))


def encode(tokenizer, rows, longest=32, truncation="longest_first", separators=1, **task):
    settings = type("Task", (), {"stride": 0, "answer_tokens": 30} | task)
    return SPANS.encode(rows, (), TextEncoder(tokenizer, longest, truncation, separators), settings)


def answers_of(examples):
    """Returns the slice of the context that each window's target marks; None for the begin token."""
    found = []
    for segment, (first, last) in enumerate(examples.columns["spans"].tolist()):
        offsets = examples.details["offsets"][segment]
        context = examples.rows[examples.example[segment]].values["context"]
        found.append(context[offsets[first, 0] : offsets[last, 1]] if first else None)
    return found


@pytest.mark.parametrize("stride", [0, 1, 3, 1000])
@pytest.mark.parametrize("separators", [1, 2])
def test_windows_cover_every_token_of_the_context_and_fit_the_model(tokenizer, stride, separators):
    context = " ".join(sentences(6))
    ids, _ = tokenizer.encode_with_offsets(context)
    examples = encode(tokenizer, [row(context, answer(context, "the"))], stride=stride, separators=separators)
    question = tokenizer.encode("what does he see?").ids
    seen = np.zeros(len(ids), bool)
    assert examples.longest == 32
    for tokens, types, offsets in zip(examples.tokens, examples.token_types, examples.details["offsets"], strict=True):
        before = [tokenizer.begin_id, *question, *[tokenizer.end_id] * separators]
        assert tokens[: len(before)].tolist() == before
        assert tokens[-1] == tokenizer.end_id
        assert types.tolist() == [0] * len(before) + [1] * (len(tokens) - len(before))
        inside = np.flatnonzero(offsets[:, 0] >= 0)
        assert inside.tolist() == list(range(len(before), len(tokens) - 1))
        first = next(
            n
            for n in range(len(ids))
            if (ids[n : n + len(inside)] == tokens[inside]).all() and not seen[n + len(inside) - 1]
        )
        seen[first : first + len(inside)] = True
    assert seen.all()
    assert [window_starts(tokens, 10, 5) for tokens in (0, 10, 11, 20)] == [
        range(0, 5, 5),
        range(0, 5, 5),
        range(0, 6, 5),
        range(0, 15, 5),
    ]


def test_a_window_has_an_answer_if_all_its_tokens_are_in_it(tokenizer):
    ids, offsets = np.arange(100, 120), np.stack([np.arange(20), np.arange(20) + 1], 1)
    encoder = TextEncoder(tokenizer, 10)  # begin, 1 token of the question, end, 6 tokens of the context, end
    for first in range(20):
        for last in range(first, 20):
            windows = windows_over(np.array([50]), ids, offsets, (first, last), encoder, 4)
            for start, window in zip(range(0, 20, 4), windows, strict=False):
                a, b = window.span
                if start <= first and last < start + 6:
                    assert (window.tokens[a], window.tokens[b]) == (100 + first, 100 + last)
                else:
                    assert (a, b) == (0, 0)


def test_a_window_without_the_whole_answer_points_to_the_begin_token(tokenizer):
    context = " ".join(sentences(8))
    wanted = context[-30:-1].split(" ", 1)[1]
    examples = encode(tokenizer, [row(context, answer(context, wanted))])
    found = answers_of(examples)
    assert found[0] is None
    assert set(found) == {None, wanted}
    assert examples.columns["weights"].tolist() == [1] * len(found)
    assert examples.columns["spans"][0].tolist() == [0, 0]


@pytest.mark.parametrize("text", ["Zoe\u0308", "met", "🦙", "🦙 Ana", "Ana", ".", "met\r\n🦙"])
@pytest.mark.parametrize("kind", ["sentencepiece", "wordpiece"])
def test_offsets_count_the_characters_of_the_context_as_given(tmp_path, tokenizer, kind, text):
    if kind == "wordpiece":
        words = [
            "[PAD]",
            "[UNK]",
            "[CLS]",
            "[SEP]",
            "[MASK]",
            "zoe",
            "met",
            "ana",
            ".",
            "what",
            "does",
            "he",
            "see",
            "?",
        ]
        (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
        tokenizer = load_tokenizer(tmp_path / "vocab.txt")
    examples = encode(tokenizer, [row(HARD, answer(HARD, text))])
    assert answers_of(examples) == [text]


def test_the_first_answer_that_is_where_the_file_says_is_learned(tokenizer):
    context = "the cat sees the house"
    good = Answer("the", 13)
    examples = encode(tokenizer, [row(context, Answer("the", 1), Answer("", 4), Answer("x", -1), good), row(context)])
    assert examples.details["offsets"][0][examples.columns["spans"][0, 0], 0] == 13
    assert answers_of(examples) == ["the", None]
    nothing = encode(tokenizer, [row(context, Answer("the", 1)), row(context, good)])
    assert nothing.columns["weights"].tolist() == [0, 1]
    assert answer_tokens(row("a  b", Answer(" ", 2)), np.array([[0, 1], [3, 4]])) is None


def test_an_empty_context_is_one_window(tokenizer):
    for context in ("", " \r\n "):
        examples = encode(tokenizer, [row(context)])
        assert len(examples.tokens) == 1
        assert (examples.details["offsets"][0] == -1).all()


def test_a_long_question_is_cut_with_a_count_or_refused(tokenizer, caplog):
    rows = [row("the cat sees", question=" ".join(sentences(3))), row("the cat", id="r")]
    examples = encode(tokenizer, rows)
    assert examples.longest <= 32
    assert len(examples.tokens[0]) > 14 + 3
    assert "1 of 2 questions are longer than 14 tokens, half of a window (q), and lose their end" in caplog.text
    with pytest.raises(UserError, match=r"1 question is longer than 14 tokens, half of a window \(q\); shorten them"):
        encode(tokenizer, rows, truncation="refuse")
    with pytest.raises(UserError, match=r"data\.sequence_length=4 has no room for a question and a context"):
        encode(tokenizer, rows, longest=4)


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def record(id, context, text, start=None):
    answers = [] if text is None else [{"text": text, "answer_start": context.index(text) if start is None else start}]
    return {"id": id, "question": "what?", "context": context, "answers": answers}


def test_misplaced_answers_are_counted_and_refused_above_a_share(task_config, tmp_path, caplog):
    good = [record(f"q{n}", context, "the") for n, context in enumerate(["the cat", "a the"] * 10)]
    path = write(tmp_path / "a.jsonl", *good, record("bad", "the cat sees", "cat", 3))
    data = read_task(task_config(path, "span"))
    assert "1 of 21 answers are not at their answer_start in the context (id bad); they are not learned" in caplog.text
    assert "1 of 21 rows have no label and are not learned from" in caplog.text
    assert data.train.columns["weights"].sum() == 20
    assert data.labels == ()
    write(path, *good[:9], record("bad", "the cat sees", "cat", 3))
    message = r"1 of 10 answers are not at .* \(id bad\), more than task\.misplaced=0\.05 of them; fix the offsets"
    with pytest.raises(UserError, match=message):
        read_task(task_config(path, "span"))
    assert len(read_task(task_config(path, "span", misplaced=0.1)).train) == 10


def test_questions_about_one_context_stay_together(task_config, tmp_path):
    rows = [record(f"q{n}", f"the cat sees text {n % 40}", "cat") for n in range(200)]
    config = task_config(write(tmp_path / "a.jsonl", *rows), "span")
    config.evaluation.select = "split"
    data = read_task(config)
    kept, trained = ({row.values["context"] for row in part.rows} for part in (data.sets["selection"], data.train))
    assert kept
    assert not kept & trained


def test_the_fingerprint_follows_the_answers(task_config, tmp_path):
    path, prints = tmp_path / "a.jsonl", set()
    for start in (0, 13):
        write(path, record("q", "the cat sees the cat", "the", start))
        prints.add(read_task(task_config(path, "span")).fingerprint)
    assert len(prints) == 2


def test_a_submission_is_for_spans_only(task_config):
    config = task_config("a.tsv", submission=True)
    with pytest.raises(UserError, match=r"task\.submission: this task has no format of submissions"):
        check_task(config)


def test_answers_that_are_too_long_to_be_predicted_are_counted(tokenizer, caplog):
    context = "the cat sees the house"
    rows = [row(context, answer(context, text)) for text in ("the cat", context)]
    encode(tokenizer, rows, answer_tokens=len(tokenizer.encode(context).ids))
    assert not caplog.text
    most = len(tokenizer.encode("the cat").ids)
    encode(tokenizer, rows, answer_tokens=most)
    assert f"1 of 2 answers (the first of q) have more than task.answer_tokens={most} tokens" in caplog.text

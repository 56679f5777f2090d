"""A masked language model as a classifier without training: by the verbs, and in Python."""

import json

import numpy as np
import pytest

from jaxlm.cli import main
from jaxlm.errors import UserError
from jaxlm.use.model import load
from tests.conftest import sentences, write_checkpoint, write_text
from tests.untrained import make_fine_tuned, make_workdir

TEXTS = [*sentences(6, seed=3), "a text with [MASK] in it"]
TEMPLATE, WORDS = "{sentence} it was [MASK].", ["calm=harbour/house", "busy=music"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zero_shot")
    text = write_text(folder / "text.txt", 200)
    write_checkpoint(folder / "bert", text)
    write_checkpoint(folder / "headless", text, head=False, architectures=["BertModel"])
    rows = [f"{text}\t{'calm' if number % 2 else 'BUSY'}\n" for number, text in enumerate(TEXTS)]
    (folder / "dev.tsv").write_text("sentence\tlabel\n" + "".join(rows))
    return folder


def printed(capsys, verb, model, *options):
    """Returns what a verb prints, or its error."""
    status = main([verb, f"--model={model}", *options])
    output = capsys.readouterr()
    return output.out if status == 0 else output.err.splitlines()[-1].removeprefix("jaxlm: ")


def options(template=TEMPLATE, words=WORDS, prefix="--", name="label-words"):
    return f"{prefix}template={template}", f"{prefix}{name}={','.join(words)}"


def test_probabilities_are_those_of_the_words_at_the_mask(folder, capsys):
    model = load(folder / "bert")
    found = model.classify(TEXTS[:3], TEMPLATE, WORDS)
    for one, text in zip(found, TEXTS, strict=False):
        candidates = model.fill_mask(f"{text} it was [MASK].", targets=["harbour", "house", "music"])[0]
        shares = {candidate.word: candidate.probability for candidate in candidates}
        calm = (shares["harbour"] + shares["house"]) / sum(shares.values())
        assert one["probabilities"]["calm"] == pytest.approx(calm, rel=1e-4)
        assert one["label"] == ("calm" if calm > 0.5 else "busy")
    lines = printed(capsys, "classify", folder / "bert", *options(), *TEXTS[:3]).splitlines()
    assert [line.split()[1] for line in lines] == [one["label"] for one in found]
    assert model.classify(TEXTS[:1], TEMPLATE, ["harbour", "music"])[0]["probabilities"].keys() == {"harbour", "music"}


def test_a_file_and_its_metrics(folder, tmp_path, capsys):
    model, dev = folder / "bert", folder / "dev.tsv"
    printed(capsys, "classify", model, *options(), f"--input={dev}", f"--output={tmp_path / 'out.jsonl'}")
    answers = [json.loads(line)["label"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert answers == [one["label"] for one in load(model).classify(TEXTS, TEMPLATE, WORDS)]
    settings = options(prefix="--task.", name="label_words")
    found = json.loads(printed(capsys, "evaluate", model, *settings, f"--task.evaluation={dev}", "--json"))
    right = np.mean([answer == ("calm" if number % 2 else "busy") for number, answer in enumerate(answers)])
    assert found["evaluation"]["accuracy"] == pytest.approx(right)
    assert found["evaluation"]["n"] == len(TEXTS)
    shown = printed(capsys, "evaluate", model, *settings, f"--task.evaluation=dev={dev}")
    assert shown.startswith("dev: accuracy ")


def test_three_columns_are_three_texts(folder, capsys):
    template = "{a} or {b} or {c}: [MASK]"
    found = load(folder / "bert").classify([("the cat", "a river", "")], template, WORDS)
    line = printed(capsys, "classify", folder / "bert", *options(template), "the cat\ta river\t")
    assert f"{found[0]['probability']:6.1%}  {found[0]['label']}  the cat | a river | \n" == line
    message = "expected 3 texts separated by tabs, one for each column of the template (a and b and c), but there are 0"
    assert message in printed(capsys, "classify", folder / "bert", *options(template), "the cat")
    with pytest.raises(UserError, match="text 1 must be 3 str, one for each column of the template"):
        load(folder / "bert").classify(["the cat"], template, WORDS)


def test_a_head_may_have_no_parameters(tmp_path, capsys):
    make_workdir(tmp_path / "run", head_transform=False, output_bias=False)
    tokenizer = load(tmp_path / "run").tokenizer
    starts = [tokenizer.text_of(id).strip() for id in range(tokenizer.vocab_size) if tokenizer.starts_word(id)]
    words = [word for word in starts if word.isalpha() and len(tokenizer.encode(word).ids) == 1]
    line = printed(capsys, "classify", tmp_path / "run", *options("{a}, it was [MASK].", words[:2]), "the cat")
    assert line.split()[1] in words[:2]


def test_words_need_a_template_in_python(folder):
    with pytest.raises(UserError, match="label_words applies to template, which is not given"):
        load(folder / "bert").classify(["the cat"], label_words=["good", "bad"])


def test_three_columns_are_named_for_a_file(folder, capsys, tmp_path):
    (tmp_path / "a.csv").write_text("label,x,y\nthe cat,a river,\n")
    given = options("{a} or {b} or {c}: [MASK]")
    line = printed(capsys, "classify", folder / "bert", *given, f"--input={tmp_path / 'a.csv'}", "--field=label,x,y")
    assert line == printed(capsys, "classify", folder / "bert", *given, "the cat\ta river\t")
    few = printed(capsys, "classify", folder / "bert", *given, f"--input={tmp_path / 'a.csv'}", "--field=x,y")
    assert "reads 3 texts of each row; name 3 columns, such as a,b,c" in few


@pytest.mark.parametrize(
    ("model", "given", "message"),
    [
        ("headless", options(), "has no masked-LM head, which fills the mask of --template; name a model that has one"),
        ("bert", options("{a} it was so"), "--template has no masks, and needs one: write [MASK]"),
        ("bert", options("it was [MASK]"), "names no column with a text"),
        ("bert", options(words=["calm=a river", "busy=music"]), "is not one token but a river, and a mask stands for"),
        ("bert", options(words=["calm=house", "busy=house"]), "the labels calm and busy have the same word, house"),
        ("bert", options()[:1], "--template needs --label-words, two or more labels and their words at the mask"),
        ("bert", options(words=["house"]), "--template needs --label-words, two or more labels and their words"),
        ("bert", options()[1:], "--label-words applies to --template, which is not given"),
        ("bert", (), "classify needs a model that was fine-tuned with train.objective=classification"),
        ("tuned", options(), "was fine-tuned with train.objective=classification, which it predicts with: remove"),
    ],
)
def test_wrong_options_get_one_sentence(folder, capsys, model, given, message):
    if model == "tuned" and not (folder / model).exists():
        make_fine_tuned(folder / model)
    assert message in printed(capsys, "classify", folder / model, *given, "the cat")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--task.label_words=a,b",), "--task.label_words applies to --task.template, which is not given"),
        (options(prefix="--task.", name="label_words"), "has no evaluation set; give a file with --task.evaluation"),
        (
            (*options(prefix="--task.", name="label_words"), "--data.path=FILE"),
            "--task.template classifies the labelled examples of --task.evaluation=FILE, and --data.path names a text",
        ),
        (
            (*options("{body} was [MASK]", prefix="--task.", name="label_words"), "--task.evaluation=FILE"),
            "there is no column body; the columns are sentence, label",
        ),
        (
            (*options(words=["calm=house", "x=music"], prefix="--task.", name="label_words"), "--task.evaluation=FILE"),
            "the label BUSY in label is not one of calm, x",
        ),
    ],
)
def test_a_wrong_evaluation_gets_one_sentence(folder, capsys, given, message):
    given = [option.replace("FILE", str(folder / "dev.tsv")) for option in given]
    assert message in printed(capsys, "evaluate", folder / "bert", *given)

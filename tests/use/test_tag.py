import json

import pytest

from jaxlm.cli import main
from jaxlm.errors import UserError
from jaxlm.use.model import load
from tests.untrained import make_fine_tuned

pytest.importorskip("jaxlm.data.tasks.tagging")
SENTENCES = ["the cat sees the house", "a river", "the old captain " * 20]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return make_fine_tuned(tmp_path_factory.mktemp("tag") / "run", "tagging", ("B-PER", "I-PER", "O"))


def test_every_word_has_a_tag_also_in_sentences_longer_than_the_model(workdir, capsys):
    found = load(workdir).tag(SENTENCES)
    assert [one["words"] for one in found] == [sentence.split() for sentence in SENTENCES]
    assert [len(one["tags"]) for one in found] == [5, 2, 60]
    assert load(workdir).tag([sentence.split() for sentence in SENTENCES]) == found
    assert main(["tag", f"--model={workdir}", "--json", *SENTENCES]) == 0
    assert json.loads(capsys.readouterr().out) == {"predictions": found}
    assert main(["tag", f"--model={workdir}", SENTENCES[1]]) == 0
    assert capsys.readouterr().out == "".join(f"{w}\t{t}\n" for w, t in zip(*found[1].values(), strict=True)) + "\n"


def test_files_have_conll_columns_or_a_sentence_in_each_line(workdir, tmp_path, capsys):
    expected = load(workdir).tag(SENTENCES[:2])
    (tmp_path / "a.txt").write_text("the B-LOC\ncat O\nsees O\nthe O\nhouse O\n\na O\nriver O\n")
    (tmp_path / "b.txt").write_text("\n".join(SENTENCES[:2]) + "\n")
    for options in ([f"--input={tmp_path / 'a.txt'}"], [f"--input={tmp_path / 'b.txt'}", "--format=text"]):
        assert main(["tag", f"--model={workdir}", "--json", *options]) == 0
        assert json.loads(capsys.readouterr().out)["predictions"] == expected


def test_a_sentence_is_text_or_words(workdir):
    with pytest.raises(UserError, match="sentence 1 must be a str or a list of str"):
        load(workdir).tag([["the", 3]])
    with pytest.raises(UserError, match="sentences must be a list of str, or of lists of words"):
        load(workdir).tag("the cat")

import json

import pytest

from jaxlm.cli import main
from jaxlm.errors import UserError
from jaxlm.use.model import load
from tests.untrained import make_fine_tuned

pytest.importorskip("jaxlm.data.tasks.reranking")
PASSAGES = ["the cat sees the house", "a river", "the old captain carries a letter"]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return make_fine_tuned(tmp_path_factory.mktemp("rank") / "run", "reranking", (), text=("query", "passage"))


def test_passages_are_in_the_order_of_their_scores(workdir, tmp_path, capsys):
    found = load(workdir).rank("who sees", PASSAGES)
    assert sorted(one["index"] for one in found) == [0, 1, 2]
    assert [one["score"] for one in found] == sorted((one["score"] for one in found), reverse=True)
    assert main(["rank", f"--model={workdir}", "--query=who sees", *PASSAGES]) == 0
    assert capsys.readouterr().out == "".join(
        f"{rank:4}  {one['score']:9.3f}  {PASSAGES[one['index']]}\n" for rank, one in enumerate(found, 1)
    )
    (tmp_path / "a.tsv").write_text("query\tpassage\n" + "".join(f"who sees\t{text}\n" for text in PASSAGES))
    for source in (["--query=who sees", *PASSAGES], [f"--input={tmp_path / 'a.tsv'}"]):
        assert main(["rank", f"--model={workdir}", "--json", *source]) == 0
        shown = json.loads(capsys.readouterr().out)["predictions"]
        assert [one["passage"] for one in shown] == PASSAGES
        assert [one["score"] for one in sorted(shown, key=lambda one: one["rank"])] == [one["score"] for one in found]


def test_a_query_is_text(workdir):
    with pytest.raises(UserError, match="query must be a str, not int"):
        load(workdir).rank(3, PASSAGES)

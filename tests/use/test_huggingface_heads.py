"""The verbs of fine-tuned models read Hugging Face directories: an export predicts what its run predicts."""

import json

import numpy as np
import pytest

from jaxlm.cli import main
from jaxlm.errors import UserError
from jaxlm.use.model import load
from tests.untrained import make_fine_tuned, make_workdir

TEXTS = ["the cat sees the house", "a river"]
BERT = {"activation": "gelu", "norm_position": "post", "embedding_norm": True, "token_types": 2}
PAIRS = [("the cat", "a river"), ("who sees", "the old captain carries a letter")]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Returns a function that makes the run and its export, once for each objective."""
    folder, made = tmp_path_factory.mktemp("heads"), {}

    def make(objective, labels=(), **task):
        if (objective, labels) not in made:
            run = make_fine_tuned(folder / f"run{len(made)}", objective, labels, BERT, **task)
            (run / "metrics.jsonl").touch()
            export = folder / f"export{len(made)}"
            assert main(["export", f"--model={run}", f"--to={export}"]) == 0
            made[objective, labels] = run, export
        return made[objective, labels]

    return make


def assert_same(found, expected):
    """Compares predictions, whose numbers may differ by rounding."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert_same(found[key], value)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert found == (pytest.approx(expected, abs=1e-4) if isinstance(expected, float) else expected)


@pytest.mark.parametrize(("objective", "labels", "task", "texts"), [
    ("classification", ("calm", "busy"), {}, TEXTS),
    ("multi_label", ("dry", "warm", "old"), {}, TEXTS),
    ("regression", (), {"text": ("first", "second")}, PAIRS),
])  # fmt: skip
def test_classify_predicts_as_the_run_does(exported, objective, labels, task, texts):
    run, export = exported(objective, labels, **task)
    assert_same(load(export).classify(texts), load(run).classify(texts))


def test_a_model_reads_texts_or_pairs_but_not_both_at_once(exported, tmp_path, capsys):
    _, export = exported("classification", ("calm", "busy"))
    model = load(export)
    single, pairs = model.classify(TEXTS), model.classify(PAIRS)
    assert len(single) == len(pairs) == 2
    with pytest.raises(UserError, match=r"text 2: expected 1 text, as in text 1; give all the same number"):
        model.classify([TEXTS[0], PAIRS[0]])
    assert main(["classify", f"--model={export}", "--json", *("\t".join(pair) for pair in PAIRS)]) == 0
    assert_same(
        [one["label"] for one in json.loads(capsys.readouterr().out)["predictions"]], [p["label"] for p in pairs]
    )
    (tmp_path / "a.tsv").write_text("one\ttwo\n" + "".join(f"{a}\t{b}\n" for a, b in PAIRS))
    output = tmp_path / "out.jsonl"
    for field, expected in [("one,two", pairs), ("two", model.classify([b for _, b in PAIRS]))]:
        command = [
            "classify",
            f"--model={export}",
            f"--input={tmp_path}/a.tsv",
            f"--field={field}",
            f"--output={output}",
        ]
        assert main(command) == 0
        assert_same([json.loads(line) for line in output.read_text().splitlines()], expected)
    assert main([*command[:3], "--field=one,two,two"]) == 1
    assert "--field=one,two,two: " in capsys.readouterr().err


def test_tag_and_answer_predict_as_the_run_does(exported):
    run, export = exported("tagging", ("B-a", "I-a", "O"), text=("words",))
    assert_same(load(export).tag([*TEXTS, "the " * 60]), load(run).tag([*TEXTS, "the " * 60]))
    run, export = exported("span", text=("question", "context"))
    assert_same(load(export).answer(PAIRS), load(run).answer(PAIRS))


def test_one_output_is_a_score_for_rank_and_a_number_for_classify(exported):
    run, export = exported("reranking", text=("query", "passage"))
    model, passages = load(export), [*TEXTS, "the old captain"]
    ranked = load(run).rank("who sees", passages)
    assert_same(model.rank("who sees", passages), ranked)
    numbers = [one["value"] for one in model.classify([("who sees", text) for text in passages])]
    assert_same([numbers[one["index"]] for one in ranked], [one["score"] for one in ranked])


def test_an_export_is_evaluated_on_labelled_files(exported, tmp_path, capsys):
    run, export = exported("classification", ("calm", "busy"))
    (tmp_path / "a.tsv").write_text(
        "sentence\tlabel\n" + "".join(f"{t}\t{n}\n" for t, n in zip(TEXTS, ("calm", "busy"), strict=True))
    )
    options = [f"--task.evaluation={tmp_path}/a.tsv", "--task.text=sentence", "--json"]
    found = []
    for model in (run, export):
        assert main(["evaluate", f"--model={model}", *options]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert np.isfinite(found[0]["evaluation"]["loss"])
    assert_same(found[1]["evaluation"], found[0]["evaluation"])
    # Labels without names are numbered in Transformers.
    config = json.loads((export / "config.json").read_text())
    names = {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1}}
    (export / "config.json").write_text(json.dumps(config | names))
    (tmp_path / "a.tsv").write_text("sentence\tlabel\n" + "".join(f"{t}\t{n}\n" for n, t in enumerate(TEXTS)))
    assert main(["evaluate", f"--model={export}", *options]) == 0
    assert_same(json.loads(capsys.readouterr().out)["evaluation"], found[0]["evaluation"])


def test_other_heads_are_refused(exported, tmp_path, capsys):
    _, export = exported("tagging", ("B-a", "I-a", "O"), text=("words",))
    assert main(["classify", f"--model={export}", "the cat"]) == 1
    assert f"{export} was fine-tuned with train.objective=tagging" in capsys.readouterr().err
    masked = tmp_path / "masked"
    run = make_workdir(tmp_path / "run", **BERT)
    (run / "metrics.jsonl").touch()
    assert main(["export", f"--model={run}", f"--to={masked}"]) == 0
    assert main(["tag", f"--model={masked}", "the cat"]) == 1
    assert "is a masked language model; tag needs a model" in capsys.readouterr().err

import json
import subprocess
import sys

import numpy as np
import pytest

from jaxlm.cli import VERBS
from jaxlm.config import config_to_dict, load_config
from jaxlm.errors import UserError
from jaxlm.runtime.json_output import as_json, only_json, print_json, print_json_list, wants_json
from tests.conftest import ROOT, environment, mini_overrides
from tests.study.made_up import write_run, write_sweep
from tests.untrained import make_fine_tuned, make_workdir

BERT = {"activation": "gelu", "norm_position": "post", "embedding_norm": True, "token_types": 2}


def test_what_json_cannot_express_becomes_null(capsys):
    print_json({"a": float("nan"), "b": [np.float32("inf"), np.int64(3), (1, None)], 4: np.array([0.5]), "é": "語"})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [None, 3, [1, None]], "4": [0.5], "é": "語"}
    assert as_json({"x": float("-inf")}) == {"x": None}


def test_a_list_is_one_object_with_an_item_on_each_line(capsys):
    for items in ([], [{"a": 1}], [{"a": 1}, {"b": float("nan")}]):
        print_json_list("texts", iter(items))
        output = capsys.readouterr().out
        assert json.loads(output) == {"texts": as_json(items)}
        assert len(output.splitlines()) == 2 + len(items)


def test_a_list_that_fails_at_once_prints_nothing(capsys):
    def items():
        raise ValueError
        yield

    with pytest.raises(ValueError):  # noqa: PT011
        print_json_list("texts", items())
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("argv", "wanted"),
    [(["--json"], True), (["x", "--js"], True), (["x"], False), (["--", "--json"], False), (["--"], False)],
)
def test_the_option_is_found_as_argparse_finds_it(argv, wanted):
    assert wants_json(argv) == wanted


NOISE = """
import os, subprocess, sys
from jaxlm.runtime.json_output import only_json, print_json
print("before")
with only_json():
    print("python")
    os.write(1, b"library\\n")
    subprocess.run([sys.executable, "-c", "print('worker')"])
    print_json({"text": sys.argv[1], "é": "\\udce9"})
    print("python again")
print("after")
"""


def test_only_the_answer_reaches_standard_output():
    for encoding in ("utf-8", "ascii"):
        settings = environment() | {"PYTHONIOENCODING": encoding}
        result = subprocess.run([sys.executable, "-c", NOISE, "x"], env=settings, capture_output=True, text=True)
        before, answer, after = result.stdout.splitlines()
        assert (before, after) == ("before", "after")
        assert json.loads(answer) == {"text": "x", "é": "\udce9"}
        assert {"python", "library", "worker", "python again"} <= set(result.stderr.split("\n"))


def test_a_closed_standard_output_is_reported(monkeypatch):
    monkeypatch.setattr("sys.stdout", None)
    with pytest.raises(UserError, match="standard output is closed"), only_json():
        pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a model and with files for every verb; the model's weights and text make warnings likely."""
    folder = tmp_path_factory.mktemp("json")
    (make_workdir(folder / "run", **BERT) / "metrics.jsonl").touch()
    make_fine_tuned(folder / "classifier")
    make_fine_tuned(folder / "tagger", "tagging", ("B-PER", "I-PER", "O"))
    make_fine_tuned(folder / "reader", "span", (), stride=8)
    make_fine_tuned(folder / "ranker", "reranking", (), text=("query", "passage"))
    write_run(folder / "logged", config_to_dict(load_config("mini")), [5.0, 4.0])
    write_sweep(folder / "sweep")
    (folder / "texts.txt").write_text("The cat sees the house.\nthe cat 語 a\x07b\n" + "the cat " * 40 + "\n")
    return folder


def verbs(text_file, cache):
    """Returns a command line that answers with data for each verb that can."""
    overrides = [f"--config.{override}" for override in mini_overrides(text_file, cache)]
    config = [f"--config={ROOT / 'configs' / 'mini.py'}", *overrides]
    text = [f"--data.path={text_file}", f"--data.cache={cache}", "--data.document=paragraph", "--rows=4"]
    return {
        "prepare": [*config, "--output=prepared"],
        "config": [*config],
        "fill-mask": ["--model=run", "The cat [MASK] the house.", "x[MASK]", "--targets=an,the,colour"],
        "embed": ["--model=run", "--input=texts.txt", "--output=vectors.npy"],
        "score": ["--model=run", "The cat.", "The 語 cat."],
        "classify": ["--model=classifier", "--input=texts.txt", "--output=labels.parquet"],
        "tag": ["--model=tagger", "The 語 cat", ""],
        "answer": ["--model=reader", "--context=texts.txt", "Who sees?"],
        "rank": ["--model=ranker", "--query=cat", "The 語 cat.", "a river"],
        "evaluate": ["--model=run", *text],
        "export": ["--workdir=run", "--to=exported"],
        "bench": [*config, "--batch=64", "--length=128", "--steps=1", "--warmup=0", "--profile"],
        "plan": [*config, "--mesh=data=4", "--formula"],
        "sweep": ["sweep", "--workdir=swept", "--dry-run"],
        "report": ["logged"],
    }


def test_every_verb_that_answers_with_data_has_the_option():
    assert set(VERBS) - {"train", "completion"} == set(verbs("text", "cache"))  # a run's data are in metrics.jsonl


WALK = """
import json, sys
from jaxlm import cli
from jaxlm.performance import bench
bench.MEASURING_SECONDS = 0.1
for verb, arguments in json.loads(sys.argv[1]).items():
    print(json.dumps([verb, cli.main([verb, *arguments, "--json"])]), flush=True)
"""


@pytest.mark.slow
def test_every_verb_prints_one_json_object(folder, text_file, cache):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    lines = json.dumps(verbs(text_file, cache))
    result = subprocess.run(  # one process for all verbs: most of the time goes into imports
        [sys.executable, "-c", WALK, lines], env=environment(), cwd=folder, capture_output=True, text=True
    )
    answers, answer = {}, ""
    for line in result.stdout.splitlines(keepends=True):
        if line.startswith('["'):
            verb, status = json.loads(line)
            assert status == 0, result.stderr
            answers[verb], answer = json.loads(answer, parse_constant=refuse), ""
        else:
            answer += line
    assert list(answers) == list(verbs(text_file, cache)), result.stderr
    assert all(isinstance(content, dict) for content in answers.values())
    assert answers["evaluate"][str(text_file)]["n"] > 0
    assert len(answers["score"]["texts"]) == len(answers["fill-mask"]["texts"]) == 2
    assert answers["embed"]["vectors"] == answers["classify"]["examples"] == 3
    assert [len(answers[verb]["predictions"]) for verb in ("tag", "answer", "rank")] == [2, 1, 2]
    assert answers["prepare"]["stores"]["train/0"]["documents"] > 300
    assert "model.safetensors" in answers["export"]["files"]
    assert answers["bench"]["input_tokens_per_second"] > 0
    assert [run["state"] for run in answers["sweep"]["runs"]] == ["new"] * 6
    assert answers["report"]["arms"][0]["n"] == 1

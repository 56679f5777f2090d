"""The --help of every verb: it fits a terminal of 80 columns, and its examples work as they are written."""

import contextlib
import importlib
import io
import json
import shlex
import subprocess
import sys

import pytest

from jaxlm.cli import VERBS
from tests.conftest import ROOT, environment
from tests.untrained import make_fine_tuned, make_workdir


def help_of(verb: str) -> str:
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
        importlib.import_module(VERBS[verb][0]).main(["--help"])
    return output.getvalue()


def examples(verb: str) -> list[list[str]]:
    """Returns the arguments of each example in the help of a verb."""
    found = help_of(verb).partition("example")[2].replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in found if line.startswith("  jaxlm ")]


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_fits_80_columns_and_has_an_example(verb, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    too_long = [line for line in help_of(verb).splitlines() if len(line) > 80]
    assert not too_long
    assert examples(verb)
    assert all(arguments[0] == verb for arguments in examples(verb))
    if "--config" in help_of(verb):
        assert "--config.section.key=VALUE" in help_of(verb)


RUN = """
import json, shlex, sys
from jaxlm import cli
for arguments in json.loads(sys.argv[1]):
    if cli.main(arguments):
        sys.exit(shlex.join(arguments))
"""


@pytest.mark.slow
def test_the_examples_work_as_they_are_written(tmp_path):
    for name in ("README.md", "configs", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    bert = {"activation": "gelu", "norm_position": "post", "embedding_norm": True, "token_types": 2}
    (make_workdir(tmp_path / "runs" / "mini", **bert) / "metrics.jsonl").touch()
    make_fine_tuned(tmp_path / "runs" / "sst2")
    (tmp_path / "new.tsv").write_text("sentence\tlabel\nthe cat\tcalm\na river\tbusy\n")
    (tmp_path / "probes" / "blimp").mkdir(parents=True)
    (tmp_path / "probes" / "blimp" / "a.jsonl").write_text(
        '{"sentence_good": "The cat sees.", "sentence_bad": "Cat the."}'
    )
    (tmp_path / "probes" / "crows_pairs_anonymized.csv").write_text(
        ",sent_more,sent_less,stereo_antistereo,bias_type\n0,The cat sees a river.,The dog sees a river.,stereo,age\n"
    )
    verbs = ("config", "fill-mask", "embed", "score", "classify", "evaluate", "export")  # the others take longer
    lines = json.dumps([arguments for verb in verbs for arguments in examples(verb)])
    settings = environment() | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    process = [sys.executable, "-c", RUN, lines]
    result = subprocess.run(process, env=settings, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr

"""The script of `jaxlm completion`, run by bash and zsh."""

import shutil
import subprocess

import pytest

from jaxlm.cli import VERBS, main
from jaxlm.recipes import recipes
from jaxlm.settings import SETTINGS
from jaxlm.use.completion import SCRIPT
from tests.scripts import load_script

bash = pytest.mark.skipif(not shutil.which("bash"), reason="bash is not installed")
zsh = pytest.mark.skipif(not shutil.which("zsh"), reason="zsh is not installed")
# Replacements for zsh's completion system, which runs in its line editor only.
ZSH = """
compdef() {{ [[ $2 == jaxlm ]] && offers=$1 }}
compadd() {{ while [[ $1 != -- ]]; do shift; done; shift; (( $# )) && print -l -- "$@" }}
compset() {{ :; }}
_files() {{ :; }}
source {script}
words=({line}x)
CURRENT=$#words PREFIX={word}
$offers
"""


def complete(line: str) -> list[str]:
    """Returns what bash would offer for the last word of a line, behind its last = or :."""
    code = f"source {SCRIPT}; COMP_LINE='{line}'; COMP_POINT=${{#COMP_LINE}}; _jaxlm 2>/dev/null; "
    done = subprocess.run(["bash", "-c", code + 'printf "%s\\n" "${COMPREPLY[@]}"'], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return [word for word in done.stdout.split("\n") if word]


def complete_in_zsh(line: str) -> list[str]:
    """Returns what zsh would offer for the last word of a line, behind its last = or :."""
    word = line.rpartition(" ")[2]
    code = ZSH.format(script=SCRIPT, line=line, word=word)
    done = subprocess.run(["zsh", "-f", "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    kept = max(word.rfind("="), word.rfind(":")) + 1
    assert all(offered.startswith(word) for offered in done.stdout.split())
    return [offered[kept:] for offered in done.stdout.split()]


LINES = pytest.mark.parametrize(("line", "offered"), [
    ("jaxlm  ex", ["export"]),
    ("jaxlm ", [*VERBS, "--help", "--version"]),
    ("jaxlm ex", ["export"]),
    ("jaxlm fill-mask --t", ["--top=", "--targets="]),
    ("jaxlm fill-mask --model=runs/quickstart --j", ["--json"]),
    ("jaxlm train --conf", ["--config=", *(f"--config.{s}.{n}=" for s, table in SETTINGS.items() for n in table)]),
    ("jaxlm train --config=", list(recipes())),
    ("jaxlm train --config=qu", ["quickstart"]),
    ("jaxlm train --config=bert_base:", ["512"]),
    ("jaxlm train --config=finetune:sick", ["sick_relatedness", "sick_entailment"]),
    ("jaxlm train --config.task.name=sick", ["sick_relatedness", "sick_entailment"]),
    ("jaxlm train --config=mini --config.train.st", ["--config.train.steps="]),
    ("jaxlm train --config.train.attention=f", ["flash"]),
    ("jaxlm train --config.data.deduplicate=", ["true", "false"]),
    ("jaxlm train --config.data.path=", []),  # readline then completes files
    ("jaxlm train --workdir=", []),
    ("jaxlm config sch", ["schedule"]),
    ("jaxlm score --variant=o", ["original"]),
    ("jaxlm evaluate --data.pat", ["--data.path="]),
    ("jaxlm evaluate --data.document=", ["file", "paragraph", "line"]),
    ("jaxlm nothing --", []),
])  # fmt: skip


@bash
@LINES
def test_bash_offers(line, offered):
    assert complete(line) == offered


@zsh
@LINES
def test_zsh_offers(line, offered):
    assert sorted(complete_in_zsh(line)) == sorted(offered)  # zsh sorts them itself


def test_the_script_is_printed_and_up_to_date(capsys):
    assert main(["completion"]) == 0
    assert capsys.readouterr().out == load_script("completion").script(), "run scripts/completion"

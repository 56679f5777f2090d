"""README.md and docs/ name settings, verbs, options, scripts and files that exist."""

import contextlib
import functools
import importlib
import io
import re

import pytest

from jaxlm.cli import VERBS
from jaxlm.config import find_setting
from jaxlm.settings import SETTINGS
from tests.conftest import ROOT

PAGES = [ROOT / "README.md", ROOT / "experiments" / "LOG.md", *sorted((ROOT / "docs").glob("*.md"))]
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def commands(text: str) -> list[list[str]]:
    """Returns [verb, option, ...] of each `jaxlm VERB ...` in a text, without values and settings."""
    joined = text.replace("\\\n", " ")
    found = re.findall(r"\bjaxlm ([a-z-]+)((?: +[^\s`]+)*)", joined)
    options = [[verb, *re.findall(r"(?<!\S)\[?(--[a-z-]+)(?=[\s=\]]|$)", rest)] for verb, rest in found]
    return [words for words in options if words[0] in VERBS]


@functools.cache
def help_of(verb: str) -> str:
    """Returns what `jaxlm VERB --help` prints."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
        importlib.import_module(VERBS[verb][0]).main(["--help"])
    return output.getvalue()


@pages
def test_settings_exist(page):
    text = page.read_text()
    names = re.findall(r"--config\.([a-z]+\.[a-z_]+)", text)
    names += re.findall(rf"`((?:{'|'.join(SETTINGS)})\.\w+)[`=]", text)
    for name in names:
        if name.partition(".")[2] not in ("py", "json", "tsv", "csv", "conll"):
            find_setting(name)


@pages
def test_options_exist(page):
    for verb, *options in commands(page.read_text().split(" -- --")[0]):
        for option in options:
            assert option in help_of(verb) or option == "--config", f"jaxlm {verb} {option}"


def test_commands_are_found():
    text = "jaxlm bench --shape=4x256 \\\n  --json and `jaxlm export --workdir=D [--dtype=x]` and jaxlm reaches"
    assert commands(text) == [["bench", "--shape", "--json"], ["export", "--workdir", "--dtype"]]


@pages
def test_scripts_and_linked_files_exist(page):
    text = page.read_text()
    for name in set(re.findall(r"\bscripts/[a-z_]+(?:\.yaml)?", text)):
        assert (ROOT / name).exists(), name
    for name in set(re.findall(r"\]\(([^)#:]+)\)", text)):
        assert (page.parent / name).exists(), name
    for name in set(re.findall(r"`(jaxlm/[\w/]+(?:\.py|/))`", text)):
        assert (ROOT / name).exists(), name

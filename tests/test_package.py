"""What is published: the metadata, the source archive, and the wheel in an environment of its own."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from jaxlm.recipes import recipes
from jaxlm.version import __version__
from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_every_file_states_the_same_version():
    assert PROJECT["version"] == __version__
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert re.search(rf"^## {re.escape(__version__)} ", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_the_metadata_are_those_of_the_licence_and_the_python_versions():
    assert f"\nlicense: {PROJECT['license']}\n" in (ROOT / "CITATION.cff").read_text()
    lowest, below = map(int, re.findall(r"3\.(\d+)", PROJECT["requires-python"]))
    versions = [f"Programming Language :: Python :: 3.{minor}" for minor in range(lowest, below)]
    assert [line for line in PROJECT["classifiers"] if " :: 3." in line] == versions


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy of the files that it is made of."""
    folder = tmp_path_factory.mktemp("package")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "jaxlm", folder / "jaxlm", symlinks=True, ignore=ignore)
    shutil.copytree(ROOT / "configs", folder / "configs", ignore=ignore)
    pip(sys.executable, "wheel", "--no-deps", f"--wheel-dir={folder / 'wheels'}", str(folder))
    (path,) = (folder / "wheels").glob("*.whl")
    return path


def pip(python: str | Path, *arguments: str) -> None:
    """Runs pip; skips the test if it reaches no package index."""
    done = subprocess.run(
        [python, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments], capture_output=True, text=True
    )
    if re.search(r"NewConnectionError|No matching distribution|Could not find a version", done.stderr):
        pytest.skip(f"pip reaches no package index: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_wheel_holds_the_package_the_recipes_and_the_types(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    ours = {path.relative_to(ROOT).as_posix() for path in (ROOT / "jaxlm").rglob("*.py")}
    ours |= {f"jaxlm/configs/{path.name}" for path in recipes().values()}
    assert names >= ours | {"jaxlm/py.typed", "jaxlm/use/completion.bash"}
    assert all(name.startswith(("jaxlm/", f"jaxlm-{__version__}.dist-info/")) for name in names)


def required(requirements: list[str], extra: str = "") -> dict[tuple[str, str], Distribution]:
    """Returns what pip would install here for the requirements: (name, extra) -> the installed distribution.

    Fails if the version that is installed here is another than the requirements allow.
    """
    found: dict[tuple[str, str], Distribution] = {}
    pending = [(Requirement(text), extra) for text in requirements]
    while pending:
        requirement, extra = pending.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        installed = distribution(requirement.name)
        assert requirement.specifier.contains(installed.version, prereleases=True), (requirement, installed.version)
        for name in {"", *requirement.extras}:
            key = requirement.name.lower(), name
            if key not in found:
                found[key] = installed
                pending += [(Requirement(text), name) for text in installed.requires or []]
    return found


def link_dependencies(folder: Path) -> None:
    """Links what jaxlm declares as its dependencies, and nothing else of this environment, into a site-packages."""
    for installed in required(PROJECT["dependencies"]).values():
        for top in {file.parts[0] for file in installed.files} - {"..", "__pycache__"}:
            if not (folder / top).exists():
                (folder / top).symlink_to(installed.locate_file(top))


CODE = """
import sys
import jaxlm
assert jaxlm.__file__.startswith(sys.prefix), jaxlm.__file__
model = jaxlm.load("run")
print(model.fill_mask("The cat sees the [MASK].", top=1)[0][0].text)
print(jaxlm.load("exported").fill_mask("The cat sees the [MASK].", top=1)[0][0].text)
"""


@pytest.mark.slow
def test_the_wheel_trains_fills_a_mask_and_exports_in_an_environment_of_its_own(wheel, text_file, tmp_path):
    environment = tmp_path / "env"
    venv.create(environment, with_pip=False)
    (site_packages,) = environment.glob("lib/python3*/site-packages")
    link_dependencies(site_packages)
    assert not list(site_packages.glob("jaxlm*"))
    assert not list(site_packages.glob("pytest*"))
    train_fill_and_export(environment / "bin", wheel, text_file, tmp_path)


def train_fill_and_export(programs: Path, wheel: Path, text_file: Path, folder: Path) -> None:
    """Installs the wheel into an environment and uses it in a folder that contains no checkout, as a user would."""
    pip(sys.executable, f"--python={programs / 'python'}", "install", "--no-deps", "--no-index", str(wheel))
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "XLA_"))}
    environment = kept | {"XDG_CACHE_HOME": str(folder / "cache")}

    def run(*arguments: object) -> str:
        done = subprocess.run(list(map(str, arguments)), cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    exportable = ("model.first_norm=false", "model.embedding_norm=true")
    settings = (f"data.path={text_file}", "tokenizer.vocab_size=80", "train.steps=5", "model.layers=1", *exportable)
    run(programs / "jaxlm", "train", "--config=mini", "--workdir=run", *(f"--config.{value}" for value in settings))
    assert "The cat sees" in run(programs / "jaxlm", "fill-mask", "--model=run", "The cat sees the [MASK].")
    run(programs / "jaxlm", "export", "--workdir=run", "--to=exported")
    first, second = run(programs / "python", "-c", CODE).splitlines()
    assert first == second

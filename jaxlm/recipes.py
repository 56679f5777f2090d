"""The recipes that ship with jaxlm: the files of `configs/`, which `--config` also finds by their names."""

import difflib
import itertools
import re
from pathlib import Path

from jaxlm.errors import UserError

FOLDER = Path(__file__).parent / "configs"  # in a checkout, a link to the folder `configs/` of the repository


def recipes() -> dict[str, Path]:
    """Returns the file of each recipe by its name."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.py"))}


def variants_of(path: Path) -> list[str]:
    """Returns the variants that the header of a recipe lists, such as "512" for NAME:512."""
    header = path.read_text(encoding="utf-8").partition("\nvariants:")[2]
    lines = itertools.takewhile(lambda line: line.startswith(" "), header.split("\n"))
    return re.findall(r"(?<!\S):(\w+)", "\n".join(lines))


def find_config(name: str) -> Path:
    """Returns the config file that `name` refers to: the name of a recipe, or a path. Raises UserError."""
    known = recipes()
    if name in known:
        return known[name]
    path = Path(name).expanduser()
    if path.is_file():
        return path
    if near := difflib.get_close_matches(path.stem, known, 1):
        raise UserError(f"there is no config file {name}; did you mean the recipe {near[0]}?")
    is_name = path.name == name and not path.suffix
    raise UserError(
        f"there is no recipe {name}; the recipes are {', '.join(known)}"
        if is_name
        else f"there is no config file {name}"
    )

import sys
from pathlib import Path

from jaxlm.text import pydocs
from jaxlm.text.pydocs import find_python_files, read_docstrings
from tests.text.reading import read, write


def test_docstrings_of_modules_classes_and_functions_are_found_in_order(tmp_path):
    file = write(
        tmp_path / "a.py",
        '"""Module."""\nclass A:\n    """Class.\n\n    Args:\n      x: one.\n    """\n'
        '    async def f(self):\n        """Method."""\n'
        'def g():\n    x = """No docstring."""\ndef h():\n    "Also found."\n',
    )
    invalid = write(tmp_path / "b.py", 'def f(:\n    """x"""\n')
    warning = write(tmp_path / "c.py", '"""An invalid escape: \\d."""\n')
    found = read_docstrings([str(file), str(invalid), str(warning), str(tmp_path / "missing.py")])
    assert found[0] == ["Module.", "Class.\n\nArgs:\n  x: one.", "Method.", "Also found."]
    assert found[1:] == [None, [r"An invalid escape: \d."], None]


def test_pydocs_yields_one_document_per_module_without_repetitions_and_imports_nothing(tmp_path, monkeypatch):
    packages = tmp_path / "site-packages"
    write(packages / "b.py", 'raise SystemExit\n"""x"""\n')
    write(packages / "a" / "__init__.py", '"""About a."""\ndef f():\n    """Repeated."""\n')
    write(packages / "a" / "z.py", '"""About z."""\ndef f():\n    """Repeated."""\n')
    write(packages / "a" / "only_repeats.py", '"""Repeated."""')
    write(packages / "a" / "tests" / "t.py", '"""Ignored."""')
    write(packages / "jaxlm" / "x.py", '"""Ignored."""')
    (packages / "link.py").symlink_to("nowhere.py")
    write(packages / "broken.py", 'def f(:\n    """x"""\n')
    others = [entry for entry in sys.path if Path(entry).name != "site-packages"]
    monkeypatch.setattr(sys, "path", [str(packages), *others])
    monkeypatch.setattr(
        pydocs.sysconfig, "get_path", lambda name: str(write(tmp_path / "lib/s.py", '"""Std."""').parent)
    )
    assert [name for name, _ in find_python_files()] == [
        "packages/a/__init__.py", "packages/a/only_repeats.py", "packages/a/z.py", "packages/b.py",
        "packages/broken.py", "stdlib/s.py",
    ]  # fmt: skip
    documents, tally = read("pydocs")
    assert documents == ["About a.\n\nRepeated.", "About z.", "Std."]
    assert tally.dropped == {"docstrings seen before": 2, "files that cannot be read as Python": 1}
    monkeypatch.setattr(pydocs, "FILES_PER_TASK", 2)
    assert read("pydocs", workers=2) == (documents, tally)


def test_this_environment_has_python_files_in_order():
    files = find_python_files()
    names = [name for name, _ in files]
    assert names == sorted(names)
    assert "stdlib/json/__init__.py" in names
    assert any(name.startswith("packages/numpy/") for name in names)
    assert not any(name.startswith("stdlib/site-packages/") for name in names)

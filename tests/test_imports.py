"""What imports without TensorFlow: everything, for TensorFlow is imported only where it is used."""

import json
import subprocess
import sys

from tests.conftest import environment

BLOCK = """
import importlib.machinery, sys

class Blocked(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {names} else super().find_spec(name, path, target)

sys.meta_path[:] = [Blocked if finder is importlib.machinery.PathFinder else finder for finder in sys.meta_path]
"""
IMPORT_ALL = """
import importlib, json, pkgutil
import jaxlm

failed = {}
for module in pkgutil.walk_packages(jaxlm.__path__, "jaxlm."):
    try:
        importlib.import_module(module.name)
    except ImportError as error:
        failed[module.name] = error.name
print(json.dumps(failed))
"""
TENSORFLOW = {"tensorflow", "tensorflow_datasets"}
OPTIONAL = {"apache_beam"}  # an extra of pyproject.toml, which some modules import at their top


def block(*names: str) -> str:
    """Returns code after which these packages are not found, as if they were not installed."""
    return BLOCK.format(names=set(names))


def test_every_module_imports_without_tensorflow():
    done = subprocess.run(
        [sys.executable, "-c", block(*TENSORFLOW) + IMPORT_ALL], env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    failed = json.loads(done.stdout.splitlines()[-1])
    assert {module: name for module, name in failed.items() if name not in OPTIONAL} == {}
    assert all(module.startswith(("jaxlm.text.", "jaxlm.data.")) for module in failed), failed


def test_the_block_works():
    code = block(*TENSORFLOW) + "import importlib.util as u; print(u.find_spec('tensorflow')); import tensorflow"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "None\n")
    assert "No module named 'tensorflow'" in done.stderr

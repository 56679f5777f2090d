"""The replacements in TensorStore agree with what they replace, and saving works without them."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import tensorstore

from jaxlm.runtime import tensorstore_patch

ROOT = Path(__file__).parents[2]


def test_storage_is_described_as_tensorstore_does_it(tmp_path):
    tensorstore_patch.apply()
    to_json = tensorstore.KvStore.Spec.to_json
    for spec in ({"driver": "file", "path": f"{tmp_path}/a b/"}, {"driver": "memory", "path": "x/"}):
        store = tensorstore.KvStore.Spec(spec)
        assert store.to_json() == to_json.original(store)
    assert tensorstore.experimental_collect_matching_metrics("/tensorstore/") == []


def test_applying_it_twice_changes_nothing():
    tensorstore_patch.apply()
    once = tensorstore.KvStore.Spec.to_json
    tensorstore_patch.apply()
    assert tensorstore.KvStore.Spec.to_json is once


class Immutable(type):
    def __setattr__(cls, name, value):
        raise TypeError("cannot set an attribute of an immutable type")


@pytest.mark.parametrize(
    "library",
    [
        SimpleNamespace(),
        SimpleNamespace(KvStore=SimpleNamespace(Spec=SimpleNamespace())),
        SimpleNamespace(KvStore=SimpleNamespace(Spec=Immutable("Spec", (), {"to_json": lambda self: {}}))),
    ],
    ids=["neither", "no to_json", "immutable"],
)
def test_missing_names_are_left_alone(library):
    before = dict(vars(library))
    tensorstore_patch.apply(library)
    assert vars(library) == before


WITHOUT_NAMES = """
import sys, jax.numpy as jnp, tensorstore
from pathlib import Path
to_json = tensorstore.KvStore.Spec.to_json
del tensorstore.experimental_collect_matching_metrics, tensorstore.KvStore.Spec.to_json
import jaxlm.runtime.checkpoint
assert not hasattr(tensorstore, "experimental_collect_matching_metrics")
assert not hasattr(tensorstore.KvStore.Spec, "to_json")
# Orbax 0.12 itself still needs both, as they were.
tensorstore.experimental_collect_matching_metrics, tensorstore.KvStore.Spec.to_json = lambda _: [], to_json
checkpoints = jaxlm.runtime.checkpoint.Checkpoints(Path(sys.argv[1]))
checkpoints.save(1, {"params": {"w": jnp.ones(3)}}, {}, wait=True)
print(checkpoints.newest())
"""


def test_checkpoints_are_saved_without_the_patch(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_NAMES, str(tmp_path)], env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr

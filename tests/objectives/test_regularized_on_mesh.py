"""Pruning, averaging, R-Drop and distillation leave the same parameters on four devices as on one."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import ROOT
from tests.objectives.regularized_on_mesh import VARIANTS

pytestmark = pytest.mark.slow
MESHES = {1: {}, 4: {"fsdp": 2, "tensor": 2}}


@pytest.fixture(scope="module")
def states(tmp_path_factory):
    """Returns what is left after training, by the number of devices."""
    folder, found = tmp_path_factory.mktemp("meshes"), {}
    for devices, axes in MESHES.items():
        flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
        program = str(ROOT / "tests" / "objectives" / "regularized_on_mesh.py")
        file = folder / f"{devices}.npz"
        done = subprocess.run(
            [sys.executable, program, json.dumps(axes), str(file)],
            env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-4000:]
        with np.load(file, allow_pickle=False) as content:
            found[devices] = dict(content)
    return found


def test_the_state_after_training_is_that_of_one_device(states):
    devices = 4
    assert int(states[devices].pop("devices", devices)) == devices
    states[1].pop("devices", None)
    assert states[devices].keys() == states[1].keys()
    for name, one in states[1].items():
        many = states[devices][name]
        if one.dtype == bool:
            np.testing.assert_array_equal(many, one, err_msg=name)
        else:
            np.testing.assert_allclose(many, one, atol=2e-5, rtol=2e-4, err_msg=name)


def test_half_of_the_weights_are_zero_on_every_device_count_and_variants_differ(states):
    for state in states.values():
        kernels = {}
        for variant in VARIANTS:
            kernels[variant] = [
                leaf for name, leaf in state.items()
                if name.startswith(f"{variant}: params/") and "/layers_" in name and name.endswith("kernel")
            ]  # fmt: skip
            zeros = sum(int((kernel == 0).sum()) for kernel in kernels[variant])
            assert zeros == sum(kernel.size for kernel in kernels[variant]) // 2 > 0
        first, second = kernels.values()
        assert any((one != other).any() for one, other in zip(first, second, strict=True))

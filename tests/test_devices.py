"""A run sees the same data and losses on any mesh; each mesh is a process of its own with forced host devices."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
MESHES: dict[str, tuple[int, dict[str, int]]] = {
    "1": (1, {}),
    "2": (2, {}),
    "4": (4, {}),
    "4 as fsdp 2 x tensor 2": (4, {"fsdp": 2, "tensor": 2}),
}


def train_on(mesh):
    devices, axes = MESHES[mesh]
    # LLVM's optimizations take most of the time and do not depend on the mesh.
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "train_on_mesh.py"), json.dumps(axes)],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def results():
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(MESHES, pool.map(train_on, MESHES), strict=True))


def largest_difference(first, second):
    return max(abs(a - b) for a, b in zip(first, second, strict=True))


def test_every_mesh_has_its_devices(results):
    assert [result["devices"] for result in results.values()] == [1, 2, 4, 4]


@pytest.mark.parametrize("what", ["rows", "masks", "dropout"])
def test_every_step_sees_the_same_bits_on_any_mesh(results, what):
    digests = {name: run[what] for name, run in results["1"]["runs"].items()}
    assert len(set(digests["float32"])) == 20, "two steps have the same bits"
    for result in results.values():
        assert {name: run[what] for name, run in result["runs"].items()} == digests


@pytest.mark.parametrize("name", ["float32", "accumulated", "muon"])
@pytest.mark.parametrize("mesh", MESHES)
def test_losses_in_float32_are_the_same_on_any_mesh(results, mesh, name):
    losses = results[mesh]["runs"][name]["losses"]
    assert largest_difference(losses, results["1"]["runs"][name]["losses"]) < 1e-5


@pytest.mark.parametrize("mesh", MESHES)
def test_micro_batches_give_the_losses_of_the_whole_batch(results, mesh):
    runs = results[mesh]["runs"]
    assert largest_difference(runs["accumulated"]["losses"], runs["float32"]["losses"]) < 1e-5
    assert largest_difference(runs["muon"]["losses"], runs["float32"]["losses"]) > 1e-3, (
        "runs with different optimizers have equal losses"
    )


def test_losses_in_bfloat16_are_close_on_any_mesh(results, capsys):
    exact = results["1"]["runs"]
    lines = []
    for mesh, result in results.items():
        losses = result["runs"]["bfloat16"]["losses"]
        same = largest_difference(losses, exact["bfloat16"]["losses"])
        float32 = largest_difference(losses, exact["float32"]["losses"])
        lines.append(f"bfloat16 on {mesh}: at most {same:.1e} nats from one device and {float32:.1e} from float32")
        assert same < 0.02
        assert float32 < 0.05
    with capsys.disabled():
        print("", *lines, sep="\n")


def test_state_is_divided_among_fsdp_and_tensor(results):
    """Only norms, biases of the residual stream and counters are replicated."""
    shares = {mesh: result["runs"]["float32"]["share_of_state"] for mesh, result in results.items()}
    assert shares["4"] == 1
    assert shares["4 as fsdp 2 x tensor 2"] < 0.35


def test_gradients_of_kernels_gather_nothing_on_a_data_mesh(results):
    gathers = results["2"]["all_gathers"]
    assert gathers["False"] == 0
    assert gathers["True"] > 0, "transposed gradients no longer add all-gathers: enable them in choose_execution"

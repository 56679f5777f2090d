import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.errors import UserError
from jaxlm.runtime import hardware

ON_CPU = pytest.mark.skipif(jax.default_backend() != "cpu", reason="tests the CPU")


def chip(kind, platform="gpu", **attributes):
    return SimpleNamespace(platform=platform, device_kind=kind, **attributes)


@pytest.mark.parametrize(
    ("platform", "kind", "bfloat16", "float32"),
    [
        ("tpu", "TPU v4", 275, None),
        ("tpu", "TPU v5 lite", 197, None),
        ("tpu", "TPU v5e", 197, None),
        ("tpu", "TPU v5", 459, None),
        ("tpu", "TPU v5p", 459, None),
        ("tpu", "TPU v6 lite", 918, None),
        ("tpu", "TPU v6e", 918, None),
        ("gpu", "NVIDIA A100-SXM4-40GB", 312, 156),
        ("gpu", "NVIDIA A100 80GB PCIe", 312, 156),
        ("gpu", "NVIDIA H100 80GB HBM3", 989.4, 494.7),
        ("gpu", "NVIDIA H100 PCIe", 756, 378),
        ("gpu", "NVIDIA H200", 989.4, 494.7),
        ("gpu", "NVIDIA L4", 121, 60),
        ("gpu", "NVIDIA A10", 125, 62.5),
        ("gpu", "NVIDIA GeForce RTX 4090", 165.2, 82.6),
        ("gpu", "Tesla V100-SXM2-16GB", None, 15.7),
    ],
)
def test_known_chips_have_the_dense_rate_of_their_datasheet(platform, kind, bfloat16, float32):
    for dtype, teraflops in (("bfloat16", bfloat16), ("float32", float32)):
        if teraflops is not None:
            peak = hardware.peak_flops(chip(kind, platform), dtype)
            assert peak.flops == pytest.approx(teraflops * 1e12)
            assert kind in peak.source
            assert "datasheet" in peak.source


@pytest.mark.parametrize(
    "kind",
    ["NVIDIA A10G", "NVIDIA L40S", "NVIDIA L40", "NVIDIA GeForce RTX 4090 Laptop GPU",
     "NVIDIA A100-SXM4-40GB MIG 3g.20gb", "NVIDIA GH200 480GB", "NVIDIA H200 NVL", "NVIDIA A100X",
     "TPU v4 lite", "TPU v2"],
)  # fmt: skip
def test_a_chip_with_a_similar_name_is_unknown(kind):
    with pytest.raises(UserError, match=kind.split()[-1]):
        hardware.peak_flops(chip(kind))


def test_an_unknown_chip_is_measured_if_present(monkeypatch):
    new = chip("NVIDIA Z900")
    monkeypatch.setattr(jax, "local_devices", lambda: [chip("NVIDIA A10"), new])
    monkeypatch.setattr(hardware, "_measure", lambda device, dtype: (4096, 5e14) if device is new else None)
    assert hardware.peak_flops(new) == (5e14, "measured: bfloat16 product of 4096 x 4096")


@ON_CPU
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_processor_is_measured_once_and_quickly(dtype):
    hardware._measure.cache_clear()
    start = time.perf_counter()
    first = hardware.peak_flops(dtype=dtype)
    assert time.perf_counter() - start < 3  # 0.7 s on an idle machine
    assert math.isfinite(first.flops)
    assert first.flops > 1e8
    assert "measured" in first.source
    assert hardware.peak_flops(dtype=dtype) == first


@ON_CPU
def test_devices_that_share_a_processor_share_its_rate(monkeypatch):
    monkeypatch.setattr(hardware, "_measure", lambda device, dtype: (1024, 8e11))
    monkeypatch.setattr(jax, "local_device_count", lambda: 4)
    peak = hardware.peak_flops()
    assert peak.flops == 2e11
    assert "divided by the 4 devices" in peak.source


def test_the_peak_rate_of_another_dtype_is_an_error():
    with pytest.raises(UserError, match="float16"):
        hardware.peak_flops(dtype="float16")


@pytest.mark.parametrize(
    ("cpuinfo", "fast"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx512f avx512_bf16 gfni\n", True),
        ("processor\t: 0\nflags\t\t: fpu amx_bf16 amx_tile\n", True),
        ("processor\t: 0\nflags\t\t: fpu avx512f avx512_bf16x\n", False),
        ("processor\t: 0\nFeatures\t: fp asimd i8mm bf16\n", True),
        ("processor\t: 0\nFeatures\t: fp asimd\n", False),
        ("", False),
    ],
)
def test_bfloat16_is_fast_by_the_processor_s_flags(monkeypatch, cpuinfo, fast):
    monkeypatch.setattr(jax, "local_devices", lambda: [chip("cpu", "cpu")])
    monkeypatch.setattr(hardware, "_read", lambda path: cpuinfo)
    assert hardware.fast_bfloat16() is fast


@pytest.mark.parametrize(
    ("device", "fast"),
    [
        (chip("TPU v4", "tpu"), True),
        (chip("NVIDIA A100-SXM4-40GB", compute_capability="8.0"), True),
        (chip("NVIDIA H100 PCIe", compute_capability="9.0"), True),
        (chip("NVIDIA B200", compute_capability="10.0"), True),
        (chip("Tesla V100-SXM2-16GB", compute_capability="7.0"), False),
        (chip("AMD Instinct", compute_capability="gfx942"), False),
        (chip("something else"), False),
    ],
)
def test_bfloat16_is_fast_by_the_generation_of_the_chip(monkeypatch, device, fast):
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    assert hardware.fast_bfloat16() is fast


@ON_CPU
def test_peak_memory_includes_freed_memory():
    # In a new process: the block must be larger than the previous peak, which is gigabytes in a process of tests.
    code = (
        "import numpy; from jaxlm.runtime.hardware import peak_memory_bytes as peak; before = peak(); "
        "size = numpy.ones(before // 8 + 2**20).nbytes; print(before, size, peak())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, size, after = map(int, done.stdout.split())
    assert after > max(before, size)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux reports the peak of a single process")
@ON_CPU
def test_peak_memory_excludes_the_parent_process():
    np.ones(2**26)  # 512 MB, far more than the child needs
    code = "from jaxlm.runtime.hardware import peak_memory_bytes as peak; print(peak())"
    child = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert child < 2**29 <= hardware.peak_memory_bytes()


def test_accelerator_memory_is_the_fullest_device(monkeypatch):
    devices = [chip("GPU", memory_stats=lambda n=n: n and {"peak_bytes_in_use": n}) for n in (5, 9, None)]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    assert hardware.peak_memory_bytes() == 9
    monkeypatch.setattr(jax, "local_devices", lambda: devices[2:])
    assert hardware.peak_memory_bytes() is None


def test_the_limit_of_logits_grows_with_an_accelerator_s_memory(monkeypatch):
    assert hardware.logits_bytes(0) == 256 * 2**20
    assert hardware.logits_bytes(1000) == hardware.logits_bytes(1000, 80 * 2**30) == 1000 * 2**20
    assert hardware.logits_bytes(0, 4 * 2**30) == 256 * 2**20
    assert hardware.logits_bytes(0, 64 * 2**30) == 2**31
    device = SimpleNamespace(platform="gpu", memory_stats=lambda: {"bytes_limit": 96 * 2**30})
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    assert hardware.logits_bytes(0) == 3 * 2**30


def test_the_description_of_the_machine_is_json():
    machine = json.loads(json.dumps(hardware.describe_machine()))
    assert machine["devices"] == jax.device_count()
    assert machine["cores"] >= 1
    assert machine["memory_bytes"] > 2**28
    assert machine["versions"]["jax"] == jax.__version__
    assert machine["versions"]["numpy"] == np.__version__


def git(folder, *arguments):
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main"]
    done = subprocess.run(["git", "-C", str(folder), *identity, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_is_that_of_the_code_and_marks_changes(tmp_path, monkeypatch):
    package = tmp_path / "checkout" / "jaxlm"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    assert hardware._commit(package) is None
    git(package.parent, "init")
    assert hardware._commit(package) is None
    git(package.parent, "add", ".")
    git(package.parent, "commit", "-m", "first")
    commit = git(package.parent, "rev-parse", "HEAD")
    (package.parent / "run").mkdir()
    (package.parent / "run" / "log.txt").write_text("files of a run do not change the code")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    assert hardware._commit(package) == commit
    (package / "__init__.py").write_text("changed = True\n")
    assert hardware._commit(package) == f"{commit}+changes"
    installed = package.parent / "venv" / "jaxlm"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    assert hardware._commit(installed) is None
    monkeypatch.setenv("PATH", os.devnull)
    assert hardware._commit(package) is None


@ON_CPU
def test_xla_running_out_of_memory_is_recognised():
    with pytest.raises(jax.errors.JaxRuntimeError) as caught:
        jnp.zeros(1 << 44, jnp.uint8).block_until_ready()
    assert hardware.out_of_memory(caught.value)


def chained(outer, inner, context=False):
    setattr(outer, "__context__" if context else "__cause__", inner)
    return outer


def in_a_circle():
    first, second = ValueError("a"), ValueError("b")
    first.__context__, second.__context__ = second, first
    return first


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (OSError(12, "Cannot allocate memory"), True),
        (RuntimeError("CUDA_ERROR_OUT_OF_MEMORY: out of memory"), True),
        (RuntimeError("RESOURCE_EXHAUSTED: Allocation of 123 bytes"), True),
        (chained(RuntimeError("the step failed"), chained(ValueError("x"), MemoryError())), True),
        (chained(RuntimeError("while saving"), RuntimeError("Out of memory while trying to allocate"), True), True),
        (RuntimeError("INVALID_ARGUMENT: shapes differ"), False),
        (OSError(28, "No space left on device"), False),
        (in_a_circle(), False),
    ],
)
def test_out_of_memory_is_found_anywhere_in_the_chain(error, expected):
    assert hardware.out_of_memory(error) is expected

"""What the machine can do: its peak arithmetic rate, its memory, and a description of it for the log."""

import contextlib
import errno
import functools
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.errors import UserError
from jaxlm.version import __version__

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


class Peak(NamedTuple):
    """The most floating-point operations a second that one device does, and where the figure is from."""

    flops: float
    source: str


# Dense rates a device, in TFLOP/s, from the makers' datasheets, which print twice these where they count sparsity.
# The whole name must match: an A10G, an L40, a laptop's RTX 4090 and a MIG slice of an A100 are other chips.
# float32 stands for what JAX's default precision runs: TF32 on tensor cores, plain float32 on V100. Where the
# datasheet has no figure (float32 on TPU, bfloat16 on V100) there is none here, and the rate is measured.
DATASHEET: tuple[tuple[str, dict[str, float]], ...] = (
    (r"TPU v4", {"bfloat16": 275}),
    (r"TPU v5 lite|TPU v5e", {"bfloat16": 197}),
    (r"TPU v5p?", {"bfloat16": 459}),
    (r"TPU v6 lite|TPU v6e", {"bfloat16": 918}),
    (r"A100-(SXM4|PCIE)-(40|80)GB|A100 80GB PCIe", {"bfloat16": 312, "float32": 156}),
    (r"H100 80GB HBM3", {"bfloat16": 989.4, "float32": 494.7}),
    (r"H100 PCIe", {"bfloat16": 756, "float32": 378}),
    (r"H200", {"bfloat16": 989.4, "float32": 494.7}),
    (r"L4", {"bfloat16": 121, "float32": 60}),
    (r"A10", {"bfloat16": 125, "float32": 62.5}),
    (r"GeForce RTX 4090", {"bfloat16": 165.2, "float32": 82.6}),
    (r"V100-SXM2-(16|32)GB", {"float32": 15.7}),
    (r"V100-PCIE-(16|32)GB", {"float32": 14.0}),
)


class Chip(NamedTuple):
    """An accelerator that can be planned for without being here."""

    kind: str  # as JAX calls the device, for DATASHEET
    memory: float  # GiB
    slices: tuple[str, ...] = ()  # of a TPU: the shapes in which its chips are joined


_SQUARES = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16", "16x16x16",
          "16x16x24")  # fmt: skip
# Memory from the makers' datasheets, the shapes from Google's pages on TPU v5e, v5p and v6e.
CHIPS: dict[str, Chip] = {
    "v5e": Chip("TPU v5e", 16, _SQUARES),
    "v5p": Chip("TPU v5p", 95, _CUBES),
    "v6e": Chip("TPU v6e", 32, _SQUARES),
    "h100": Chip("H100 80GB HBM3", 80),
    "h200": Chip("H200", 141),
    "a100": Chip("A100-SXM4-80GB", 80),
}

MEASURING_SECONDS = 0.6
REPETITIONS = 5


def peak_flops(device: Any = None, dtype: Literal["bfloat16", "float32"] = "bfloat16") -> Peak:
    """Returns the peak rate of one device (by default the first) for products of `dtype`, in FLOP/s.

    The datasheet's dense figure for known accelerators; else, and always on CPU, the best rate of a square product,
    measured once a process in under 0.7 s. CPU devices that share one processor get equal parts of it. Raises UserError
    for a chip that is neither known nor here.
    """
    if dtype not in ("bfloat16", "float32"):
        raise UserError(f"no peak rate is known for products of {dtype}: ask for bfloat16 or float32")
    device = device or jax.local_devices()[0]
    if known := datasheet_flops(device, dtype):
        return known
    here = [local for local in jax.local_devices() if local.device_kind == device.device_kind]
    if not here:
        raise UserError(f"no peak rate of {device.device_kind} for {dtype} is known, and there is none here to measure")
    size, rate = _measure(here[0], dtype)
    source = f"measured: {dtype} product of {size} x {size}"
    devices = jax.local_device_count()
    if device.platform == "cpu" and devices > 1:
        return Peak(rate / devices, f"{source}, the processor's rate divided by the {devices} devices that share it")
    return Peak(rate, source)


def datasheet_flops(device: Any, dtype: str) -> Peak | None:
    """Returns the datasheet's dense figure of an accelerator for products of `dtype`; None where there is none."""
    if device.platform == "cpu":
        return None
    kind = re.sub(r"^(NVIDIA|Tesla) ", "", device.device_kind)
    for pattern, rates in DATASHEET:
        if dtype in rates and re.fullmatch(pattern, kind):
            form = "TF32" if dtype == "float32" and not kind.startswith("V100") else dtype
            return Peak(rates[dtype] * 1e12, f"datasheet of {device.device_kind}, dense {form}")
    return None


@functools.cache
def _measure(device: Any, dtype: str) -> tuple[int, float]:
    return measure_product(device, dtype, MEASURING_SECONDS)


def measure_product(device: Any, dtype: str, within: float) -> tuple[int, float]:
    """Returns the size of the square product that ran fastest on `device`, and its FLOP/s, in about `within` seconds.

    Sizes double from 512 while the next one still fits into the time, up to 8,192.
    """
    # XLA's fast bfloat16 kernels on CPU are those with a float32 output; accelerators write bfloat16.
    output = jnp.float32 if device.platform == "cpu" else jnp.dtype(dtype)
    product = jax.jit(lambda x, y: jax.lax.dot(x, y, preferred_element_type=output))
    tile = np.random.default_rng(0).standard_normal((512, 512), np.float32).astype(jnp.dtype(dtype))
    in_turn = 1 if device.platform == "cpu" else 8  # an accelerator must not wait for the next call
    best_size, best_rate, size, spent = 0, 0.0, 512, 0.0
    while True:
        operand = jax.device_put(np.tile(tile, (size // 512, size // 512)), device)
        product(operand, operand).block_until_ready()
        seconds: list[float] = []
        while len(seconds) < REPETITIONS or sum(seconds) < within / 8:  # a shared machine is seldom all ours
            start = time.perf_counter()
            jax.block_until_ready([product(operand, operand) for _ in range(in_turn)])
            seconds.append((time.perf_counter() - start) / in_turn)
        rate = 2 * size**3 / min(seconds)
        if rate > best_rate:
            best_size, best_rate = size, rate
        spent += in_turn * sum(seconds)  # compiling not counted, which for a GPU takes longer than all products
        next_takes = 8 * (REPETITIONS + 1) * min(seconds)
        if size == 8192 or spent + next_takes > within:
            return best_size, best_rate
        size *= 2


def fast_bfloat16() -> bool:
    """Returns whether bfloat16 products run faster than float32 ones here, by what the chip is: never by timing.

    On CPU the processor's flags decide; a GPU needs compute capability 8; every TPU is fast.
    """
    device = jax.local_devices()[0]
    if device.platform == "tpu":
        return True
    if device.platform == "cpu":
        return bool(_processor_flags() & {"avx512_bf16", "amx_bf16", "bf16"})
    return bool(re.fullmatch(r"([89]|\d\d+)\.\d+", str(getattr(device, "compute_capability", ""))))


def _processor_flags() -> set[str]:
    """Returns the instruction sets that Linux lists for the processor: `flags` on x86-64, `Features` on aarch64."""
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", _read("/proc/cpuinfo"), re.MULTILINE)
    return set(found[1].split()) if found else set()


def peak_memory_bytes() -> int | None:
    """Returns the most memory that any device of this process has held, in bytes; None where JAX does not say.

    On CPU it is the peak resident set of the process.
    """
    devices = jax.local_devices()
    if devices[0].platform != "cpu":
        peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in devices]
        return max((peak for peak in peaks if peak is not None), default=None)
    # Linux starts a child's getrusage peak at its parent's resident set; VmHWM is of this process alone.
    found = re.search(r"^VmHWM:\s*(\d+) kB$", _read("/proc/self/status"), re.MULTILINE)
    if found:
        return int(found[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def logits_bytes(megabytes: int, accelerator_bytes: int | None = None) -> int:
    """Returns what train.logits_megabytes means: 0 is 256 MiB, or a 32nd of an accelerator's memory where that is more.

    The memory is that of the devices here unless it is given. Pieces of the logits are computed once more in the
    backward pass unless there is only one.
    """
    device = jax.local_devices()[0]
    if accelerator_bytes is None:
        stats = (None if device.platform == "cpu" else device.memory_stats()) or {}
        accelerator_bytes = stats.get("bytes_limit", 0)
    return megabytes * 2**20 or max(256 * 2**20, accelerator_bytes // 32)


def describe_machine() -> dict[str, Any]:
    """Returns what ran, as JSON: devices, processor, memory (bytes), versions, and the commit of the checkout.

    What cannot be found out is None.
    """
    device = jax.local_devices()[0]
    return {
        "devices": jax.device_count(),
        "device_kind": device.device_kind,
        "platform": device.platform,
        "processes": jax.process_count(),
        "processor": _processor_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": _memory_bytes(),
        "python": platform.python_version(),
        "versions": {"jaxlm": __version__} | {name: _version(name) for name in PACKAGES},
        "commit": _commit(Path(__file__).resolve().parent),
    }


def _processor_name() -> str | None:
    found = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine() or None


def _memory_bytes() -> int | None:
    """Returns the physical memory, or the container's limit where it is lower."""
    limits = [
        _read(f"/sys/fs/cgroup/{name}").strip() for name in ("memory.max", "memory/memory.limit_in_bytes")
    ]  # version 2 of control groups, and version 1
    sizes = [int(limit) for limit in limits if limit.isdecimal()]
    with contextlib.suppress(AttributeError, ValueError, OSError):
        sizes.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min(sizes, default=None)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit(folder: Path) -> str | None:
    """Returns the commit that `folder`'s code is at, with "+changes" where tracked files differ from it."""
    # An installed package may lie inside somebody's repository: only where git tracks the file is the commit ours.
    if _git(folder, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    commit = _git(folder, "rev-parse", "HEAD")
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return commit + "+changes" if commit and changes else commit


def _git(folder: Path, *arguments: str) -> str | None:
    """Returns what git prints, or None where it is absent, slow or unwilling."""
    # A hook's variables would point to another repository, and `status` must not lock the index of somebody at work.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment["GIT_OPTIONAL_LOCKS"] = "0"
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], env=environment, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _read(path: str) -> str:
    """Returns the text of a system's file, empty where there is none."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def out_of_memory(error: BaseException) -> bool:
    """Returns whether `error`, or what caused it, says that a device or the host ran out of memory."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        if isinstance(link, MemoryError) or (isinstance(link, OSError) and link.errno == errno.ENOMEM):
            return True
        if re.search(r"resource.?exhausted|out.of.memory", str(link), re.IGNORECASE):
            return True
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    return False

"""The machine: its peak arithmetic rate, its memory, and a description for the log."""

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
    """The peak rate of one device in FLOP/s, and the source of the figure."""

    flops: float
    source: str


# Dense rates per device, in TFLOP/s, from the manufacturers' datasheets; rates with sparsity are twice as high.
# The whole name must match: an A10G, an L40, a laptop's RTX 4090 and a MIG slice of an A100 are different chips.
# float32 is what JAX's default precision runs: TF32 on tensor cores, plain float32 on V100. A rate that no datasheet
# gives (float32 on TPU, bfloat16 on V100) is left out here and measured.
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
    """An accelerator for which `jaxlm plan` can estimate runs, present or not."""

    kind: str  # the name that JAX gives the device, for DATASHEET
    memory: float  # GiB
    slices: tuple[str, ...] = ()  # the shapes of a TPU's slices, in chips


_SQUARES = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16", "16x16x16",
          "16x16x24")  # fmt: skip
# Memory from the manufacturers' datasheets, shapes from Google's pages on TPU v5e, v5p and v6e.
CHIPS: dict[str, Chip] = {
    "v5e": Chip("TPU v5e", 16, _SQUARES),
    "v5p": Chip("TPU v5p", 95, _CUBES),
    "v6e": Chip("TPU v6e", 32, _SQUARES),
    "h100": Chip("H100 80GB HBM3", 80),
    "h200": Chip("H200", 141),
    "a100": Chip("A100-SXM4-80GB", 80),
}

MEASURING_SECONDS = 0.6
REPETITIONS = 5  # of each product, at least


def peak_flops(device: Any = None, dtype: Literal["bfloat16", "float32"] = "bfloat16") -> Peak:
    """Returns the peak rate of one device (by default the first) for matrix products of `dtype`, in FLOP/s.

    It is the datasheet's dense figure for a known accelerator. For others, and always on CPU, it is the best rate of a
    square product, measured once per process in less than 0.7 s; CPU devices that share a processor share its rate
    equally. Raises UserError for a chip that is neither known nor present.
    """
    if dtype not in ("bfloat16", "float32"):
        raise UserError(f"no peak rate is known for products of {dtype}; use bfloat16 or float32")
    device = device or jax.local_devices()[0]
    if known := datasheet_flops(device, dtype):
        return known
    here = [local for local in jax.local_devices() if local.device_kind == device.device_kind]
    if not here:
        raise UserError(f"no peak rate of {device.device_kind} for {dtype} is known, and none is present to measure it")
    size, rate = _measure(here[0], dtype)
    source = f"measured: {dtype} product of {size} x {size}"
    devices = jax.local_device_count()
    if device.platform == "cpu" and devices > 1:
        return Peak(rate / devices, f"{source}, the processor's rate divided by the {devices} devices that share it")
    return Peak(rate, source)


def datasheet_flops(device: Any, dtype: str) -> Peak | None:
    """Returns the datasheet's dense peak rate of an accelerator for products of `dtype`; None if there is no figure."""
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
    """Returns the size n of the fastest [n, n] x [n, n] product on `device` and its rate in FLOP/s.

    n doubles from 512 up to 8,192, as long as the next size fits into about `within` seconds in all.
    """
    # XLA's fast bfloat16 kernels on CPU are those with a float32 output; accelerators write bfloat16.
    output = jnp.float32 if device.platform == "cpu" else jnp.dtype(dtype)
    product = jax.jit(lambda x, y: jax.lax.dot(x, y, preferred_element_type=output))
    tile = np.random.default_rng(0).standard_normal((512, 512), np.float32).astype(jnp.dtype(dtype))
    queued = 1 if device.platform == "cpu" else 8  # calls at once: an accelerator must not wait for the next one
    best_size, best_rate, size, spent = 0, 0.0, 512, 0.0
    while True:
        operand = jax.device_put(np.tile(tile, (size // 512, size // 512)), device)
        product(operand, operand).block_until_ready()
        seconds: list[float] = []
        while len(seconds) < REPETITIONS or sum(seconds) < within / 8:  # other processes may be running
            start = time.perf_counter()
            jax.block_until_ready([product(operand, operand) for _ in range(queued)])
            seconds.append((time.perf_counter() - start) / queued)
        rate = 2 * size**3 / min(seconds)
        if rate > best_rate:
            best_size, best_rate = size, rate
        spent += queued * sum(seconds)  # without compiling, which takes longer than all products on a GPU
        next_size = 8 * (REPETITIONS + 1) * min(seconds)
        if size == 8192 or spent + next_size > within:
            return best_size, best_rate
        size *= 2


def fast_bfloat16() -> bool:
    """Returns whether bfloat16 products run faster than float32 ones on the first device.

    It depends on the chip, never on timing, so that it is reproducible: on CPU on the processor's flags, on GPU on
    compute capability 8 or higher; it is true on every TPU.
    """
    device = jax.local_devices()[0]
    if device.platform == "tpu":
        return True
    if device.platform == "cpu":
        return bool(_processor_flags() & {"avx512_bf16", "amx_bf16", "bf16"})
    return bool(re.fullmatch(r"([89]|\d\d+)\.\d+", str(getattr(device, "compute_capability", ""))))


def _processor_flags() -> set[str]:
    """Returns the processor's instruction sets as Linux lists them: `flags` on x86-64, `Features` on aarch64."""
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", _read("/proc/cpuinfo"), re.MULTILINE)
    return set(found[1].split()) if found else set()


def peak_memory_bytes() -> int | None:
    """Returns the peak memory of this process's fullest device, in bytes; None if JAX does not report it.

    On CPU it is the peak resident set size of the process.
    """
    devices = jax.local_devices()
    if devices[0].platform != "cpu":
        peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in devices]
        return max((peak for peak in peaks if peak is not None), default=None)
    # On Linux, getrusage's peak of a child starts at its parent's resident set; VmHWM belongs to this process alone.
    found = re.search(r"^VmHWM:\s*(\d+) kB$", _read("/proc/self/status"), re.MULTILINE)
    if found:
        return int(found[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def logits_bytes(megabytes: int, accelerator_bytes: int | None = None) -> int:
    """Returns the most bytes of logits that a device computes at once, for train.logits_megabytes=`megabytes`.

    0 megabytes stands for 256 MiB or a 32nd of an accelerator's memory, whichever is larger. `accelerator_bytes` is
    that memory, by default of the first device. Logits above the limit are computed in pieces, and again in the
    backward pass.
    """
    device = jax.local_devices()[0]
    if accelerator_bytes is None:
        stats = (None if device.platform == "cpu" else device.memory_stats()) or {}
        accelerator_bytes = stats.get("bytes_limit", 0)
    return megabytes * 2**20 or max(256 * 2**20, accelerator_bytes // 32)


def check_memory(needed: int, what: str, remedy: str) -> None:
    """Raises UserError if `needed` bytes, a lower bound for each device, exceed the memory that a device has.

    Without this check, an allocation far beyond the memory may hang the machine, or end the process without a message.
    """
    device = jax.local_devices()[0]
    if device.platform == "cpu":  # all CPU devices share the memory of the machine
        available = (_memory_bytes() or 0) // jax.local_device_count()
    else:
        available = (device.memory_stats() or {}).get("bytes_limit", 0)
    if available and needed > available:
        raise UserError(
            f"{what} would take at least {needed / 2**30:,.1f} GiB on each device, which has"
            f" {available / 2**30:,.1f} GiB: {remedy}"
        )


def describe_machine() -> dict[str, Any]:
    """Returns a description for JSON: devices, processor, memory (bytes), versions, and the commit of the checkout.

    Unknown values are None.
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
    """Returns the physical memory, or the limit of the container if it is lower, in bytes."""
    limits = [
        _read(f"/sys/fs/cgroup/{name}").strip() for name in ("memory.max", "memory/memory.limit_in_bytes")
    ]  # control groups version 2, and version 1
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
    """Returns the commit of the code in `folder`, followed by "+changes" if tracked files differ from it."""
    # An installed package may lie inside another repository: the commit is ours only if git tracks the file.
    if _git(folder, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    commit = _git(folder, "rev-parse", "HEAD")
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return commit + "+changes" if commit and changes else commit


def _git(folder: Path, *arguments: str) -> str | None:
    """Returns the output of git, or None if it is missing, fails, or takes more than 10 s."""
    # The variables of a git hook point to its own repository; and `status` must not lock the user's index.
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
    """Returns the text of a file of the operating system, or "" if it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def out_of_memory(error: BaseException) -> bool:
    """Returns whether `error`, or an error that caused it, reports that a device or the host ran out of memory."""
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

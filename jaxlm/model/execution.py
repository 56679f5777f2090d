"""How a model is computed on a platform (`Execution`); its parameters do not depend on it."""

import dataclasses
import math
from typing import Any


@dataclasses.dataclass(frozen=True)
class Execution:
    """How a model is computed, which never changes its parameters.

    `compute_dtype` is that of matrix products, `activation_dtype` that between them. On CPU products of bfloat16 are
    fast only with a float32 result, and gradients of kernels only with a transpose in memory (`transpose_gradients`),
    which on more than one device would cost an all-gather; and XLA must be kept from computing a layer's small
    operations again in each later one (`keep_sums`). `attention` names the kernel; `interpret` runs a Pallas
    kernel where its hardware is not. `fused_norm` computes norms by the GPU's own kernel. `rows` is how devices split
    a batch, if at all.
    """

    compute_dtype: str = "float32"
    activation_dtype: str = "float32"
    transpose_gradients: bool = False
    keep_sums: bool = False
    rematerialise: str = "none"
    attention: str = "xla"
    interpret: bool = False
    fused_norm: bool = False
    rows: Any = None  # jax.sharding.NamedSharding

    @property
    def splits_heads(self) -> bool:
        """Whether devices split attention's heads."""
        return self.rows is not None and self.rows.mesh.shape["tensor"] > 1

    @property
    def batch_parts(self) -> int:
        """Into how many parts devices split a batch."""
        return 1 if self.rows is None else math.prod(self.rows.mesh.shape[axis] for axis in self.rows.spec[0])


def choose_execution(
    compute_dtype: str,
    platform: str,
    devices: int,
    rematerialise: str = "none",
    attention: str = "xla",
    rows: Any = None,
) -> Execution:
    """Returns the execution that is fast on this platform ("cpu", "gpu", "tpu") and number of devices."""
    on_cpu = platform == "cpu"
    return Execution(
        compute_dtype=compute_dtype,
        activation_dtype="float32" if on_cpu else compute_dtype,
        transpose_gradients=on_cpu and devices == 1,
        keep_sums=on_cpu,
        rematerialise=rematerialise,
        attention=attention,
        fused_norm=platform == "gpu" and compute_dtype == "bfloat16" and devices == 1,
        rows=rows if devices > 1 else None,
    )

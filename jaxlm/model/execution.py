"""How a model is computed on a platform (`Execution`); its parameters do not depend on it."""

import dataclasses
import math
from typing import Any


@dataclasses.dataclass(frozen=True)
class Execution:
    """How a model is computed: dtypes, kernels, rematerialisation and sharding. Parameters do not depend on it."""

    compute_dtype: str = "float32"  # of the operands of matrix products
    activation_dtype: str = "float32"  # of everything between matrix products
    # Write the transpose to memory in products for weight gradients: XLA's fast CPU kernels need it. On several devices
    # it would cost an all-gather.
    transpose_gradients: bool = False
    # Compute each residual sum once: on CPU, XLA otherwise recomputes a layer's elementwise operations in later layers.
    keep_sums: bool = False
    rematerialise: str = "none"  # train.rematerialise
    attention: str = "xla"  # the attention kernel: xla, flash or splash
    interpret: bool = False  # run Pallas kernels in the interpreter, on any hardware
    fused_norm: bool = False  # compute norms with the GPU kernels of `fused_norm`
    rows: Any = None  # NamedSharding of a batch's rows over devices; None on a single device

    @property
    def splits_heads(self) -> bool:
        """Returns whether attention heads are split over devices."""
        return self.rows is not None and self.rows.mesh.shape["tensor"] > 1

    @property
    def batch_parts(self) -> int:
        """Returns the number of parts that a batch is split into over devices."""
        return 1 if self.rows is None else math.prod(self.rows.mesh.shape[axis] for axis in self.rows.spec[0])


def choose_execution(
    compute_dtype: str,
    platform: str,
    devices: int,
    rematerialise: str = "none",
    attention: str = "xla",
    rows: Any = None,
) -> Execution:
    """Returns the fast execution for a platform ("cpu", "gpu" or "tpu") and a number of devices."""
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

"""How an encoder is computed (`Execution`), which never changes its parameters; the choice of an attention kernel."""

import dataclasses
import math
from typing import Any

from jaxlm.errors import UserError
from jaxlm.model.config import EncoderConfig


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


def choose_attention(
    wanted: str, config: EncoderConfig, compute_dtype: str, platform: str, mesh: Any = None
) -> tuple[str, str]:
    """Returns the attention kernel that train.attention=`wanted` means here, and a clause that says why it is that one.

    Raises UserError where a kernel cannot do what is asked of it.
    """
    if wanted == "xla":
        return "xla", "as train.attention says"
    if wanted != "auto":
        if lack := _lacks(wanted, config, compute_dtype, platform, mesh):
            raise UserError(f"train.attention={wanted}: {lack}; train.attention=auto takes a kernel that is right")
        return wanted, "as train.attention says"
    if platform == "tpu":
        lack = _lacks("splash", config, compute_dtype, platform, mesh)
        return ("xla", f"for splash: {lack}") if lack else ("splash", "the TPU's own, exact for packed rows")
    if platform == "gpu":
        lack = _lacks("flash", config, compute_dtype, platform, mesh)
        return ("xla", f"for flash: {lack}") if lack else ("flash", "jaxlm's own kernel, exact for packed rows")
    return "xla", "the only one for this platform"


def _lacks(kernel: str, config: EncoderConfig, compute_dtype: str, platform: str, mesh: Any) -> str:
    """Returns what an attention kernel cannot do of what is asked, in a clause; empty where it can do all."""
    home = {"splash": "tpu", "flash": "gpu"}[kernel]
    tensor = mesh.shape["tensor"] if mesh is not None else 1
    rules = [
        (platform == home, f"it runs on {home.upper()}s, and this is a {platform.upper()}"),
        (compute_dtype == "bfloat16", f"it computes in bfloat16, and train.compute_dtype is {compute_dtype}"),
        (kernel == "flash" or not config.attention_dropout,
         f"it cannot drop attention weights, and model.attention_dropout is {config.attention_dropout}"),
        (config.positions != "alibi", "it cannot add ALiBi's bias exactly, and model.positions is alibi"),
        (config.heads % tensor == 0, f"mesh.tensor={tensor} does not divide model.heads={config.heads}"),
        (kernel != "flash" or config.head_width in (16, 32, 64, 128),
         f"its head width is 16, 32, 64 or 128, not {config.head_width}"),
    ]  # fmt: skip
    return next((lack for holds, lack in rules if not holds), "")

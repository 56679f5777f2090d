"""Checksums of arrays: a uint32 for each array of a checkpoint, computed on the devices, and a SHA-256 of parameters.

Orbax loads an array with a flipped bit without an error, so a checkpoint stores the checksum of each array.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental import multihost_utils

from jaxlm.runtime.parameter_paths import param_path

PyTree = Any


def named_leaves(tree: PyTree) -> dict[str, Any]:
    """Returns the leaves of a tree by path, such as `params/encoder/layers_0/mlp/up/kernel`, in the tree's order."""
    return {param_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@jax.jit
def checksum(values: Array) -> tuple[Array, Array]:
    """Returns (uint32 checksum, bool all finite) of an array of any shape and any dtype up to 64 bits.

    The checksum is the sum modulo 2**32, over all elements, of the element's mixed bits times an odd number derived
    from its index; it is the same on any number of devices. Changing one element always changes the checksum;
    exchanging elements, or flipping an even number of signs, leaves it the same only by chance (one in 2**32).
    """
    finite = jnp.isfinite(values).all() if jnp.issubdtype(values.dtype, jnp.floating) else jnp.bool_(True)
    width = values.dtype.itemsize
    if values.dtype == jnp.bool_:
        bits = values.astype(jnp.uint32)
    elif width < 4:
        bits = lax.bitcast_convert_type(values, {1: jnp.uint8, 2: jnp.uint16}[width]).astype(jnp.uint32)
    else:
        bits = lax.bitcast_convert_type(values, jnp.uint32)
    index = jnp.zeros(bits.shape, jnp.uint32)
    for axis, size in enumerate(bits.shape):
        index = index * np.uint32(size % 2**32) + lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    return jnp.sum(_mix(bits) * (_mix(index) | np.uint32(1)), dtype=jnp.uint32), finite


def _mix(bits: Array) -> Array:
    """Returns a bijection of uint32 in which flipping one input bit flips about half of the output bits."""
    bits = (bits ^ (bits >> 16)) * np.uint32(0x7FEB352D)
    bits = (bits ^ (bits >> 15)) * np.uint32(0x846CA68B)
    return bits ^ (bits >> 16)


def checksums(arrays: Mapping[str, Array]) -> dict[str, tuple[int, bool]]:
    """Returns (checksum, all finite) of each array, on the host."""
    # All programs are started before the first result is fetched, except for arrays split over CPU devices: there,
    # concurrent programs with a reduction over devices wait for each other's threads and deadlock.
    results: dict[str, Any] = {}
    for name, array in arrays.items():
        devices: list[Any] = list(array.sharding.device_set) if isinstance(array, Array) else []
        alone = len(devices) > 1 and devices[0].platform == "cpu"
        results[name] = jax.device_get(checksum(array)) if alone else checksum(array)
    fetched = jax.device_get(results)
    return {name: (int(fetched[name][0]), bool(fetched[name][1])) for name in arrays}  # device_get sorts by name


def params_sha256(params: PyTree) -> str:
    """Returns the hex SHA-256 of the paths, dtypes, shapes and little-endian bytes of all arrays, in order of path.

    Every process of a run must call it. Arrays are gathered to the host one at a time.
    """
    digest = hashlib.sha256()
    for name, leaf in sorted(named_leaves(params).items()):
        local = getattr(leaf, "is_fully_addressable", True)
        host = np.ascontiguousarray(leaf if local else multihost_utils.process_allgather(leaf, tiled=True))
        digest.update(f"{name} {leaf.dtype} {list(leaf.shape)}\n".encode())
        digest.update(host.view(f"u{host.itemsize}").astype(f"<u{host.itemsize}", copy=False).data)
    return digest.hexdigest()

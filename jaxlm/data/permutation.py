"""A keyed permutation of any size, in O(1) memory: the order of rows and examples in an epoch; keyed random numbers."""

import functools
import math
from collections.abc import Sequence

import numpy as np

ROUNDS = 10  # with 6 or 8, pairs of rows in stores of a dozen rows were visibly uneven


MULTIPLIERS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


GOLDEN = np.uint64(0x9E3779B97F4A7C15)


HALF_WORD = np.uint64(32)


def permute(index: np.ndarray, size: int, key: int | Sequence[int]) -> np.ndarray:
    """Returns the images of index [B] under a keyed permutation of range(size), int64 [B]; sizes up to 2^62.

    It is a Feistel network over pairs (high, low) of about sqrt(size) values each, applied again to results beyond
    `size` (cycle walking; Black and Rogaway 2002, "Ciphers with arbitrary finite domains"). Runs resume by it, so its
    values must never change.
    """
    keys = _round_keys((key,) if isinstance(key, int) else tuple(key))
    width = math.isqrt(size - 1) + 1
    moduli = np.uint64(width), np.uint64(-(-size // width))
    result = _feistel(np.asarray(index).astype(np.uint64), moduli, keys)
    while (beyond := result >= np.uint64(size)).any():
        result[beyond] = _feistel(result[beyond], moduli, keys)
    return result.astype(np.int64)


def _feistel(x: np.ndarray, moduli: tuple[np.uint64, np.uint64], keys: np.ndarray) -> np.ndarray:
    high = x // moduli[0]
    halves = [x - high * moduli[0], high]
    for number, key in enumerate(keys):
        side = number % 2
        modulus = moduli[side]
        hashed = (halves[1 - side] + key) * MULTIPLIERS[0]
        hashed = ((hashed ^ (hashed >> HALF_WORD)) * MULTIPLIERS[1]) >> HALF_WORD
        moved = halves[side] + ((hashed * modulus) >> HALF_WORD)
        halves[side] = np.minimum(
            moved, moved - modulus
        )  # modulo: below the modulus the difference wraps to a large one
    return halves[1] * moduli[0] + halves[0]


def uniforms(count: int, key: Sequence[int]) -> np.ndarray:
    """Returns `count` random numbers from [0, 1), float64, which depend on the key alone and must never change."""
    bits = _mix(_state(key) + GOLDEN * np.arange(1, count + 1, dtype=np.uint64))
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


@functools.lru_cache(maxsize=256)
def _round_keys(key: tuple[int, ...]) -> np.ndarray:
    return _mix(_state(key) + GOLDEN * np.arange(1, ROUNDS + 1, dtype=np.uint64))


def _state(key: Sequence[int]) -> np.ndarray:
    """Returns a hash of the key, uint64 [1]."""
    state = np.zeros(1, np.uint64)
    for part in key:
        state = _mix((state ^ np.uint64(int(part) % 2**64)) + GOLDEN)
    return state


def _mix(x: np.ndarray) -> np.ndarray:
    """The 64-bit finaliser of SplitMix (Steele, Lea and Flood 2014)."""
    x = (x ^ (x >> np.uint64(30))) * MULTIPLIERS[0]
    x = (x ^ (x >> np.uint64(27))) * MULTIPLIERS[1]
    return x ^ (x >> np.uint64(31))

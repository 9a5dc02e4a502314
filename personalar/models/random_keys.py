"""Counter-based random numbers: hashes of keys, the same on every device and in any order."""

from __future__ import annotations

from torch import Tensor

_ODD = 0x1E3779B97F4A7C15  # spreads neighbouring numbers over all 64 bits before they are hashed


def mix(x: Tensor) -> Tensor:
    """Hash int64 to int64: the finaliser of splitmix64 (Steele et al. 2014), products modulo 2 ** 64."""
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        x = _shift_right(x, shift).bitwise_xor_(x).mul_(factor)
    return _shift_right(x, 31).bitwise_xor_(x)


def apart(keys: Tensor) -> Tensor:
    """Derive keys for an independent random stream."""
    return keys ^ _ODD


def bits(places: Tensor, numbers: Tensor) -> Tensor:
    """Return 32 random bits, as int64 from 0, of every (place, number); the two broadcast.

    Args:
        places: int64, hashed already.
        numbers: int64, small ones that follow each other.
    """
    return high_bits(places + numbers * _ODD)


def high_bits(x: Tensor) -> Tensor:
    """Return the upper 32 bits of the hash of `x` as int64 from 0."""
    return _shift_right(mix(x), 32)


def _shift_right(x: Tensor, count: int) -> Tensor:
    # `>>` repeats the sign bit, which a hash must not
    return (x >> count).bitwise_and_(2 ** (64 - count) - 1)

"""Counter-based random numbers: hashes of keys, equal on every device and in any order of computation."""

from __future__ import annotations

from torch import Tensor

_ODD = 0x1E3779B97F4A7C15  # splitmix64's increment without the sign bit; spreads small numbers over all bits


def mix(x: Tensor) -> Tensor:
    """Hash int64 to int64 with the finaliser of splitmix64 (Steele et al. 2014)."""
    # The constants of splitmix64 as signed numbers. int64 products wrap modulo 2 ** 64 on every device.
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        x = _shift_right(x, shift).bitwise_xor_(x).mul_(factor)
    return _shift_right(x, 31).bitwise_xor_(x)


def bits(places: Tensor, numbers: Tensor) -> Tensor:
    """Return 32 random bits for every (place, number), as int64 in [0, 2 ** 32).

    Args:
        places: int64, already hashed.
        numbers: int64 indices, broadcast with `places`.
    """
    return _shift_right(mix(places + numbers * _ODD), 32)


def _shift_right(x: Tensor, count: int) -> Tensor:
    # A logical shift: `>>` on int64 would fill up with the sign bit.
    return (x >> count).bitwise_and_(2 ** (64 - count) - 1)

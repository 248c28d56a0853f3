"""Vectorised exp, log, log1p and lgamma for the CPU kernels: no table, call or branch.

Calls of ``math.exp`` and ``math.log1p``, and sums, keep a loop scalar. These are polynomials with selects instead;
loops over rows write into buffers, and sums are loops of their own. Coefficients are best polynomials (Remez),
Chebyshev interpolants, computed for this file, or Taylor series. Terms are paired (Estrin's scheme), not nested
(Horner's): the shorter chain of dependent operations made the loops a quarter faster.

numba keeps compiled kernels by the age of their own file: after a change here, touch the other files of this folder.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numba import njit

Vector = np.ndarray[Any, Any]
Scalar: TypeAlias = Any  # of the precision in the name of the function; all casts are explicit
F = np.float32

# "contract" fuses a multiply and an add; sums keep their order except in functions with "reassoc"
EXACT = {"contract", "nsz"}
LOG2_E = 1.4426950408889634
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440054690583e-4  # their sum is ln 2; the first has few bits
ROUND_64 = 1.5 * 2.0**52
ONE, TWO_52 = np.uint64(0x3FF0000000000000), np.uint64(0x4330000000000000)  # the bits of 1.0 and of 2^52
HALF_OCTAVE = np.uint64(0x3FF0000000000000 - 0x3FE6A09E667F3BCD)  # from sqrt(1/2) to 1
LN2_HIGH_64, LN2_LOW_64 = 6.93147180369123816490e-01, 1.90821492927058770002e-10


@njit(inline="always", fastmath=EXACT, error_model="numpy")
def exp_minus(a: Scalar, error: Scalar) -> Scalar:
    """Return ``exp(error - a)`` in float32, for a > -87 and a tiny ``error``; 1e-38 for a > 87."""
    a = min(a, F(87.0))
    k = np.floor(F(0.5) - a * F(LOG2_E))
    return _exp_reduced((-a - k * F(LN2_HIGH)) - k * F(LN2_LOW) + error, k)


@njit(inline="always", fastmath=EXACT, error_model="numpy")
def exp_of_sum(x: Scalar, y: Scalar, a: Scalar) -> Scalar:
    """Return ``exp(x + y)`` in float32 with no rounding of the sum, given ``a >= 0`` that is about ``-(x + y)``."""
    k = np.floor(F(0.5) - min(a, F(87.0)) * F(LOG2_E))
    return _exp_reduced(max(((x - k * F(LN2_HIGH)) + y) - k * F(LN2_LOW), F(-0.4)), k)


@njit(inline="always", fastmath=EXACT, error_model="numpy")
def _exp_reduced(r: Scalar, k: Scalar) -> Scalar:
    # exp(r) 2^k for |r| <= ln 2 / 2, to 7.5e-8 of its size: the best polynomial of degree 5 (Remez)
    r2 = r * r
    low = F(1.0000001192092896) + r * F(0.9999997019767761)
    high = (F(0.4999889135360718) + r * F(0.16667576134204865)) + r2 * (
        F(0.04191562905907631) + r * F(0.008297620341181755)
    )
    return (low + r2 * high) * np.int32((np.int32(k) + np.int32(127)) << np.int32(23)).view(np.float32)


@njit(inline="always", fastmath=EXACT, error_model="numpy")
def log1p_rest(t: Scalar) -> Scalar:
    """Return ``(t - log1p(t)) / t**2`` in float32, for 0 <= t <= 1."""
    t2 = t * t
    t4 = t2 * t2
    a = F(0.4999999701976776) - t * F(0.3333284258842468)
    b = F(0.24986526370048523) - t * F(0.198541060090065)
    c = F(0.15847565233707428) - t * F(0.11561845242977142)
    d = F(0.06675772368907928) - t * F(0.025224054232239723)
    return (a + t2 * b) + t4 * ((c + t2 * d) + t4 * F(0.004466211423277855))


@njit(inline="always", fastmath=EXACT, error_model="numpy")
def log1p_unit(t: Scalar) -> Scalar:
    """Return ``log1p(t)`` in float32, for 0 <= t <= 1."""
    return t - t * t * log1p_rest(t)


@njit(inline="always", fastmath=EXACT, error_model="numpy")
def minus_log_of_rest(q: Scalar, rest: Scalar) -> Scalar:
    """Return ``-log(rest)`` in float32, for ``rest = 1 - q`` in [1e-38, 1], each given to its own precision."""
    # rest is m 2^k with m between sqrt(1/2) and sqrt(2); near 1, where k is 0, m - 1 is -q, which has more digits
    k = np.int32(np.int32(np.float32(rest).view(np.int32) - np.int32(0x3F3504F3)) >> np.int32(23))
    m = rest * np.int32(np.int32(np.int32(127) - k) << np.int32(23)).view(np.float32)
    f = -q if k == 0 else m - F(1)
    f2 = f * f
    a = F(0.4999999155043329) - f * F(0.3333395142364712)
    b = F(0.2500176302617239) - f * F(0.19962024665052075)
    c = F(0.16570263292036883) - f * F(0.1491826207495447)
    d = F(0.14309622056069482) - f * F(0.08736725255952606)
    return f2 * ((a + f2 * b) + (f2 * f2) * (c + f2 * d)) - f - F(k) * F(0.6931471805599453)


@njit(inline="always", fastmath=EXACT, error_model="numpy")
def minus_expm1_minus(a: Scalar) -> Scalar:
    """Return ``1 - exp(-a)`` in float32, for a >= 0."""
    return minus_expm1(a, exp_minus(a, F(0)))


@njit(inline="always", fastmath=EXACT, error_model="numpy")
def minus_expm1(a: Scalar, exponential: Scalar) -> Scalar:
    """Return ``1 - exp(-a)`` in float32, for a >= 0, given ``exp(-a)``."""
    p = F(1 / 5040)
    p = F(1 / 720) - a * p
    p = F(1 / 120) - a * p
    p = F(1 / 24) - a * p
    p = F(1 / 6) - a * p
    p = F(0.5) - a * p
    return a - a * a * p if a < F(0.35) else F(1) - exponential


@njit(inline="always", fastmath=EXACT, error_model="numpy")
def log1p_minus_half(q: Scalar) -> Scalar:
    """Return ``log1p(-q)`` in float32, for 0 <= q <= 0.5."""
    s = -q / (F(2) - q)
    z = s * s
    p = F(1 / 15)
    p = p * z + F(1 / 13)
    p = p * z + F(1 / 11)
    p = p * z + F(1 / 9)
    p = p * z + F(1 / 7)
    p = p * z + F(1 / 5)
    p = p * z + F(1 / 3)
    return F(2) * s * (F(1) + z * p)


@njit(inline="always", fastmath=EXACT, error_model="numpy")
def exp_minus_64(a: Scalar) -> Scalar:
    """Return ``exp(-a)`` in float64, for a > -700; 1e-304 for a > 700."""
    a = min(a, 700.0)
    shifted = ROUND_64 - a * LOG2_E  # rounds to a whole number, which stands in the low bits
    k = shifted - ROUND_64
    r = (-a - k * LN2_HIGH_64) - k * LN2_LOW_64
    r2 = r * r
    r4 = r2 * r2
    a = (1 + r) + r2 * (1 / 2 + r * (1 / 6))
    b = (1 / 24 + r * (1 / 120)) + r2 * (1 / 720 + r * (1 / 5040))
    c = (1 / 40320 + r * (1 / 362880)) + r2 * (1 / 3628800 + r * (1 / 39916800))
    p = a + r4 * (b + r4 * (c + r4 * (1 / 479001600)))
    bits = np.int64(np.float64(shifted).view(np.int64)) + np.int64(1023)
    return p * np.int64(bits << np.int64(52)).view(np.float64)


@njit(inline="always", fastmath=EXACT, error_model="numpy")
def log1p_unit_64(t: Scalar) -> Scalar:
    """Return ``log1p(t)`` in float64, for 0 <= t <= 1."""
    s = t / (2 + t)
    return 2 * s + s * _atanh_rest_64(s * s)


@njit(inline="always", fastmath=EXACT, error_model="numpy")
def log_64(x: Scalar) -> Scalar:
    """Return ``log(x)`` in float64, for a normal x > 0."""
    # the mantissa between sqrt(1/2) and sqrt(2), and what power of two that leaves; AVX2 has no instruction that turns
    # an int64 into a float64, so the exponent is read as the low bits of 2^52 + exponent
    bits = np.float64(x).view(np.uint64)
    biased = np.uint64((bits + HALF_OCTAVE) >> np.uint64(52))
    m = np.uint64(bits - ((biased << np.uint64(52)) - ONE)).view(np.float64)
    k = np.uint64(biased | TWO_52).view(np.float64) - (2.0**52 + 1023)
    s = (m - 1) / (m + 1)
    return k * 0.6931471805599453 + (2 * s + s * _atanh_rest_64(s * s))


@njit(inline="always", fastmath=EXACT, error_model="numpy")
def _atanh_rest_64(z: Scalar) -> Scalar:
    # 2 atanh(s) = 2 s + s * this, z = s^2 <= 1/9
    z2 = z * z
    z4 = z2 * z2
    a = (2 / 3 + z * (2 / 5)) + z2 * (2 / 7 + z * (2 / 9))
    b = (2 / 11 + z * (2 / 13)) + z2 * (2 / 15 + z * (2 / 17))
    c = (2 / 19 + z * (2 / 21)) + z2 * (2 / 23 + z * (2 / 25))
    d = (2 / 27 + z * (2 / 29)) + z2 * (2 / 31)
    return z * ((a + z4 * b) + z4 * z4 * (c + z4 * d))


@njit(fastmath=EXACT | {"reassoc"})
def row_sum(row: Vector) -> Scalar:
    """Return the sum of a float32 row, in float64."""
    total = 0.0
    for j in range(row.shape[0]):
        total += row[j]
    return total


@njit(fastmath=EXACT)
def add_row(total: Vector, row: Vector) -> None:
    """Add a row to another, in place."""
    for j in range(row.shape[0]):
        total[j] += row[j]


@njit(fastmath=EXACT, error_model="numpy")
def digamma(z: Scalar) -> Scalar:
    """Return the derivative of lgamma, in float64, for z > 0: recurrence to 10, then the asymptotic series."""
    shift = 0.0
    while z < 10:
        shift += 1 / z
        z += 1
    y = 1 / (z * z)
    series = y * (1 / 12 - y * (1 / 120 - y * (1 / 252 - y * (1 / 240 - y * (1 / 132 - y * (691 / 32760))))))
    return np.log(z) - 0.5 / z - series - shift

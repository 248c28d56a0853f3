"""exp, log and lgamma for the Triton kernels, with the polynomials of the CPU's.

Everything in float32 is made of sums, products, quotients rounded to nearest, and selects, and the kernels are compiled
without contraction of products and sums (``enable_fp_fusion=False``): a function gives the same bits at every place in
a kernel, which the loss needs to subtract the cost of a stored entry as a zero, and the same as in Triton's interpreter
but for products by ``tl.fma``, which a GPU rounds once. float64 is for stored entries.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN2_HIGH = tl.constexpr(0.693359375)  # few bits: its products with whole numbers are exact
LN2_LOW = tl.constexpr(-2.12194440054690583e-4)
SHIFT = tl.constexpr(10)  # from this argument on Stirling's series is exact in float64


@triton.jit
def limited(x: tl.tensor, low: tl.tensor, high: tl.tensor) -> tl.tensor:
    """Return x within limits; a NaN stays one."""
    x = tl.where(x < low, low, x)
    return tl.where(x > high, high, x)


@triton.jit
def exp_minus(a: tl.tensor, error: tl.tensor) -> tl.tensor:
    """Return ``exp(error - a)`` in float32, for a > -87 and a tiny ``error``; 1e-38 for a > 87."""
    a = tl.where(a > 87.0, 87.0, a)
    k = tl.floor(0.5 - a * LOG2_E)
    r = (-a - k * LN2_HIGH) - k * LN2_LOW + error
    p = tl.fma(r, 1 / 5040, 1 / 720)
    p = tl.fma(r, p, 1 / 120)
    p = tl.fma(r, p, 1 / 24)
    p = tl.fma(r, p, 1 / 6)
    p = tl.fma(r, p, 0.5)
    p = tl.fma(r * r, p, 1.0 + r)
    return p * ((k.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def log1p_rest(t: tl.tensor) -> tl.tensor:
    """Return ``(t - log1p(t)) / t**2`` in float32, for 0 <= t <= 1."""
    p = tl.fma(t, 0.004466211423277855, -0.025224054232239723)
    p = tl.fma(t, p, 0.06675772368907928)
    p = tl.fma(t, p, -0.11561845242977142)
    p = tl.fma(t, p, 0.15847565233707428)
    p = tl.fma(t, p, -0.198541060090065)
    p = tl.fma(t, p, 0.24986526370048523)
    p = tl.fma(t, p, -0.3333284258842468)
    return tl.fma(t, p, 0.4999999701976776)


@triton.jit
def log1p_unit(t: tl.tensor) -> tl.tensor:
    """Return ``log1p(t)`` in float32, for 0 <= t <= 1."""
    return t - t * t * log1p_rest(t)


@triton.jit
def minus_expm1_minus(a: tl.tensor) -> tl.tensor:
    """Return ``1 - exp(-a)`` in float32, for a >= 0."""
    p = tl.fma(a, -1 / 5040, 1 / 720)
    p = tl.fma(a, p, -1 / 120)
    p = tl.fma(a, p, 1 / 24)
    p = tl.fma(a, p, -1 / 6)
    p = tl.fma(a, p, 0.5)
    return tl.where(a < 0.35, a - a * a * p, 1.0 - exp_minus(a, 0.0))


@triton.jit
def log1p_minus_half(q: tl.tensor) -> tl.tensor:
    """Return ``log1p(-q)`` in float32, for 0 <= q <= 0.5."""
    s = tl.math.div_rn(-q, 2.0 - q)
    z = s * s
    p = tl.fma(z, 1 / 15, 1 / 13)
    p = tl.fma(z, p, 1 / 11)
    p = tl.fma(z, p, 1 / 9)
    p = tl.fma(z, p, 1 / 7)
    p = tl.fma(z, p, 1 / 5)
    p = tl.fma(z, p, 1 / 3)
    return 2.0 * s * tl.fma(z, p, 1.0)


@triton.jit
def log1p_64(t: tl.tensor) -> tl.tensor:
    """Return ``log1p(t)`` in float64, for t >= 0."""
    whole = 1.0 + t
    return tl.log(whole) + (t - (whole - 1.0)) / whole  # the second term is the rounding error of the sum


@triton.jit
def log_factorial(x: tl.tensor, known: tl.tensor, FACTORIALS: tl.constexpr) -> tl.tensor:
    """Return ``lgamma(x + 1)`` in float64, for x >= 0; ``known`` has the first ``FACTORIALS`` of the whole x."""
    whole = tl.minimum(tl.maximum(x, 0.0), 1.0 * FACTORIALS - 1.0).to(tl.int32)  # within the table for any x
    value = tl.load(known + whole)
    others = x != whole.to(tl.float64)
    if tl.max(others.to(tl.int32), axis=0) > 0:
        rise, _ = lgamma_rise(x, tl.zeros_like(x) + 1.0)
        value = tl.where(others, rise, value)
    return value


@triton.jit
def stirling_rest(inverse: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """Return lgamma(z) less Stirling's formula, and digamma(z) less log z - 1 / (2 z), in float64, for z >= SHIFT."""
    y = inverse * inverse
    p = 1 / 1188 - y * (691 / 360360 - y * (1 / 156 - y * (3617 / 122400)))
    q = 1 / 132 - y * (691 / 32760 - y * (1 / 12 - y * (3617 / 8160)))
    rest = inverse * (1 / 12 - y * (1 / 360 - y * (1 / 1260 - y * (1 / 1680 - y * p))))
    return rest, -y * (1 / 12 - y * (1 / 120 - y * (1 / 252 - y * (1 / 240 - y * q))))


@triton.jit
def lgamma_rise(x: tl.tensor, theta: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """Return ``lgamma(x + theta) - lgamma(theta)`` and its derivative by theta, in float64, for x >= 0, theta > 0.

    Stirling's series for ``theta + SHIFT``, where no two large terms are subtracted, and the recurrence back:
    ``Gamma(theta + SHIFT) = Gamma(theta) theta (theta + 1) ...``. The derivative of a product is carried along with it.
    Quotients share their divisions, which are the slowest here.
    """
    high = x + theta
    from_low, from_high = theta, high
    by_low, by_high = tl.zeros_like(theta) + 1.0, tl.zeros_like(theta) + 1.0
    for step in tl.static_range(1, SHIFT):
        by_low = tl.fma(by_low, theta + step, from_low)
        by_high = tl.fma(by_high, high + step, from_high)
        from_low *= theta + step
        from_high *= high + step
    z, top = theta + SHIFT, high + SHIFT
    per_z, per_top, per_product = 1.0 / z, 1.0 / top, 1.0 / (from_low * from_high)
    grown = log1p_64(x * per_z)  # log(top / z)
    rest_z, slope_z = stirling_rest(per_z)
    rest_top, slope_top = stirling_rest(per_top)
    rise = (z - 0.5) * grown + x * (tl.log(top) - 1.0) + (rest_top - rest_z)
    slope = grown + 0.5 * x * per_z * per_top + (slope_top - slope_z)
    back = (by_low * from_high - by_high * from_low) * per_product
    return rise - tl.log(from_high * from_high * per_product), slope + back

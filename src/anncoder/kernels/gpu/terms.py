"""Terms of the Triton loss kernel: zeros in float32, stored values in float64.

The formulae are those of :mod:`anncoder.kernels.cpu.nb`, ``zinb`` and ``poisson``. ``KIND`` is "nb", "zinb",
"poisson" or "squared", ``THETA`` the unit with a dispersion of its own: "gene", "cell", "entry", or "none".
"""

from __future__ import annotations

import triton
import triton.language as tl

from anncoder.kernels.gpu.math import (
    exp_minus,
    lgamma_rise,
    limited,
    log1p_64,
    log1p_minus_half,
    log1p_rest,
    log1p_unit,
    log_factorial,
    minus_expm1_minus,
)


@triton.jit
def nb_zero(m: tl.tensor, offset: tl.tensor, lt: tl.tensor, theta: tl.tensor) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Return the loss of an observed zero and its gradients for the log mean and log theta."""
    # u = m + offset - log theta, and its rounding error: at |u| = 30 that is 1e-6, which exp preserves
    a = m + offset
    back = a - m
    error = (m - (a - back)) + (offset - back)
    u = a - lt
    back = u - a
    error += (a - (u - back)) - (lt + back)
    below = u < 0.0
    t = exp_minus(tl.abs(u), tl.where(below, error, -error))
    r = tl.math.div_rn(1.0, 1.0 + t)
    p = log1p_rest(t)
    sigmoid = tl.where(below, t * r, r)
    softplus = tl.where(below, 0.0, u) + (t - t * t * p)
    difference = tl.where(below, t * t * (r - p), softplus - sigmoid)
    return theta * softplus, theta * sigmoid, theta * difference


@triton.jit
def poisson_zero(m: tl.tensor, offset: tl.tensor) -> tl.tensor:
    """Return the mean, which is the loss of an observed zero and its gradient."""
    a = m + offset
    back = a - m
    return exp_minus(-a, (m - (a - back)) + (offset - back))


@triton.jit
def inflated(nb0: tl.tensor, logit: tl.tensor) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Return the loss of a zero under zero inflation, the share of the NB in it, and the gradient for the logit.

    ``nb0`` is -log NB(0) >= 0.
    """
    up = logit > 0.0
    t = exp_minus(tl.abs(logit), 0.0)
    r = tl.math.div_rn(1.0, 1.0 + t)
    rest = tl.where(up, t * r, r)  # 1 - pi
    gap = -nb0 - logit
    t_gap = exp_minus(tl.abs(gap), 0.0)
    r = tl.math.div_rn(1.0, 1.0 + t_gap)
    from_nb = tl.where(gap > 0.0, r, t_gap * r)
    from_pi = tl.where(gap > 0.0, t_gap * r, r)
    lost = minus_expm1_minus(nb0)
    q = rest * lost
    larger = tl.where(logit > -nb0, logit, -nb0)
    large = (tl.where(up, logit, 0.0) + log1p_unit(t)) - (larger + log1p_unit(t_gap))
    small = -log1p_minus_half(tl.where(q > 0.5, 0.5, q))
    return tl.where(q < 0.5, small, large), from_nb, -from_pi * rest * lost


@triton.jit
def zero_terms(
    v: tl.tensor,
    offset: tl.tensor,
    lt: tl.tensor,
    theta: tl.tensor,
    logit: tl.tensor,
    limits: tl.tensor,
    KIND: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Return the loss of an observed zero and its gradients for the logits, log theta and pi logits, in float32."""
    by_theta, by_pi = tl.zeros_like(v), tl.zeros_like(v)
    if KIND == "squared":
        loss, by_mean = v * v, 2.0 * v
    else:
        m = limited(v, tl.load(limits), tl.load(limits + 1))
        if KIND == "poisson":
            loss = poisson_zero(m, offset)
            by_mean = loss
        else:
            loss, by_mean, by_theta = nb_zero(m, offset, lt, theta)
        if KIND == "zinb":
            loss, from_nb, by_pi = inflated(loss, logit)
            by_mean *= from_nb
            by_theta *= from_nb
        by_mean = tl.where(m == v, by_mean, 0.0)
    return loss, by_mean, by_theta, by_pi


@triton.jit
def stored_terms(
    x: tl.tensor,
    v: tl.tensor,
    offset: tl.tensor,
    lt: tl.tensor,
    logit: tl.tensor,
    limits: tl.tensor,
    known: tl.tensor,
    KIND: tl.constexpr,
    FACTORIALS: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """As :func:`zero_terms`, of observed values x, in float64; ``known`` as of :func:`log_factorial`."""
    by_theta, by_pi = tl.zeros_like(x), tl.zeros_like(x)
    if KIND == "squared":
        loss, by_mean = (v - x) * (v - x), 2.0 * (v - x)
    else:
        m = limited(v, tl.load(limits), tl.load(limits + 1))
        log_mu = m.to(tl.float64) + offset
        constant = log_factorial(x, known, FACTORIALS)
        if KIND == "poisson":
            mu = tl.exp(log_mu)
            loss, by_mean = mu - x * log_mu + constant, mu - x
        else:
            theta, u = tl.exp(lt.to(tl.float64)), log_mu - lt
            t = tl.exp(-tl.abs(u))
            r, log1p = 1.0 / (1.0 + t), log1p_64(t)
            sigmoid, rest = tl.where(u < 0.0, t * r, r), tl.where(u < 0.0, r, t * r)
            softplus = tl.where(u < 0.0, 0.0, u) + log1p
            rise, slope = lgamma_rise(x, theta)
            loss = theta * softplus + x * (tl.where(u < 0.0, -u, 0.0) + log1p) - rise + constant
            by_mean = theta * sigmoid - x * rest
            by_theta = theta * (softplus - sigmoid) + x * rest - theta * slope
        if KIND == "zinb":
            t = tl.exp(-tl.abs(logit.to(tl.float64)))
            loss += tl.where(logit > 0.0, logit, 0.0) + log1p_64(t)
            by_pi = tl.where(logit > 0.0, 1.0, t) / (1.0 + t)
        by_mean = tl.where(m == v, by_mean, 0.0)
    return loss, by_mean, by_theta, by_pi


@triton.jit
def theta_at(
    log_theta: tl.tensor,
    i: tl.tensor,
    j: tl.tensor,
    g: tl.tensor,
    limits: tl.tensor,
    mask: tl.tensor,
    THETA: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Return log theta, raw and limited, of a gene, a cell or an entry, by ``THETA``."""
    if THETA == "gene":
        raw = tl.load(log_theta + j, mask=mask, other=0.0)
    elif THETA == "cell":
        raw = tl.load(log_theta + i, mask=mask, other=0.0)
    elif THETA == "entry":
        raw = tl.load(log_theta + i * g + j, mask=mask, other=0.0)
    else:
        raw = tl.zeros_like((i + j).to(tl.float32))
    return raw, limited(raw, tl.load(limits + 2), tl.load(limits + 3))

"""Adam on CUDA GPUs (Triton): gradient norm, clipping and step of all parameters.

Parameters, gradients and moments are tuples of pointers, constants of a recorded step. A program computes a piece of
one of them. Sums have one order.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def sum_squares(gradients: tl.tensor, sizes: tl.tensor, sums: tl.tensor, BLOCK: tl.constexpr) -> None:
    """Write the float64 sum of the squared entries of each piece of the gradients, (sizes[k],) each."""
    piece, first = tl.program_id(0), 0
    for k in tl.static_range(len(gradients)):
        n = tl.cdiv(sizes[k], BLOCK)
        if (piece >= first) & (piece < first + n):
            at = (piece - first) * BLOCK + tl.arange(0, BLOCK)
            g = tl.load(gradients[k] + at, mask=at < sizes[k], other=0.0).to(tl.float64)
            tl.store(sums + piece, tl.sum(g * g, axis=0))
        first += n


@triton.jit
def settle(
    sums: tl.tensor,
    n: tl.tensor,
    total: tl.tensor,
    clip_norm: tl.tensor,
    rate: tl.tensor,
    log_beta1: tl.tensor,
    log_beta2: tl.tensor,
    taken: tl.tensor,
    n_parameters: tl.tensor,
    numbers: tl.tensor,
    finite: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """Compute the factors of the step, and whether loss and gradient are finite; if so, count the step.

    sums, n, total
        (n,) float64 sums of squares; () float32 loss.
    clip_norm, rate, log_beta1, log_beta2
        Largest norm of the gradient, step size, logarithms of the moments' decay.
    taken, n_parameters
        (n_parameters,) float32 number of steps, the same for all.
    numbers, finite
        Written: (3,) float32 factor of the gradient, step size over the first moment's correction, and one over the
        root of the second's; () bool.
    """
    square = tl.zeros([BLOCK], tl.float64)
    for at in range(0, n, BLOCK):
        i = at + tl.arange(0, BLOCK)
        square += tl.load(sums + i, mask=i < n, other=0.0)
    norm = tl.sqrt(tl.sum(square, axis=0))
    whole = norm + tl.load(total).to(tl.float64)
    good = tl.abs(whole) < float("inf")  # no NaN is
    steps = tl.load(taken) + 1.0
    factor = tl.where(norm > clip_norm, clip_norm / norm, 1.0)
    left1 = 1.0 - tl.exp(steps.to(tl.float64) * log_beta1)
    left2 = 1.0 - tl.exp(steps.to(tl.float64) * log_beta2)
    tl.store(numbers, factor.to(tl.float32))
    tl.store(numbers + 1, (rate / left1).to(tl.float32))
    tl.store(numbers + 2, (1.0 / tl.sqrt(left2)).to(tl.float32))
    tl.store(finite, good)
    tl.debug_barrier()  # all threads have read the number of steps
    for at in range(0, n_parameters, BLOCK):
        i = at + tl.arange(0, BLOCK)
        tl.store(taken + i, tl.where(good, steps, steps - 1.0) + tl.zeros([BLOCK], tl.float32), mask=i < n_parameters)


@triton.jit
def adam(
    parameters: tl.tensor,
    gradients: tl.tensor,
    firsts: tl.tensor,
    seconds: tl.tensor,
    sizes: tl.tensor,
    numbers: tl.tensor,
    finite: tl.tensor,
    decay: tl.tensor,
    new_first: tl.tensor,
    new_second: tl.tensor,
    epsilon: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """Take the step of Kingma & Ba 2015, arXiv 1412.6980, algorithm 1, in place, if all was finite.

    ``numbers`` and ``finite`` are those of :func:`settle`; ``new_first`` and ``new_second`` are 1 - beta.
    """
    piece, first = tl.program_id(0), 0
    if tl.load(finite):
        for k in tl.static_range(len(gradients)):
            n = tl.cdiv(sizes[k], BLOCK)
            if (piece >= first) & (piece < first + n):
                at = (piece - first) * BLOCK + tl.arange(0, BLOCK)
                here = at < sizes[k]
                p, m, v = (
                    tl.load(parameters[k] + at, mask=here, other=0.0),
                    tl.load(firsts[k] + at, mask=here, other=0.0),
                    tl.load(seconds[k] + at, mask=here, other=0.0),
                )
                g = tl.load(gradients[k] + at, mask=here, other=0.0) * tl.load(numbers) + decay * p
                m += new_first * (g - m)
                v += new_second * (g * g - v)
                tl.store(firsts[k] + at, m, mask=here)
                tl.store(seconds[k] + at, v, mask=here)
                moved = tl.load(numbers + 1) * m / (tl.math.sqrt_rn(v) * tl.load(numbers + 2) + epsilon)
                tl.store(parameters[k] + at, p - moved, mask=here)
            first += n

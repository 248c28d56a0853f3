"""Adam on the CPU: gradient norm, clipping and step of all parameters in two passes.

A table has the addresses of parameters, gradients and moments. Its rows are pieces of a fixed size, so that the sum of
squares has one order for any number of threads.
"""

from __future__ import annotations

import numpy as np
from numba import carray, njit

from anncoder.kernels.cpu.threads import arguments, f32_line, f64_line, i64, kernel, pointer, take_ticket
from anncoder.kernels.cpu.vector_math import EXACT, Scalar, Vector

F = np.float32
PIECE = 8192  # numbers a ticket


@kernel("i8", "f8")
def sum_squares(address: Scalar) -> None:
    """Write the sum of the squared gradients of each piece.

    Arrays, in order: pieces, (n, 6) int64: addresses of parameter, gradient and both moments, a length, and the number
    of the parameter; sums, (n,).
    """
    table = arguments(address)
    pieces, sums = i64(table, 0), f64_line(table, 1)
    k = take_ticket(table)
    while k >= 0:
        sums[k] = _square_sum(carray(pointer(pieces[k, 1]), (pieces[k, 4],), F))
        k = take_ticket(table)


@kernel("i8", "f4", "f8")
def adam(address: Scalar) -> None:
    """Take the step of Kingma & Ba 2015, arXiv 1412.6980, algorithm 1, in place.

    Arrays, in order: pieces, as those of :func:`sum_squares`; taken, (n_parameters,), number of this step;
    numbers, (6,): factor of the gradient, step size, weight decay, beta1, beta2, epsilon.
    """
    table = arguments(address)
    pieces, taken, numbers = i64(table, 0), f32_line(table, 1), f64_line(table, 2)
    k = take_ticket(table)
    while k >= 0:
        t, size = np.float64(taken[pieces[k, 5]]), (pieces[k, 4],)
        _step(
            carray(pointer(pieces[k, 0]), size, F),
            carray(pointer(pieces[k, 1]), size, F),
            carray(pointer(pieces[k, 2]), size, F),
            carray(pointer(pieces[k, 3]), size, F),
            F(numbers[1] / (1 - numbers[3] ** t)),
            F(1 / np.sqrt(1 - numbers[4] ** t)),
            numbers,
        )
        k = take_ticket(table)


@njit(fastmath=EXACT | {"reassoc"})
def _square_sum(row: Vector) -> Scalar:
    total = 0.0
    for j in range(row.shape[0]):
        total += np.float64(row[j]) * np.float64(row[j])
    return total


@njit(fastmath=EXACT, error_model="numpy")
def _step(
    parameter: Vector, gradient: Vector, first: Vector, second: Vector, size: Scalar, root: Scalar, numbers: Vector
) -> None:
    factor, decay, epsilon = F(numbers[0]), F(numbers[2]), F(numbers[5])
    new_first, new_second = F(1 - numbers[3]), F(1 - numbers[4])
    for j in range(parameter.shape[0]):
        p = parameter[j]
        g = gradient[j] * factor + decay * p
        m = first[j] + new_first * (g - first[j])
        v = second[j] + new_second * (g * g - second[j])
        first[j], second[j] = m, v
        parameter[j] = p - size * m / (np.sqrt(v) * root + epsilon)

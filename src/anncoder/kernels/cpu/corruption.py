"""Corruption kernels (numba): dropout, masking and swaps of values of a CSR minibatch.

Each decision is a function of a key and of the entry's position, row * n_vars + column, not of the order in which
entries are visited: the splitmix64 generator (Steele, Lea, Flood 2014, doi 10.1145/2660193.2660195) in counter form.
The exact references are in :mod:`anncoder.nn.corruption`, in torch's integers, to the same bits.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from anncoder.kernels.cpu.threads import arguments, f32_line, i64_line, kernel, take_ticket
from anncoder.kernels.cpu.vector_math import EXACT, Scalar, Vector

ROWS = 16  # rows a ticket
GAMMA, FIRST, SECOND = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


@njit
def _hit(key: Scalar, place: Scalar, limit: Scalar) -> Scalar:
    # whether the 32-bit number of a place is below the limit
    z = np.uint64(key) + (np.uint64(place) + np.uint64(1)) * GAMMA
    z = (z ^ (z >> np.uint64(30))) * FIRST
    z = (z ^ (z >> np.uint64(27))) * SECOND
    return np.int64((z ^ (z >> np.uint64(31))) >> np.uint64(32)) < limit


@kernel("i8", "i8", "f4", "i8", "f4", "f4")
def drop(address: Scalar) -> None:
    """Write the values with some of them zero and the others multiplied.

    Arrays, in order: indptr, indices, values of x; (3,) key, limit and number of genes; (1,) factor of the values that
    stay; the result, (nnz,).
    """
    table = arguments(address)
    indptr, indices, values = i64_line(table, 0), i64_line(table, 1), f32_line(table, 2)
    numbers, factor, out = i64_line(table, 3), f32_line(table, 4)[0], f32_line(table, 5)
    key, limit, n_vars = numbers[0], numbers[1], numbers[2]
    part = take_ticket(table)
    while part >= 0:
        for i in range(part * ROWS, min(indptr.shape[0] - 1, (part + 1) * ROWS)):
            for k in range(indptr[i], indptr[i + 1]):
                out[k] = np.float32(0) if _hit(key, i * n_vars + indices[k], limit) else values[k] * factor
        part = take_ticket(table)


@kernel("i8", "i8", "f4", "i8", "i8", "i8", "i8", "f4", "i8", "f4", "i8")
def swap(address: Scalar) -> None:
    """Write the corrupted matrix, each of whose rows has values of another row in places, and what it changed.

    Arrays, in order: indptr, indices, values of x, with sorted columns; (3,) key, limit, number of genes; (b,) the row
    that each row takes values of; (b + 1,) where each row of the results begins: they have room for the columns of both
    rows; columns and values of the corrupted matrix; columns and clean values of the
    changed entries; the lengths of the rows of both, (2 b,), written.
    """
    table = arguments(address)
    indptr, indices, values = i64_line(table, 0), i64_line(table, 1), f32_line(table, 2)
    numbers, partners = i64_line(table, 3), i64_line(table, 4)
    starts, lengths = i64_line(table, 5), i64_line(table, 10)
    columns, data, places, clean = i64_line(table, 6), f32_line(table, 7), i64_line(table, 8), f32_line(table, 9)
    n = indptr.shape[0] - 1
    part = take_ticket(table)
    while part >= 0:
        for i in range(part * ROWS, min(n, (part + 1) * ROWS)):
            j, start, stop = partners[i], starts[i], starts[i + 1]
            lengths[i], lengths[n + i] = _swap_row(
                (indices[indptr[i] : indptr[i + 1]], values[indptr[i] : indptr[i + 1]]),
                (indices[indptr[j] : indptr[j + 1]], values[indptr[j] : indptr[j + 1]]),
                (numbers[0], numbers[1], i * numbers[2]),
                (columns[start:stop], data[start:stop]),
                (places[start:stop], clean[start:stop]),
            )
        part = take_ticket(table)


@njit(fastmath=EXACT)
def _swap_row(own: Vector, other: Vector, draw: Vector, corrupted: Vector, changed: Vector) -> Scalar:
    # merge two sorted rows: the columns that either holds, in order. Chance decides at every entry, and a branch would
    # be mistaken as often: all is written, and what was not meant to stay is overwritten
    (at, mine), (their_at, theirs) = own, other
    (columns, data), (places, clean) = corrupted, changed
    key, limit, start = draw
    n_own, n_other = at.shape[0], their_at.shape[0]
    a = b = n_corrupted = n_changed = 0
    end = np.int64(2**62)
    while a < n_own or b < n_other:
        here = at[a] if a < n_own else end
        there = their_at[b] if b < n_other else end
        column = min(here, there)
        before = mine[a] if here == column else np.float32(0)
        incoming = theirs[b] if there == column else np.float32(0)
        a, b = a + (here == column), b + (there == column)
        after = incoming if _hit(key, start + column, limit) else before
        columns[n_corrupted], data[n_corrupted] = column, after
        n_corrupted += after != 0
        places[n_changed], clean[n_changed] = column, before
        n_changed += after != before
    return n_corrupted, n_changed


@kernel("i8", "i8", "f4", "i8", "i8", "f4")
def pack(address: Scalar) -> None:
    """Write rows without the room between them.

    Arrays, in order: (b + 1,) where each row begins; its columns and values; (b + 1,) where it begins in the result;
    the columns and values of that, written.
    """
    table = arguments(address)
    starts, columns, data = i64_line(table, 0), i64_line(table, 1), f32_line(table, 2)
    indptr, packed_columns, packed_data = i64_line(table, 3), i64_line(table, 4), f32_line(table, 5)
    part = take_ticket(table)
    while part >= 0:
        for i in range(part * ROWS, min(indptr.shape[0] - 1, (part + 1) * ROWS)):
            for k in range(indptr[i + 1] - indptr[i]):
                packed_columns[indptr[i] + k] = columns[starts[i] + k]
                packed_data[indptr[i] + k] = data[starts[i] + k]
        part = take_ticket(table)

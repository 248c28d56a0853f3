"""Reading and writing the stored entries of a minibatch in dense (b, g) tensors."""

from __future__ import annotations

from torch import Tensor

from anncoder.types import CSR


def at_entries(parameter: Tensor, counts: CSR, flat: Tensor) -> Tensor:
    """Return a parameter's value at every stored entry, (nnz,), in float64.

    Parameters
    ----------
    parameter
        (g,) one value a gene, (b, 1) one a cell, (b, g) one an entry.
    counts
        The (b, g) observations.
    flat
        ``counts.flat()``.
    """
    if parameter.dim() == 1:
        return parameter[counts.indices].double()
    if parameter.shape[1] == 1 and counts.n_vars != 1:
        return parameter[counts.rows(), 0].double()
    return parameter.reshape(-1)[flat].double()


def put_entries(dense: Tensor, flat: Tensor, values: Tensor) -> Tensor:
    """Replace the stored entries of a dense (b, g) tensor, in place; return it."""
    dense.view(-1)[flat] = values.to(dense.dtype)
    return dense


def weighted_to_shape(per_cell: Tensor, gradient: Tensor, parameter_shape: tuple[int, ...]) -> Tensor:
    """Chain rule: weight the rows of a (b, g) gradient by (b,) and sum it to a parameter's shape.

    ``per_cell`` is the gradient that arrives for each cell's likelihood.
    """
    if parameter_shape == gradient.shape[1:]:
        return per_cell @ gradient
    return (gradient * per_cell.unsqueeze(1)).sum_to_size(parameter_shape)

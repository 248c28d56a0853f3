"""Divergence (NaN, infinity): the loss term, cells and genes at fault."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from anncoder.errors import DivergenceError
from anncoder.training.distributed import unwrapped
from anncoder.types import Batch, Loss


def in_minibatch(network: nn.Module, batch: Batch, loss: Loss, epoch: int, number: int) -> DivergenceError:
    """Return the error for a minibatch, the ``number``-th of an epoch (from 0 both)."""
    network = unwrapped(network)
    bad_terms = [name for name, value in loss.terms.items() if not bool(torch.isfinite(value))]
    term = bad_terms[0] if bad_terms else "gradient"
    rows, columns = _suspects(network, batch)
    return DivergenceError(
        f"the {term} stopped being finite in epoch {epoch + 1}, minibatch {number + 1}",
        where=f"term {term!r}",
        remedy="lower learning_rate (a tenth), or look at the cells and genes named; the last good weights are kept",
        term=term,
        rows=rows,
        columns=columns,
    )


def in_epoch(sums: Mapping[str, Any], epoch: int, *, held_out: bool = False) -> DivergenceError:
    """Return the error for an epoch, from sums or means of the terms: a GPU is not asked after every minibatch."""
    bad_terms = [name for name, value in sums.items() if name != "loss" and not math.isfinite(float(value))]
    term = bad_terms[0] if bad_terms else "gradient"
    cells = " of the cells held out" if held_out else ""
    more = "" if held_out else " (device='cpu' names minibatch, cells and genes)"
    return DivergenceError(
        f"the {term}{cells} stopped being finite in epoch {epoch + 1}",
        where=f"term {term!r}",
        remedy=f"lower learning_rate (a tenth){more}; the last good weights, if there are any, are kept",
        term=term,
    )


@torch.no_grad()
def _suspects(network: nn.Module, batch: Batch) -> tuple[tuple[int, ...], tuple[int, ...]]:
    # cells with a loss that is not finite, and genes with weights that are not; else the largest counts of those cells
    network.eval()
    loss_of: Callable[[Batch], Any] = network
    counts = batch.counts
    alone = [i for i in range(counts.n_rows) if not bool(torch.isfinite(loss_of(_only(batch, i)).total))]
    genes: set[int] = set()
    for parameter in network.parameters():
        bad = ~torch.isfinite(parameter.detach())
        for axis, size in enumerate(parameter.shape):
            if size == counts.n_vars:
                others = tuple(a for a in range(parameter.dim()) if a != axis)
                genes |= set(torch.nonzero(bad.amax(dim=others) if others else bad).ravel().tolist())
    if not genes:
        for i in alone:
            entries = slice(int(counts.indptr[i]), int(counts.indptr[i + 1]))
            if counts.values[entries].numel():
                genes.add(int(counts.indices[entries][counts.values[entries].argmax()]))
    return tuple(batch.rows[alone].tolist()), tuple(sorted(genes))


def _only(batch: Batch, i: int) -> Batch:
    counts, entries = batch.counts, slice(int(batch.counts.indptr[i]), int(batch.counts.indptr[i + 1]))
    one = counts._replace(
        indptr=counts.indptr[i : i + 2] - counts.indptr[i],
        indices=counts.indices[entries],
        values=counts.values[entries],
    )
    code = None if batch.batch_code is None else batch.batch_code[i : i + 1]
    label = None if batch.label is None else batch.label[i : i + 1]
    covariates = None if batch.covariates is None else batch.covariates[i : i + 1]
    return Batch(one, batch.size_factor[i : i + 1], batch.rows[i : i + 1], code, covariates, label)

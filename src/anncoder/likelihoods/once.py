"""Likelihoods write their gradients while they compute the loss: there is nothing left to differentiate again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from anncoder.types import CSR


def differentiated_once(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Make a second derivative an error, for the ``backward`` of an autograd function.

    torch's own decorator does so only where the gradient that arrives is differentiated: that of a sum is not, and
    then a gradient penalty, or a product with the Hessian, would lack the likelihood's part without a word.
    """
    inner = once_differentiable(backward)

    def refusing(ctx: Any, *upstream: Any) -> Any:
        if torch.is_grad_enabled():  # in a backward pass: create_graph=True
            raise RuntimeError("a likelihood is differentiated once: create_graph=True has no meaning for it")
        return inner(ctx, *upstream)

    return refusing


def refuse_moving(counts: CSR) -> None:
    """Raise a ValueError where counts are to be differentiated by: a count likelihood has no such gradient."""
    if torch.is_grad_enabled() and counts.values.requires_grad:
        raise ValueError("a likelihood of counts is not differentiated by them: counts.values.detach()")

"""Hidden layers that see the experimental batch of each cell."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from anncoder.config import Layers
from anncoder.nn.layers import after, hold_bias, linear, rows_of
from anncoder.nn.sparse import SparseLinear, reset
from anncoder.types import CSR, Noise


class ConditionalLayers(nn.Module):
    """Hidden layers, each of which reads its input and, where there are batches, the batch in one-hot code.

    The product with a one-hot vector is a row of the weights, so that is what is added.

    Parameters
    ----------
    layers
        Widths in order, and what follows each product.
    n_in
        Width of the input.
    n_batches
        Experimental batches; 0 for layers that do not see them.
    noise
        Random stream of the initial weights and of the dropout.
    sparse
        Whether the input is CSR.
    """

    def __init__(self, layers: Layers, n_in: int, n_batches: int, noise: Noise, *, sparse: bool = False) -> None:
        super().__init__()
        self.n_out = layers.widths[-1] if layers.widths else n_in
        self.products = nn.ModuleList(
            SparseLinear(a, b, noise) if sparse and i == 0 else linear(a, b, noise)
            for i, (a, b) in enumerate(pairwise([n_in, *layers.widths]))
        )
        self.of_batch = nn.ParameterList(torch.empty(n_batches, b) for b in layers.widths if n_batches)
        self.after = nn.ModuleList(after(width, layers, noise) for width in layers.widths)
        for product in self.products:
            hold_bias(product, layers)
        for weight, a in zip(self.of_batch, [n_in, *layers.widths], strict=False):
            reset(weight, a + n_batches, noise)

    def forward(self, x: CSR | Tensor, batch_code: Tensor | None) -> Any:
        """Return the last hidden layer, (b, n_out), for a (b, n_in) input and (b,) batches; x itself without any."""
        hidden: Any = x
        for i, (product, follow) in enumerate(zip(self.products, self.after, strict=True)):
            hidden = product(hidden)
            if len(self.of_batch):
                assert batch_code is not None
                hidden = hidden + rows_of(self.of_batch[i], batch_code)
            hidden = follow(hidden)
        return hidden

"""Dense layers: encoder, decoder, and hidden layers conditioned on batch and covariates."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from anncoder.config import Layers
from anncoder.nn.sparse import SparseLinear, reset
from anncoder.types import CSR, LinearOutput, Noise

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "linear": nn.Identity,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "leaky_relu": nn.LeakyReLU,
    "mish": nn.Mish,
    "prelu": lambda: nn.PReLU(init=0.0),  # one slope a layer
    "selu": nn.SELU,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}


class BatchShift(nn.BatchNorm1d):
    """Batch normalisation with a shift of each unit, but no scale: DCA's."""

    def __init__(self, width: int) -> None:
        super().__init__(width, momentum=0.01, eps=1e-3)
        self.register_parameter("weight", None)


NORMS: dict[str, Callable[[int], nn.Module]] = {
    # momentum and eps are those of DCA and scVI
    "batch": lambda width: nn.BatchNorm1d(width, momentum=0.01, eps=1e-3),
    "batch-shift": BatchShift,
    "layer": nn.LayerNorm,
    "none": lambda width: nn.Identity(),
}


class Dropout(nn.Module):
    """Zero each value with probability ``rate`` in training, from the network's own random stream."""

    def __init__(self, rate: float, noise: Noise) -> None:
        super().__init__()
        self.rate, self.noise = rate, noise

    def forward(self, x: Tensor) -> Tensor:
        """Return x with dropped values, the others scaled by 1 / (1 - rate); x itself in evaluation."""
        if not self.training or self.rate == 0:
            return x
        keep = torch.empty_like(x).bernoulli_(1 - self.rate, generator=self.noise.on(x.device))
        return x * keep / (1 - self.rate)


def linear(n_in: int, n_out: int, noise: Noise) -> nn.Linear:
    """Return a ``torch.nn.Linear`` with initial weights from ``noise``, not from the global random stream."""
    # as nn.utils.skip_init does, but that goes by the meta device, whose first tensor imports sympy, for half a second
    layer = nn.Linear.__new__(nn.Linear)
    nn.Module.__init__(layer)
    layer.in_features, layer.out_features = n_in, n_out
    layer.weight, layer.bias = nn.Parameter(torch.empty(n_out, n_in)), nn.Parameter(torch.empty(n_out))
    reset(layer.weight, n_in, noise)
    reset(layer.bias, n_in, noise)
    return layer


def rows_of(values: Tensor, rows: Tensor) -> Tensor:
    """Return rows of a matrix, repeats allowed, by the operation with a deterministic gradient."""
    # by torch.use_deterministic_algorithms: indexing on a GPU, index_select on the CPU
    return values.index_select(0, rows) if values.device.type == "cpu" else values[rows]


def product_of(layer: nn.Linear, hidden: Tensor) -> LinearOutput:
    """Return an output layer with its product not yet computed: for a likelihood, or a squared error."""
    return LinearOutput(hidden, layer.weight, layer.bias)


def after(width: int, layers: Layers, noise: Noise) -> nn.Sequential:
    """Return the layers behind a hidden product: normalisation, activation, dropout."""
    return nn.Sequential(
        NORMS[layers.norm](width), ACTIVATIONS[layers.activation](), Dropout(layers.dropout_rate, noise)
    )


def hold_bias(product: nn.Module, layers: Layers) -> None:
    """Do not train the bias of a product in front of batch normalisation, which subtracts it again.

    Its gradient is zero but for rounding, and Adam makes steps of full size of that. The running means lag behind these
    steps, and two runs that agree in training would differ in evaluation.
    """
    if layers.widths and layers.norm.startswith("batch"):
        assert isinstance(product.bias, nn.Parameter)
        product.bias.requires_grad_(False)


class Encoder(nn.Module):
    """Expression to latent: sparse first layer, hidden layers, linear units at the end.

    Parameters
    ----------
    layers
        The hidden layers.
    n_vars
        Number of genes, g.
    n_out
        Number of linear units at the end, k.
    noise
        Random stream of the initial weights and of the dropout.
    """

    def __init__(self, layers: Layers, n_vars: int, n_out: int, noise: Noise) -> None:
        super().__init__()
        widths = [*layers.widths, n_out]
        self.first = SparseLinear(n_vars, widths[0], noise)
        self.rest = nn.ModuleList(linear(a, b, noise) for a, b in pairwise(widths))
        self.after = nn.ModuleList(after(width, layers, noise) for width in layers.widths)
        for product in (self.first, *self.rest)[:-1]:
            hold_bias(product, layers)

    @property
    def last(self) -> nn.Module:
        """The product of the units at the end."""
        product: nn.Module = self.rest[-1] if len(self.rest) else self.first
        return product

    def behind_first(self) -> list[nn.Module]:
        """Return the layers behind the first product, in their order."""
        return [module for pair in zip(self.after, self.rest, strict=True) for module in pair]

    def forward(self, x: CSR | Tensor, mean: Tensor | None = None, scale: Tensor | None = None) -> Tensor:
        """Return the units at the end, (b, k); ``mean`` and ``scale``, (g,), centre and divide x first."""
        hidden: Tensor = self.first(x, mean, scale)
        for follow, product in zip(self.after, self.rest, strict=True):
            hidden = product(follow(hidden))
        return hidden


class Decoder(nn.Sequential):
    """Latent to the last hidden layer, (b, n_in) to (b, n_out); the output layer or the heads stand behind it.

    Parameters
    ----------
    layers, noise
        As of :class:`Encoder`.
    n_in
        Width of the input.
    """

    def __init__(self, layers: Layers, n_in: int, noise: Noise) -> None:
        blocks: list[nn.Module] = []
        for a, b in pairwise([n_in, *layers.widths]):
            blocks += [linear(a, b, noise), after(b, layers, noise)]
            hold_bias(blocks[-2], layers)
        super().__init__(*blocks)
        self.n_out = layers.widths[-1] if layers.widths else n_in


class ConditionalLayers(nn.Module):
    """Hidden layers that read the experimental batch, in one-hot code, and covariates beside their input.

    The product with a one-hot vector is a row of the weights, which is added.

    Parameters
    ----------
    layers, n_in, noise
        As of :class:`Decoder`.
    n_batches, n_covariates
        Experimental batches, and covariates; 0 for layers without.
    sparse
        Whether the input is CSR.
    """

    def __init__(
        self,
        layers: Layers,
        n_in: int,
        n_batches: int,
        noise: Noise,
        *,
        sparse: bool = False,
        n_covariates: int = 0,
    ) -> None:
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
        self.of_covariates = nn.ParameterList(torch.zeros(n_covariates, b) for b in layers.widths if n_covariates)

    def forward(self, x: CSR | Tensor, batch_code: Tensor | None, covariates: Tensor | None = None) -> Any:
        """Return the last hidden layer, (b, n_out), of a (b, n_in) input, (b,) batch codes and (b, c) covariates.

        Covariates of None are those of the average cell.
        """
        hidden: Any = x
        for i, (product, follow) in enumerate(zip(self.products, self.after, strict=True)):
            hidden = product(hidden)
            if len(self.of_batch):
                assert batch_code is not None
                hidden = hidden + rows_of(self.of_batch[i], batch_code)
            if len(self.of_covariates) and covariates is not None:
                hidden = hidden + covariates @ self.of_covariates[i]
            hidden = follow(hidden)
        return hidden

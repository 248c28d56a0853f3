"""Output heads: mean, dispersion and dropout logits of a count distribution."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from anncoder.config import DispersionOfBatchesName, LikelihoodName
from anncoder.likelihoods.common import LOG_MEAN_RANGE, LOG_THETA_RANGE
from anncoder.nn.layers import linear, product_of, rows_of
from anncoder.types import LinearOutput, Noise, materialize


class CountParameters(NamedTuple):
    """Parameters of the distribution of each entry."""

    log_mean: Tensor  # (b, g) log expected count at size factor 1; for "gaussian" the mean itself
    log_theta: Tensor | None  # (g,), (b, 1) or (b, g) log inverse dispersion; for "gaussian" log sigma
    pi_logits: Tensor | None  # (b, g) logit of the dropout probability

    def not_inflated(self) -> Tensor | float:
        """Return 1 - pi, the probability that zero inflation leaves an entry as it is, (b, g); 1 without inflation."""
        return 1.0 if self.pi_logits is None else torch.sigmoid(-self.pi_logits)


class CountProducts(NamedTuple):
    """:class:`CountParameters` as output layers, their products not yet computed."""

    log_mean: LinearOutput
    log_theta: Tensor | LinearOutput | None
    pi_logits: LinearOutput | None


class CountHeads(nn.Module):
    """The output layers of a count model.

    Parameters
    ----------
    n_in
        Width of the last hidden layer (or of the latent).
    n_vars
        Number of genes.
    likelihood
        Which parameters there are: ``zinb`` has dropout logits, ``poisson`` no dispersion.
    dispersion
        ``gene``: one trainable number a gene; ``gene-batch``: one in each experimental batch; ``gene-cell``: an output
        layer; ``shared``: one output a cell, shared by its genes.
    noise
        Random stream of the initial weights.
    n_batches
        Experimental batches, for ``gene-batch``.
    """

    def __init__(
        self,
        n_in: int,
        n_vars: int,
        *,
        likelihood: LikelihoodName,
        dispersion: DispersionOfBatchesName,
        noise: Noise,
        n_batches: int = 0,
    ) -> None:
        super().__init__()
        self.likelihood = likelihood
        self.mean = linear(n_in, n_vars, noise)
        self.gene_log_theta: nn.Parameter | None = None
        self.theta: nn.Linear | None = None
        self.pi: nn.Linear | None = None
        if likelihood != "poisson":
            if dispersion in ("gene", "gene-batch"):
                shape = (n_vars,) if dispersion == "gene" else (n_batches, n_vars)
                self.gene_log_theta = nn.Parameter(torch.zeros(shape))
            else:
                self.theta = linear(n_in, n_vars if dispersion == "gene-cell" else 1, noise)
        if likelihood == "zinb":
            self.pi = linear(n_in, n_vars, noise)

    @property
    def layers(self) -> list[nn.Linear]:
        """All output layers there are."""
        return [layer for layer in (self.mean, self.theta, self.pi) if layer is not None]

    def forward(self, hidden: Tensor, batch_code: Tensor | None = None) -> CountProducts:
        """Return the parameters for (b, n_in) hidden values, not yet limited: the likelihoods do that.

        ``batch_code``, (b,): experimental batches, for a dispersion of each; of an unknown one it is the mean of all.
        """
        log_theta: Tensor | LinearOutput | None = self.gene_log_theta
        if self.gene_log_theta is not None and self.gene_log_theta.dim() == 2:
            log_theta = self._of_batches(self.gene_log_theta, batch_code)
        if self.theta is not None:
            # with one value a cell, nothing is gained by leaving the product to the likelihood
            log_theta = self.theta(hidden) if self.theta.out_features == 1 else product_of(self.theta, hidden)
        pi_logits = None if self.pi is None else product_of(self.pi, hidden)
        return CountProducts(product_of(self.mean, hidden), log_theta, pi_logits)

    def _of_batches(self, of_known: Tensor, batch_code: Tensor | None) -> Tensor:
        # (b, g), or (g,) for the mean of all; in training every batch is known
        if batch_code is None:
            return of_known.mean(dim=0)
        whole = of_known if self.training else torch.cat([of_known, of_known.mean(dim=0, keepdim=True)])
        return rows_of(whole, batch_code)

    def set_gradients(self, gradients: list[Tensor], batch_code: Tensor | None = None) -> Tensor:
        """Take the gradients that a likelihood's ``LossSpec.run`` returns; return that of the hidden values, (b, n_in).

        Not with one dispersion a cell, whose product the likelihood does not compute.
        """
        by_hidden, self.mean.weight.grad, self.mean.bias.grad, *rest = gradients
        if self.gene_log_theta is not None:
            by_theta, *rest = rest
            if self.gene_log_theta.dim() == 2:
                assert batch_code is not None
                by_theta = torch.zeros_like(self.gene_log_theta).index_add_(0, batch_code, by_theta)
            self.gene_log_theta.grad = by_theta
        for layer in (self.theta, self.pi):
            if layer is not None:
                more, layer.weight.grad, layer.bias.grad, *rest = rest
                by_hidden = by_hidden + more
        return by_hidden

    def limited(self, hidden: Tensor, batch_code: Tensor | None = None) -> CountParameters:
        """Return the parameters as the likelihoods read them."""
        mean, log_theta, pi_logits = (None if p is None else materialize(p) for p in self(hidden, batch_code))
        assert mean is not None
        if self.likelihood != "gaussian":
            mean = mean.clamp(*LOG_MEAN_RANGE)
        return CountParameters(mean, None if log_theta is None else log_theta.clamp(*LOG_THETA_RANGE), pi_logits)


class PiOfMean(nn.Module):
    """Dropout logits linear in the log mean, with a slope and an offset for each gene."""

    def __init__(self, n_vars: int) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.empty(1, n_vars))  # a matrix, so that penalties on weights reach it
        self.offset = nn.Parameter(torch.zeros(n_vars))

    def forward(self, log_mean: Tensor) -> Tensor:
        """Return the logits, (b, g)."""
        return self.slope * log_mean + self.offset

"""The other side of the comparisons: the count autoencoder as one writes it in an afternoon.

Dense minibatches from a ``DataLoader``, the usual formula of the negative binomial with ``lgamma`` on every entry and
theta expanded to (b, g), Adam with its defaults.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


def textbook_nb(x: Tensor, mu: Tensor, theta: Tensor, eps: float = 1e-8) -> Tensor:
    """Return the negative log-likelihood of each entry, (b, g); Lopez et al. 2018, doi 10.1038/s41592-018-0229-2."""
    log_total = torch.log(theta + mu + eps)
    log_nb = (
        theta * (torch.log(theta + eps) - log_total)
        + x * (torch.log(mu + eps) - log_total)
        + torch.lgamma(x + theta)
        - torch.lgamma(theta)
        - torch.lgamma(x + 1)
    )
    return -log_nb


def textbook_zinb(x: Tensor, mu: Tensor, theta: Tensor, pi_logits: Tensor, eps: float = 1e-8) -> Tensor:
    """Return the zero-inflated negative log-likelihood of each entry, (b, g)."""
    pi = torch.sigmoid(pi_logits)
    nb = -textbook_nb(x, mu, theta)
    zero = torch.log(pi + (1 - pi) * torch.pow(theta / (theta + mu + eps), theta) + eps)
    return -torch.where(x < eps, zero, torch.log(1 - pi + eps) + nb)


class TextbookNetwork(nn.Module):
    """Encoder, decoder and one dispersion a gene."""

    def __init__(self, n_vars: int, n_hidden: int, n_latent: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(n_vars, n_hidden), nn.BatchNorm1d(n_hidden), nn.ReLU(), nn.Linear(n_hidden, n_latent)
        )
        self.decoder = nn.Sequential(
            nn.Linear(n_latent, n_hidden), nn.BatchNorm1d(n_hidden), nn.ReLU(), nn.Linear(n_hidden, n_vars)
        )
        self.log_theta = nn.Parameter(torch.zeros(n_vars))

    def forward(self, x: Tensor, size_factor: Tensor) -> Tensor:
        """Return the mean negative log-likelihood."""
        log_mean = self.decoder(self.encoder(torch.log1p(x / size_factor[:, None])))
        mu = torch.exp(log_mean) * size_factor[:, None]
        return textbook_nb(x, mu, self.log_theta.exp().expand_as(mu)).mean()


def fit_textbook(
    counts: Any, *, n_hidden: int, n_latent: int, batch_size: int, epochs: int, valid_fraction: float = 0.1
) -> float:
    """Train on a scipy CSR matrix, as long as told; return the last validation loss."""
    dense = np.asarray(counts.todense(), dtype=np.float32)
    sizes = dense.sum(axis=1)
    factors = (sizes / np.median(sizes)).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(dense))
    n_valid = int(valid_fraction * len(dense))
    sets = [
        TensorDataset(torch.from_numpy(dense[rows]), torch.from_numpy(factors[rows]))
        for rows in (order[n_valid:], order[:n_valid])
    ]
    train = DataLoader(sets[0], batch_size=batch_size, shuffle=True)
    network = TextbookNetwork(dense.shape[1], n_hidden, n_latent)
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    loss = torch.zeros(())
    for _ in range(epochs):
        network.train()
        for x, size_factor in train:
            optimizer.zero_grad()
            loss = network(x, size_factor)
            torch.autograd.backward(loss)
            optimizer.step()
        network.eval()
        with torch.no_grad():
            parts = [float(network(x, f)) * len(x) for x, f in DataLoader(sets[1], batch_size=1024)]
    return sum(parts) / max(n_valid, 1)

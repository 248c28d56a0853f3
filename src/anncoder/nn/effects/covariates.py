"""Log-linear effects of covariates on genes, found in groups of like cells (Poisson).

The model is ``E[count] = size factor * mean of the class * exp(covariates @ effects)`` with a class for each group of
like cells in each experimental batch, so that neither a type of cell nor a batch in which a covariate is larger passes
for its effect. Effects are shrunk by what chance makes of them (empirical Bayes: Efron, Morris 1973,
doi 10.1080/01621459.1973.10481350): a covariate without an effect changes nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from anncoder.nn.inputs import LARGEST_EFFECT
from anncoder.nn.sparse import transposed_matmul
from anncoder.types import CSR

STEPS = 4  # of Fisher's scoring
PRIOR = 5.0  # average cells without an effect beside those of the data: of few molecules little can be told
LONGEST_STEP = 0.5
SEVERAL = 24  # covariates: of more, each has a step of its own


def without_effects(x: CSR, covariates: Tensor, effects: Tensor) -> CSR:
    """Return x, (n, g), of cells with covariates, (n, c), divided by what effects, (c, g), make of it."""
    sums = (covariates @ effects).clamp(-LARGEST_EFFECT, LARGEST_EFFECT)
    return x.with_values(x.values * (-sums.view(-1)[x.flat()]).exp())


def log_effects(x: CSR, covariates: Tensor, classes: Tensor, start: Tensor) -> Tensor:
    """Return the effect of each covariate on the log expectation of each gene, (c, g).

    Parameters
    ----------
    x
        (n, g) counts over size factors.
    covariates
        (n, c), centred.
    classes
        (n,) codes of the cells whose mean is one.
    start
        (c, g) effects to start from.
    """
    n_classes = int(classes.max()) + 1
    sizes = torch.bincount(classes, minlength=n_classes).clamp(min=1).unsqueeze(1).float()
    place = classes[x.rows()] * x.n_vars + x.indices
    by_class = torch.bincount(place, weights=x.values.double(), minlength=n_classes * x.n_vars)
    by_class = by_class.view(n_classes, -1).float()
    observed = transposed_matmul(x, covariates).T
    prior = PRIOR * by_class.sum(0) / x.n_rows + 1e-9
    means = torch.zeros(n_classes, covariates.shape[1]).index_add_(0, classes, covariates) / sizes
    information = _information(covariates - means[classes], classes, by_class / sizes, prior)
    effects = start.clone()
    for _ in range(STEPS):
        mu = _expected(covariates, classes, effects, by_class)
        slope = observed - covariates.T @ mu - prior * effects
        effects += _solved(information, slope).clamp(-LONGEST_STEP, LONGEST_STEP)
    mu = _expected(covariates, classes, effects, by_class)
    return _shrunk(effects, _variances(information) * _spread(x, mu))


def _expected(covariates: Tensor, classes: Tensor, effects: Tensor, by_class: Tensor) -> Tensor:
    # (n, g), with the mean of each class for which its sum is that of the data
    mu = (covariates @ effects).clamp_(-LARGEST_EFFECT, LARGEST_EFFECT).exp_()
    sums = torch.zeros_like(by_class).index_add_(0, classes, mu)
    return mu.mul_(((by_class + 1e-9) / (sums + 1e-9))[classes])


def _information(centred: Tensor, classes: Tensor, mean: Tensor, prior: Tensor) -> Tensor:
    # Fisher's, of each gene, at the mean of each class: (g, c, c), or its diagonal (g, c) where there are many
    n_classes, c = len(mean), centred.shape[1]
    if c > SEVERAL:
        squares = torch.zeros(n_classes, c).index_add_(0, classes, centred.square())
        return mean.T @ squares + prior.unsqueeze(1)
    products = (centred.unsqueeze(2) * centred.unsqueeze(1)).view(-1, c * c)
    scatter = torch.zeros(n_classes, c * c).index_add_(0, classes, products)
    return (mean.T @ scatter).view(-1, c, c) + prior[:, None, None] * torch.eye(c)


def _solved(information: Tensor, slope: Tensor) -> Tensor:
    if information.dim() == 2:
        return slope / information.T
    found: Tensor = torch.linalg.solve(information, slope.T)
    return found.T


def _variances(information: Tensor) -> Tensor:
    # of the effects by chance, for counts that vary as Poisson's, (c, g)
    if information.dim() == 2:
        return 1 / information.T
    inverse: Tensor = torch.linalg.inv(information)
    return inverse.diagonal(dim1=1, dim2=2).T


def _spread(x: CSR, mu: Tensor) -> Tensor:
    # Pearson's variance over that of Poisson, (g,), at least 1
    at_entries = mu.view(-1)[x.flat()].clamp(min=1e-9)
    squares = torch.zeros(x.n_vars).index_add_(0, x.indices, x.values.square() / at_entries)
    sums = torch.zeros(x.n_vars).index_add_(0, x.indices, x.values)
    return ((squares - 2 * sums + mu.sum(0)) / x.n_rows).clamp(min=1)


def _shrunk(effects: Tensor, variance: Tensor) -> Tensor:
    # by the variance of true effects among the genes, of each covariate
    weight = 1 / variance
    true = ((effects.square() - variance) * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True)
    true = true.clamp(min=0)
    return effects * true / (true + variance)

"""How far a mean and a dispersion may go."""

from __future__ import annotations

import logging
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from anncoder.types import Product

logger = logging.getLogger("anncoder")

# Inside these float32 neither overflows nor loses the gradient, and hardly a count is beyond them. They are float32
# numbers, so that every precision has the same limits.
LIMITS = np.log(np.array([1e-8, 1e6, 1e-4, 1e6])).astype(np.float32)
LOG_MEAN_RANGE = (float(LIMITS[0]), float(LIMITS[1]))
LOG_THETA_RANGE = (float(LIMITS[2]), float(LIMITS[3]))

MeanName = Literal["exp", "softmax"]

_AS_KERNELS_TAKE_THEM = {
    (mean, per_gene): torch.tensor(
        [*LIMITS, float(mean == "softmax"), float(per_gene)], dtype=torch.float32, device="cpu"
    )
    for mean in ("exp", "softmax")
    for per_gene in (False, True)
}


def limits_of(mean: MeanName = "exp", log_theta: Tensor | Product | None = None) -> Tensor:
    """Return the limits as the kernels take them, (6,), with the kind of mean and dispersion: see ``kernels.nb.nb``."""
    return _AS_KERNELS_TAKE_THEM[mean, isinstance(log_theta, Tensor) and log_theta.dim() == 1]


def warn_of_large_means(gene_mean: Tensor) -> None:
    """Warn of genes, (g,), whose mean is beyond what a model of counts can expect."""
    n_large = int((gene_mean.log() > LOG_MEAN_RANGE[1]).sum())
    if n_large:
        logger.warning("%d genes have more than a million counts a cell: the model expects a million of them", n_large)

"""How far a mean and a dispersion may go."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from anncoder.types import Product

# Beyond these no count can tell the difference; inside them float32 neither overflows nor loses the gradient. They are
# float32 numbers, so that every precision has the same limits.
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

"""How far a mean and a dispersion may go."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

# Beyond these no count can tell the difference; inside them float32 neither overflows nor loses the gradient. They are
# float32 numbers, so that every precision has the same limits.
LIMITS = np.log(np.array([1e-8, 1e6, 1e-4, 1e6])).astype(np.float32)
LOG_MEAN_RANGE = (float(LIMITS[0]), float(LIMITS[1]))
LOG_THETA_RANGE = (float(LIMITS[2]), float(LIMITS[3]))

MeanName = Literal["exp", "softmax"]
# as the kernels take them: the limits, and whether the mean is a softmax
OF_MEAN = {"exp": torch.tensor([*LIMITS, 0.0]), "softmax": torch.tensor([*LIMITS, 1.0])}

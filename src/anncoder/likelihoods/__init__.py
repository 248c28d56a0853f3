"""Negative log-likelihoods of one minibatch, per cell.

Every function takes the observations as ``CSR`` (b, g) and the parameters as dense tensors, and returns the
negative log-likelihood of each cell, (b,), summed over its genes, every constant included. Zeros are evaluated in
closed form over the whole (b, g) matrix; the stored values then replace their entries, computed in float64. That is
exact, and ``lgamma`` and ``digamma`` run on the 1-15 % of the entries that are not zero. Gradients are written in the
same pass. ``reference`` holds the textbook forms that the tests compare with.

Which one: ``nb`` for molecule counts (UMI); ``zinb`` if there are more zeros than that (some plate protocols);
``poisson`` for counts without extra variance, and as the yardstick on held-out molecules; ``gaussian`` for
log-normalised expression.
"""

from anncoder.likelihoods.gaussian import absolute_error, gaussian_nll, squared_error
from anncoder.likelihoods.nb import nb_nll
from anncoder.likelihoods.poisson import poisson_nll
from anncoder.likelihoods.zinb import zinb_nll

__all__ = ["absolute_error", "gaussian_nll", "nb_nll", "poisson_nll", "squared_error", "zinb_nll"]

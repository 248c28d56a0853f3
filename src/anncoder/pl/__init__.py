"""Plots: of models, denoised genes, and time series.

Every function draws into axes and returns them; none changes matplotlib's settings or shows a window. Groups have
scanpy's colours in ``uns``, if there are any, else those of seaborn's palette "colorblind"; beyond ten groups the
points differ in shape too.
"""

from anncoder.pl.autoencoders import embeddings, evaluation, expression, gene_pair, history, recommendation
from anncoder.pl.fate_trends import fates, trends
from anncoder.pl.populations import balance, dynamics
from anncoder.pl.relations import drevi, drivers
from anncoder.pl.transport_maps import flow, growth, validation

__all__ = [
    "balance",
    "drevi",
    "drivers",
    "dynamics",
    "embeddings",
    "evaluation",
    "expression",
    "fates",
    "flow",
    "gene_pair",
    "growth",
    "history",
    "recommendation",
    "trends",
    "validation",
]

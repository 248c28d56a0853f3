"""Plots: of models, denoised genes, and time series.

Every function draws into axes and returns them; none changes matplotlib's settings or shows a window. Groups have
scanpy's colours in ``uns``, if there are any, else ten that the colour-blind tell apart (Petroff 2021, arXiv
2107.02270); beyond ten groups the points differ in shape too.
"""

from anncoder.pl.autoencoders import evaluation, gene_pair, history, recommendation
from anncoder.pl.cell_maps import embeddings, expression
from anncoder.pl.fate_trends import fates, trends
from anncoder.pl.latent_units import latent, loadings
from anncoder.pl.populations import balance, dynamics
from anncoder.pl.relations import drevi, drivers
from anncoder.pl.seeds import stability
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
    "latent",
    "loadings",
    "recommendation",
    "stability",
    "trends",
    "validation",
]


def __dir__() -> list[str]:
    return list(__all__)  # and not the modules of this folder

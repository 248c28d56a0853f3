"""Plots: training curves, embeddings beside PCA, gene pairs, scores of a recommendation, relations, drivers.

Every function draws into axes and returns them; none changes matplotlib's settings or shows a window. Groups have
scanpy's colours in ``uns``, if there are any, else those of seaborn's palette "colorblind"; beyond ten groups the
points differ in shape too.
"""

from anncoder.pl.autoencoders import embeddings, gene_pair, history, recommendation
from anncoder.pl.relations import drevi, drivers

__all__ = ["drevi", "drivers", "embeddings", "gene_pair", "history", "recommendation"]

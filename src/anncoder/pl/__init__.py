"""Plots: training curves, embeddings, gene pairs, recommendation, population dynamics and balance.

Every function draws into axes and returns them; none changes matplotlib's settings or shows a window. Groups have
scanpy's colours in ``uns``, if there are any, else those of seaborn's palette "colorblind"; beyond ten groups the
points differ in shape too.
"""

from anncoder.pl.autoencoders import embeddings, gene_pair, history, recommendation
from anncoder.pl.populations import balance, dynamics

__all__ = ["balance", "dynamics", "embeddings", "gene_pair", "history", "recommendation"]

"""Optimal transport between time points: solver, growth, fates, held-out times."""

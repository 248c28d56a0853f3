"""Fused CPU kernels, compiled by numba and run on torch's own threads: likelihoods, sparse products, Adam."""

"""Fused CUDA kernels in Triton: likelihoods, sparse first layer, Adam."""

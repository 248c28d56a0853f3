"""Loaders: which cells, in which order, as minibatches; from memory, from disk, on a GPU."""

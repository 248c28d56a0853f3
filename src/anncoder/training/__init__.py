"""Training: preparation of the data, the loop (no model, no AnnData), optimizer, checkpoints, processes."""

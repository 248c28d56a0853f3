"""Effects of experimental batches and covariates on the genes, found before the training."""

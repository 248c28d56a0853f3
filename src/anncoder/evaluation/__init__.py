"""Whether to believe a model: beside PCA and gene means, clusters, invented correlations, search for settings."""

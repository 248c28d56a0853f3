"""Relations of genes: kNN-DREMI, lags, drivers of a fate."""

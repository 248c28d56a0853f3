"""The user's cells, in memory or on disk: opened, checked, matched by gene, summarised and cut into minibatches."""

"""Report on a fitted model: one HTML file with data, training in words, scores, maps, genes."""

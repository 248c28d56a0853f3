"""A report on a fitted model: one HTML file with the data, the training in words, scores, maps and genes."""

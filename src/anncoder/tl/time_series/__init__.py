"""Time series in an AnnData: populations, roots, gene relations; results in slots."""

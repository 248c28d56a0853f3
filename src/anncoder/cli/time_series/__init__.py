"""Commands on time series: populations, gene relations."""

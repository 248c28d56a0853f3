"""Time series: optimal transport between time points, growth, fates, population dynamics, gene relations."""

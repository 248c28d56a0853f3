"""``python -m benchmarks.speed``: ratios measured here, both sides in one run, interleaved, medians.

``textbook`` is the other side: the network as one writes it in an afternoon. ``machine`` measures what the machine can
do, ``comparisons`` what we do beside it, ``scale`` what needs more cells, genes or processes than that; ``choice`` is
the one table of all comparisons.
"""

"""Which cells, in which order, as minibatches.

``adata`` opens what the user gives and reads one matrix of it; ``genes`` matches genes by name; ``order`` decides
which rows and in which order; ``memory`` cuts minibatches from a matrix in memory; ``summary`` is the one pass over
the data before training.
"""

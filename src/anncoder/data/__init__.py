"""Which cells, in which order, as minibatches.

In memory: ``adata`` opens what the user gives and reads one matrix of it, ``memory`` cuts minibatches from it,
``resident`` makes them on a GPU that has all of it. On disk: ``shard`` is one file, ``backed`` that of an AnnData whose
X is in it, ``shards`` several, one below the other; ``disk`` makes minibatches of them, ``prefetch`` reads ahead,
``extents`` reads around HDF5, ``chunks`` knows what arrays are stored in, ``names`` leaves those of the cells there,
``pages`` is memory for what comes and goes. Checking: ``scan`` reads every value, ``held`` by parts; ``kind`` tells
what a matrix is, ``problems`` what is wrong with it; ``empty`` leaves out cells without counts. For all of them:
``genes`` matches genes by name, ``order`` decides which rows and in which order, ``summary`` is the one pass over the
data before training.
"""

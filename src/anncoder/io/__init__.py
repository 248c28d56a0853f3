"""Files that are written: atomic writes, HDF5, copies of h5ad files, output paths, model folders."""

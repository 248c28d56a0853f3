"""Files that we write, whatever is in them: atomic writes, HDF5, copies of h5ad files, output paths, model folders."""

"""Formats of files: attributes, decoders, elements that anndata reads, files of other programs."""

"""scanpy's manners: results are written into the AnnData, or beside copies of files, under names of their own.

Nothing of the user's is touched: ``X``, ``raw``, layers and every slot that is not ours stay what they are. Only
:func:`dca`, which stands in for a function of scanpy's, puts its result where that one did: into ``X``.
"""

from anncoder.tl.autoencoders import autoencode, denoise, embed
from anncoder.tl.dca_scanpy import dca
from anncoder.tl.held_out_times import interpolate, validate_transport
from anncoder.tl.transport_maps import growth, transport
from anncoder.tl.transport_results import ancestors, couple, descendants, fates, flows, trends

__all__ = [
    "ancestors",
    "autoencode",
    "couple",
    "dca",
    "denoise",
    "descendants",
    "embed",
    "fates",
    "flows",
    "growth",
    "interpolate",
    "transport",
    "trends",
    "validate_transport",
]

"""scanpy's manners: results are written into the AnnData, or beside copies of files, under names of their own.

Nothing of the user's is touched: ``X``, ``raw``, layers and every slot that is not ours stay what they are. Only
:func:`dca`, which stands in for a function of scanpy's, puts its result where that one did: into ``X``.
"""

from anncoder.tl.autoencoders import autoencode, denoise, embed
from anncoder.tl.dca_scanpy import dca
from anncoder.tl.labels import transfer_labels
from anncoder.tl.time_series.fate_drivers import drivers
from anncoder.tl.time_series.held_out_times import interpolate, validate_transport
from anncoder.tl.time_series.population_balance import balance
from anncoder.tl.time_series.populations import dynamics
from anncoder.tl.time_series.relations import gene_relations
from anncoder.tl.time_series.roots import root
from anncoder.tl.time_series.transport_maps import growth, transport
from anncoder.tl.time_series.transport_results import ancestors, couple, descendants, fates, flows, trends

__all__ = [
    "ancestors",
    "autoencode",
    "balance",
    "couple",
    "dca",
    "denoise",
    "descendants",
    "drivers",
    "dynamics",
    "embed",
    "fates",
    "flows",
    "gene_relations",
    "growth",
    "interpolate",
    "root",
    "transfer_labels",
    "transport",
    "trends",
    "validate_transport",
]


def __dir__() -> list[str]:
    return list(__all__)  # and not the modules of this folder

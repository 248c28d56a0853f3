"""scanpy's manners: results are written into the AnnData, or beside copies of files, under names of their own.

Nothing of the user's is touched: ``X``, ``raw``, layers and every slot that is not ours stay what they are. Only
:func:`dca`, which stands in for a function of scanpy's, puts its result where that one did: into ``X``.
"""

from anncoder.tl.autoencoders import autoencode, denoise, embed
from anncoder.tl.dca_scanpy import dca
from anncoder.tl.fate_drivers import drivers
from anncoder.tl.population_balance import balance
from anncoder.tl.populations import dynamics
from anncoder.tl.relations import gene_relations
from anncoder.tl.roots import root

__all__ = ["autoencode", "balance", "dca", "denoise", "drivers", "dynamics", "embed", "gene_relations", "root"]

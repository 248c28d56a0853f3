"""Single-cell autoencoders in PyTorch: AnnData in, latent embedding and denoised expression out.

    import scanpy as sc, anncoder as ac
    adata = sc.read_h5ad("pbmc.h5ad")                             # raw counts in X or a layer
    ac.tl.autoencode(adata, "count", n_latent=16)                 # -> obsm["X_ae"], uns["ae"]
    sc.pp.neighbors(adata, use_rep="X_ae"); sc.tl.leiden(adata)   # scanpy goes on

Names are imported when they are first used, so that ``import anncoder`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anncoder import datasets as datasets
    from anncoder import pl as pl
    from anncoder import tl as tl
    from anncoder.data.check import Report as Report
    from anncoder.data.check import check as check
    from anncoder.data.iterable import IterableSource as IterableSource
    from anncoder.errors import AnncoderError as AnncoderError
    from anncoder.evaluation.comparison import evaluate as evaluate
    from anncoder.evaluation.selection.recommend import recommend as recommend
    from anncoder.evaluation.selection.search import search as search
    from anncoder.models.count import CountAutoencoder as CountAutoencoder
    from anncoder.models.denoising import DenoisingAutoencoder as DenoisingAutoencoder
    from anncoder.models.loading import load as load
    from anncoder.models.published.autoimpute import AutoImpute as AutoImpute
    from anncoder.models.published.dca import DCA as DCA
    from anncoder.models.published.netsne import NetSNE as NetSNE
    from anncoder.models.published.saucie import SAUCIE as SAUCIE
    from anncoder.models.published.scscope import ScScope as ScScope
    from anncoder.models.published.scvis import SCVIS as SCVIS
    from anncoder.models.undercomplete import UndercompleteAutoencoder as UndercompleteAutoencoder
    from anncoder.models.variational import VariationalAutoencoder as VariationalAutoencoder
    from anncoder.reporting.page import report as report

__version__ = "0.1.0"

_HOMES = {
    "AnncoderError": "errors",
    "AutoImpute": "models.published.autoimpute",
    "CountAutoencoder": "models.count",
    "DCA": "models.published.dca",
    "DenoisingAutoencoder": "models.denoising",
    "IterableSource": "data.iterable",
    "NetSNE": "models.published.netsne",
    "Report": "data.check",
    "SAUCIE": "models.published.saucie",
    "SCVIS": "models.published.scvis",
    "ScScope": "models.published.scscope",
    "UndercompleteAutoencoder": "models.undercomplete",
    "VariationalAutoencoder": "models.variational",
    "check": "data.check",
    "evaluate": "evaluation.comparison",
    "load": "models.loading",
    "recommend": "evaluation.selection.recommend",
    "report": "reporting.page",
    "search": "evaluation.selection.search",
}
_MODULES = ("datasets", "pl", "tl")

__all__ = ["__version__", *_HOMES, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"anncoder.{name}")
    if name in _HOMES:
        return getattr(import_module(f"anncoder.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'anncoder' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

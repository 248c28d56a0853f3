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
    from anncoder.checks import Report as Report
    from anncoder.checks import check as check
    from anncoder.errors import AnncoderError as AnncoderError
    from anncoder.estimators import DCA as DCA
    from anncoder.estimators import SAUCIE as SAUCIE
    from anncoder.estimators import SCVIS as SCVIS
    from anncoder.estimators import AutoImpute as AutoImpute
    from anncoder.estimators import CountAutoencoder as CountAutoencoder
    from anncoder.estimators import DenoisingAutoencoder as DenoisingAutoencoder
    from anncoder.estimators import NetSNE as NetSNE
    from anncoder.estimators import ScScope as ScScope
    from anncoder.estimators import UndercompleteAutoencoder as UndercompleteAutoencoder
    from anncoder.estimators import VariationalAutoencoder as VariationalAutoencoder
    from anncoder.estimators import load as load
    from anncoder.evaluation import evaluate as evaluate
    from anncoder.iterable import IterableSource as IterableSource
    from anncoder.trials import search as search

__version__ = "0.1.0"

_HOMES = {
    "DCA": "anncoder.estimators",
    "SAUCIE": "anncoder.estimators",
    "SCVIS": "anncoder.estimators",
    "AnncoderError": "anncoder.errors",
    "AutoImpute": "anncoder.estimators",
    "CountAutoencoder": "anncoder.estimators",
    "DenoisingAutoencoder": "anncoder.estimators",
    "IterableSource": "anncoder.iterable",
    "NetSNE": "anncoder.estimators",
    "Report": "anncoder.checks",
    "ScScope": "anncoder.estimators",
    "UndercompleteAutoencoder": "anncoder.estimators",
    "VariationalAutoencoder": "anncoder.estimators",
    "check": "anncoder.checks",
    "evaluate": "anncoder.evaluation",
    "load": "anncoder.estimators",
    "search": "anncoder.trials",
}
_MODULES = ("datasets", "pl", "tl")

__all__ = [
    "DCA",
    "SAUCIE",
    "SCVIS",
    "AnncoderError",
    "AutoImpute",
    "CountAutoencoder",
    "DenoisingAutoencoder",
    "IterableSource",
    "NetSNE",
    "Report",
    "ScScope",
    "UndercompleteAutoencoder",
    "VariationalAutoencoder",
    "__version__",
    "check",
    "datasets",
    "evaluate",
    "load",
    "pl",
    "search",
    "tl",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"anncoder.{name}")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'anncoder' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

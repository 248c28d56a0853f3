"""One file a model: its hyper-parameters, its network and its objective.

A network is built from ``(config, shape, noise)`` and offers

- ``forward(batch) -> Loss``: the objective, and the only place where it is put together;
- ``encode(batch) -> (b, k)``: the latent, deterministic in evaluation;
- ``denoise(batch) -> (b, g)``: expected expression at the median library size; with zero inflation, before it, and then
  ``observed(batch) -> (b, g)`` is the same with what it takes away;
- ``start_from(summary, cells)`` and ``finish(batch)``: set what one pass over the data can set before training (or more
  passes of its own, over the loader ``cells``), and what a sample of the cells can set after it.

What the rest relies on:

- A loaded model is built on the ``meta`` device, where nothing has a value, and takes its values from the file: no
  ``__init__`` may read a number out of a tensor. ``noise.on(device)`` works there.
- What must be kept is a parameter or a persistent buffer under one name, finite, and of a shape that ``config`` and
  ``shape`` decide. All else is lost in saving, and where an unfinished fit goes on; ``save`` refuses what it can see.
- ``cells`` yields minibatches on the CPU, also where the network is on a GPU.
- ``start_from`` runs with gradients on unless it turns them off (``torch.no_grad``).
- No term of the loss is called ``"loss"``: the history has the sum under this name.

``MODELS`` is the one table of them; a new model is a file and an entry.
"""

from typing import NamedTuple

from torch import nn

from anncoder.config import NetworkConfig, unknown_key
from anncoder.models.autoimpute import AutoImputeConfig, AutoImputeNetwork
from anncoder.models.count import CountConfig, CountNetwork
from anncoder.models.dca import DCAConfig, DCANetwork
from anncoder.models.denoising import DenoisingConfig, DenoisingNetwork
from anncoder.models.netsne import NetsneConfig, NetsneNetwork
from anncoder.models.saucie import SAUCIEConfig, SAUCIENetwork
from anncoder.models.scscope import ScScopeConfig, ScScopeNetwork
from anncoder.models.scvis import ScvisConfig, ScvisNetwork
from anncoder.models.undercomplete import UndercompleteConfig, UndercompleteNetwork
from anncoder.models.variational import VariationalConfig, VariationalNetwork


class Model(NamedTuple):
    """A configuration class and the network class it describes."""

    config: type[NetworkConfig]
    network: type[nn.Module]


def network_of(name: str) -> type[nn.Module]:
    """Return the network class of a model.

    Raises
    ------
    ConfigError
        ``MODELS`` has no such entry.
    """
    if name not in MODELS:
        raise unknown_key(name, sorted(MODELS), where="anncoder.models.MODELS")
    return MODELS[name].network


MODELS: dict[str, Model] = {
    "autoimpute": Model(AutoImputeConfig, AutoImputeNetwork),
    "count": Model(CountConfig, CountNetwork),
    "dca": Model(DCAConfig, DCANetwork),
    "denoising": Model(DenoisingConfig, DenoisingNetwork),
    "scscope": Model(ScScopeConfig, ScScopeNetwork),
    "netsne": Model(NetsneConfig, NetsneNetwork),
    "scvis": Model(ScvisConfig, ScvisNetwork),
    "saucie": Model(SAUCIEConfig, SAUCIENetwork),
    "undercomplete": Model(UndercompleteConfig, UndercompleteNetwork),
    "variational": Model(VariationalConfig, VariationalNetwork),
}

"""Population balance in AnnData: neighbour graph, entry and exit, potential and fates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import anndata
import numpy as np
import pandas as pd
from natsort import natsorted

from anncoder.config import unknown_key
from anncoder.data.adata import obs_column
from anncoder.dynamics.populations.balance import (
    ExitScale,
    Rates,
    balanced_rates,
    drop_of,
    fates,
    potential,
    refuse_diffusion,
    symmetric_graph,
)
from anncoder.errors import ConfigError, InputError, listed
from anncoder.tl.slots import target_of
from anncoder.tl.time_series.populations import record_of, refuse_not_whole, refuse_taken
from anncoder.training.progress import announce, logger

Array = np.ndarray[Any, np.dtype[np.float64]]

APPROXIMATE = 30_000  # cells above which neighbours are searched for by pynndescent
OTHER_D = (0.5, 2.0)  # times D: how much the fates depend on it


def balance(
    adata: anndata.AnnData,
    *,
    labels: str,
    entry: str | Sequence[str] | None = None,
    exits: Mapping[str, float] | Sequence[str] | None = None,
    rates: str | None = None,
    D: float = 0.05,
    exit_scale: ExitScale = "balanced",
    n_neighbors: int = 10,
    key: str = "ae",
    use_rep: str | None = None,
    neighbors_key: str | None = None,
    key_added: str = "balance",
    copy: bool = False,
) -> anndata.AnnData | None:
    """Find the potential that carries cells from entry to exit in a snapshot, and the fate of each cell.

    For a population in steady state. The law knows no rotations and no oscillations (a cell cycle is not seen), and
    nothing that changes with time. Every part of the graph of neighbours needs an entry and an exit.

    Parameters
    ----------
    adata
        Cells of one snapshot.
    labels
        Column of obs whose values name entries and exits.
    entry
        Label, or labels, of the cells at which new cells enter, each cell as many.
    exits
        Labels at which cells leave, with the relative rate of each; a sequence for equal rates. Each is a fate.
    rates
        Instead of ``entry`` and ``exits``, a column of obs with the net rate of each cell: > 0 where cells enter or
        divide, < 0 where they leave. The fates are the labels of the cells that leave.
    D
        Diffusion, in units of the drop of the potential from entry to exit. The results have the fates for half and
        twice of it, too.
    exit_scale
        "balanced": cells leave as fast as the potential brings them, and the fates hardly depend on D and not on the
        scale of the rates. "published": the rates themselves are the weights of the exits, as in the original.
    n_neighbors
        Neighbours of each cell in the latent, itself not counted; of more than 30,000 cells approximate.
    key, use_rep
        Neighbours are those in ``obsm["X_{key}"]``, or in ``obsm[use_rep]``.
    neighbors_key
        Take the graph of ``sc.pp.neighbors`` instead, of this ``key_added``; "neighbors" for the one without.
    key_added
        Name of the results.
    copy
        Return a copy with the results instead of writing into ``adata``.

    Returns
    -------
    anndata.AnnData or None
        ``obs["{key_added}_V"]`` (in the unit of the rates, its mean 0), ``obsm["{key_added}_fates"]`` (n_obs, n_fates)
        with rows of sum 1, ``uns[key_added]``: ``names`` of the fates, ``drop``, ``D`` and, for three D, the fates at
        the entry (``entry_fates``).

    Raises
    ------
    ConfigError
        There is no such column, label or slot, a setting is out of range, or the slots are the user's.
    InputError
        The rates cannot be used, or a part of the graph has no entry or exit.
    ResourceError
        The iterations did not come to an end.

    References
    ----------
    Weinreb et al. 2018, doi:10.1073/pnas.1714723115.
    """
    target = target_of(adata, copy=copy)
    slots = [("obs", f"{key_added}_V"), ("obsm", f"{key_added}_fates")]
    refuse_taken(target, key_added, slots)
    refuse_diffusion(D)
    if exit_scale not in ("balanced", "published"):
        raise unknown_key(exit_scale, ("balanced", "published"), where="exit_scale")
    entries, leaving, names = _flows(target, labels, entry, exits, rates)
    graph = graph_of(target, n_neighbors, f"X_{key}" if use_rep is None else use_rep, neighbors_key)
    found = balanced_rates(graph, entries, leaving)
    if rates is not None and found.rescaled > 0.01:
        change = 100 * found.rescaled
        logger.warning("the rates do not sum to 0: those of the exits were scaled, by up to %.0f %%", change)
    values = potential(graph, found.net)
    of_d = {factor * D: fates(graph, values, found, factor * D, exit_scale=exit_scale) for factor in (1.0, *OTHER_D)}
    settings = {"labels": labels, "entry": entry, "exits": exits, "rates": rates, "D": D, "exit_scale": exit_scale}
    settings |= {"n_neighbors": n_neighbors, "key": key, "use_rep": use_rep, "neighbors_key": neighbors_key}
    target.obs[slots[0][1]] = values
    target.obsm[slots[1][1]] = of_d[D]
    target.uns[key_added] = _record_of_balance(settings, names, found, drop_of(values, found), of_d)
    announce(f"wrote obs['{key_added}_V'] and obsm['{key_added}_fates'] ({listed(names)}); next: ac.pl.balance(adata)")
    return target if copy else None


def _record_of_balance(
    settings: Mapping[str, Any], names: list[str], rates: Rates, drop: float, of_d: Mapping[float, Array]
) -> dict[str, Any]:
    entering = np.maximum(rates.net, 0) / np.maximum(rates.net, 0).sum()
    at_entry = {f"{d:g}": entering @ found for d, found in sorted(of_d.items())}
    return {
        **record_of(settings),
        "names": np.array(names, dtype=str),
        "drop": drop,
        "D": float(settings["D"]),
        "entry_fates": pd.DataFrame.from_dict(at_entry, orient="index", columns=names),
    }


def _flows(
    adata: anndata.AnnData, labels: str, entry: Any, exits: Any, rates: str | None
) -> tuple[Array, Array, list[str]]:
    """Return entering rates (n,), leaving rates (n, k), and the names of the exits."""
    column = pd.Series(np.asarray(obs_column(adata, labels, what="labels"), dtype=object))
    texts = column.map(str).to_numpy()
    of_labels = [given is not None for given in (entry, exits)]
    if any(of_labels) if rates is not None else not all(of_labels):
        what = "say where cells enter and leave: either entry and exits, or rates"
        remedy = "entry='HSC', exits={'Ery': 0.7, 'Mono': 0.3} (--entry HSC --exits Ery=0.7 --exits Mono=0.3)"
        raise ConfigError("bad-value", what, "entry, exits, rates", remedy)
    if rates is None:
        entering = np.isin(texts, _labels_in(entry, texts, labels, "entry")).astype(np.float64)
        weights = _exit_rates(exits, texts, labels)
        if both := sorted(set(weights) & set(texts[entering > 0])):
            raise ConfigError("bad-value", f"{listed(both)} is both entry and exit", "entry, exits", "name other exits")
        columns = [(texts == name) * weight / (texts == name).sum() for name, weight in weights.items()]
        leaving = np.column_stack(columns) / sum(weights.values())
        return entering / entering.sum(), leaving, list(weights)
    net = _net_rates(adata, rates)
    if column.isna().to_numpy()[net < 0].any():
        what = f"cells that leave have no label in obs[{labels!r}], and a fate is called by it"
        raise InputError("missing-values", what, f"obs[{labels!r}]", "fill them, or set their rate to 0")
    names = natsorted(set(texts[net < 0]))
    leaving = np.column_stack([np.where((net < 0) & (texts == name), -net, 0.0) for name in names])
    return np.maximum(net, 0), leaving, names


def _net_rates(adata: anndata.AnnData, key: str) -> Array:
    where = f"obs[{key!r}]"
    column = obs_column(adata, key, what="rates")
    try:
        net: Array = np.asarray(column, dtype=np.float64)
    except (TypeError, ValueError):
        net = np.full(adata.n_obs, np.nan)
    if not np.isfinite(net).all():
        raise InputError(
            "bad-rates", f"{where} holds no finite numbers", where, "a net rate for every cell, 0 for most"
        )
    if not (net > 0).any() or not (net < 0).any():
        what = f"{where} has no {'positive' if not (net > 0).any() else 'negative'} rate"
        raise InputError("bad-rates", what, where, "rates are > 0 where cells enter and < 0 where they leave")
    return net


def _labels_in(wanted: Any, texts: Any, labels: str, what: str) -> list[str]:
    single = isinstance(wanted, str) or not isinstance(wanted, Sequence)
    names = [str(name) for name in ([wanted] if single else wanted)]
    known = natsorted(set(texts))
    for name in names:
        if name not in known:
            raise unknown_key(name, known, where=f"{what} (labels in obs[{labels!r}])")
    return names


def _exit_rates(exits: Any, texts: Any, labels: str) -> dict[str, float]:
    given = exits if isinstance(exits, Mapping) else dict.fromkeys([exits] if isinstance(exits, str) else exits, 1.0)
    _labels_in(list(given), texts, labels, "exits")
    for name, rate in given.items():
        number = isinstance(rate, int | float | np.number) and not isinstance(rate, bool)
        if not (number and np.isfinite(rate) and rate > 0):
            raise ConfigError("bad-value", f"the rate of the exit {name!r} is {rate!r}", "exits", "a positive number")
    if not given:
        raise ConfigError("bad-value", "there are no exits", "exits", "exits={'Ery': 0.7, 'Mono': 0.3}")
    return {str(name): float(rate) for name, rate in given.items()}


def graph_of(adata: anndata.AnnData, n_neighbors: int, use_rep: str, neighbors_key: str | None) -> Any:
    """Return the symmetric 0/1 graph of neighbours, of the latent or as scanpy found it, (n_obs, n_obs) CSR."""
    if neighbors_key is not None:
        slot = "connectivities" if neighbors_key == "neighbors" else f"{neighbors_key}_connectivities"
        if slot not in adata.obsp:
            raise unknown_key(slot, [str(name) for name in adata.obsp], where="neighbors_key (a slot of obsp)")
        return symmetric_graph(adata.obsp[slot])
    refuse_not_whole("n_neighbors", n_neighbors, 1, max(1, adata.n_obs - 1))
    return symmetric_graph(_nearest(latent_of(adata, use_rep), n_neighbors))


def latent_of(adata: anndata.AnnData, use_rep: str) -> Any:
    """Return a slot of obsm, (n_obs, d) of finite numbers."""
    if use_rep not in adata.obsm:
        raise unknown_key(use_rep, [str(name) for name in adata.obsm], where="key or use_rep (a slot of obsm)")
    try:
        values = np.asarray(adata.obsm[use_rep], dtype=np.float64)
    except (TypeError, ValueError):
        values = np.empty(0)
    if values.ndim != 2 or not np.isfinite(values).all():
        where = f"obsm[{use_rep!r}]"
        remedy = "name a slot with finite numbers for every cell, such as X_ae"
        raise InputError("bad-coordinates", f"{where} is not a matrix of finite numbers", where, remedy)
    return values


def _nearest(latent: Array, k: int) -> Any:
    from scipy.sparse import csr_matrix

    n = len(latent)
    if n <= APPROXIMATE:
        from sklearn.neighbors import NearestNeighbors

        return NearestNeighbors(n_neighbors=k).fit(latent).kneighbors_graph()
    from pynndescent import NNDescent

    found = NNDescent(latent.astype(np.float32), n_neighbors=k + 1, random_state=0).neighbor_graph[0]
    return csr_matrix((np.ones(found.size), found.ravel(), np.arange(0, found.size + 1, k + 1)), shape=(n, n))

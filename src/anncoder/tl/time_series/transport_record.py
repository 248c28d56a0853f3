"""Record of a transport in an AnnData: settings, hash, potentials; plans rebuilt from them.

What is kept is two numbers a cell. A plan is rebuilt from them and the coordinates, so that a latent that was fitted
anew, or cells that were left out since, are noticed by a hash and refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import anndata
import numpy as np
import pandas as pd
import torch

from anncoder.config import unknown_key
from anncoder.data.adata import obs_column
from anncoder.device import choose_device
from anncoder.dynamics.transport.cost import Cost
from anncoder.dynamics.transport.plans import Plan
from anncoder.errors import ConfigError, InputError, listed
from anncoder.io.model_folder import versions
from anncoder.tl.time_series.time_points import read_coordinates, read_times

Array = np.ndarray[Any, Any]


def fingerprint(coordinates: Array, times: Array) -> str:
    """Return a hash of the coordinates, (n_obs, d), and times, (n_obs,), of all cells in their order."""
    digest = hashlib.blake2b(f"{coordinates.dtype.str}{coordinates.shape}".encode(), digest_size=8)
    digest.update(np.ascontiguousarray(coordinates).view(np.uint8).data)
    digest.update(np.ascontiguousarray(times, np.float64).data)
    return digest.hexdigest()


def as_record(settings: Mapping[str, Any], **parts: Any) -> dict[str, Any]:
    """Return a record for uns: plain values that every version of anndata can write."""
    text = json.dumps({**settings, "versions": versions()})
    return {"settings_json": text, "version": versions()["anncoder"], **parts}


def settings_of(adata: anndata.AnnData, key: str) -> dict[str, Any] | None:
    """Return the settings of the record under a key of uns; None if it is not one of ours."""
    found = adata.uns.get(key)
    return json.loads(found["settings_json"]) if isinstance(found, Mapping) and "settings_json" in found else None


def refuse_taken(adata: anndata.AnnData, key: Any, slots: Sequence[tuple[str, str]], function: str) -> None:
    """Raise a ConfigError if slots that are to be written are there, and this function did not write them."""
    if not isinstance(key, str) or not key or "/" in key:
        raise ConfigError("bad-key", f"key_added = {key!r} is no name for a slot", "key_added", "a word like 'fates'")
    if (settings_of(adata, key) or {}).get("function") == function:
        return
    taken = [f"{where}[{name!r}]" for where, name in [*slots, ("uns", key)] if name in getattr(adata, where)]
    if taken:
        what = f"{', '.join(taken)} exists and was not written by {function}"
        raise ConfigError("key-taken", what, "key_added", "choose another key_added, or delete what is there")


def device_here(settings: Mapping[str, Any]) -> torch.device:
    """Return the CPU if that was asked for, else what is best here: the file may come from another machine."""
    return choose_device("cpu" if settings["device"] == "cpu" else "auto")


class Transport(NamedTuple):
    """A transport as it was written, with the coordinates that it is of."""

    settings: dict[str, Any]
    pairs: pd.DataFrame  # t0, t1, median_cost...
    times: Array  # (n_obs,)
    coordinates: Array  # (n_obs, d)
    f: Array  # (n_obs,)
    g: Array  # (n_obs,)

    def cells(self, time: float) -> Array:
        """Return the positions of the cells of a time."""
        return np.flatnonzero(self.times == time)

    def plan(self, t0: float, t1: float) -> Plan:
        """Return the plan of a pair of times that was solved."""
        row = self.pairs[(self.pairs["t0"] == t0) & (self.pairs["t1"] == t1)].iloc[0]
        source, target = self.cells(t0), self.cells(t1)
        device = device_here(self.settings)
        points = self.coordinates[source], self.coordinates[target]
        cost = Cost(*points, float(row["median_cost"]), self.settings["epsilon"], device=device)
        return Plan(cost, self.f[source], self.g[target])

    def chain(self, t0: float, t1: float) -> list[float]:
        """Return the times from t0 to t1 that are joined by pairs, both included.

        Raises
        ------
        ConfigError
            Pairs do not lead from one to the other.
        """
        later = dict(zip(self.pairs["t0"], self.pairs["t1"], strict=True))
        found = [t0]
        while found[-1] < t1 and found[-1] in later:
            found.append(later[found[-1]])
        if found[-1] != t1:
            known = listed((f"{a:g} to {b:g}" for a, b in later.items()), 20)
            what = f"no chain of pairs leads from {t0:g} to {t1:g}; solved are {known}"
            raise ConfigError(
                "no-transport", what, "pairs", "ac.tl.transport(adata, ..., pairs=[...]) with these times"
            )
        return found

    def plans(self, t0: float, t1: float) -> list[Plan]:
        """Return the plans of a chain of times."""
        times = self.chain(t0, t1)
        return [self.plan(a, b) for a, b in pairwise(times)]

    def before(self, time: float) -> list[float]:
        """Return the times from which pairs lead to a time, in order, itself at the end."""
        earlier = dict(zip(self.pairs["t1"], self.pairs["t0"], strict=True))
        found = [time]
        while found[0] in earlier:
            found.insert(0, earlier[found[0]])
        return found

    def time(self, given: Any, what: str) -> float:
        """Return a time that is one of the pairs'; a ConfigError for another."""
        known = sorted({*self.pairs["t0"], *self.pairs["t1"]})
        try:
            value = float(given)
        except (TypeError, ValueError):
            value = float("nan")
        if value not in known:
            times = f"times are {listed((f'{t:g}' for t in known), 20)}"
            raise ConfigError("bad-value", f"{what} = {given!r} is no time of the transport", what, times)
        return value


def read_transport(adata: anndata.AnnData, key: str) -> Transport:
    """Return the transport written under a key.

    Raises
    ------
    ConfigError
        There is none.
    InputError
        The coordinates, times or cells are not those that it was made of.
    """
    settings, again = settings_of(adata, key), "ac.tl.transport(adata, time_key, ...)"
    if settings is None or "pairs" not in adata.uns[key]:
        raise ConfigError("no-transport", f"uns[{key!r}] holds no transport", "transport", f"run {again} first")
    if (missing := [name for name in (f"{key}_f", f"{key}_g") if name not in adata.obs]) != []:
        raise InputError("no-transport", f"obs has no {listed(missing)}", f"uns[{key!r}]", f"run {again} again")
    times = read_times(adata, settings["time_key"])
    coordinates, slot = read_coordinates(adata, "", settings["use_rep"])
    if fingerprint(coordinates, times) != settings["fingerprint"]:
        what = f"obsm[{slot!r}], the times or the cells are not those of the transport {key!r}"
        remedy = f"run {again} again, or restore what it was made of"
        raise InputError("other-latent", what, f"obsm[{slot!r}]", remedy)
    f, g = (adata.obs[f"{key}_{name}"].to_numpy(np.float64) for name in "fg")
    return Transport(settings, pd.DataFrame(adata.uns[key]["pairs"]), times, coordinates, f, g)


def labels_at(adata: anndata.AnnData, labels: str, cells: Array, times: Array) -> tuple[Array, list[str]]:
    """Return codes of the labels of some cells, and the names: those that occur, and ``other`` for cells without one.

    Raises
    ------
    ConfigError
        There is no such column.
    InputError
        None of the cells has a label.
    """
    column = obs_column(adata, labels, what="labels")
    here = column.iloc[cells]
    if here.isna().all():
        where = sorted(np.unique(times[column.notna().to_numpy()]))
        found = f"cells of time {listed((f'{t:g}' for t in where), 20)} have some" if where else "nor has any other"
        what = f"no cell of time {times[cells[0]]:g} has a label in obs[{labels!r}]; {found}"
        raise InputError("no-labels", what, f"obs[{labels!r}]", "ask for the fates at a time that has labels: at=")
    named = here.astype(object).where(here.notna(), "other").astype(str)
    order = [str(x) for x in column.cat.categories] if isinstance(column.dtype, pd.CategoricalDtype) else []
    present = set(named)
    names = [name for name in order if name in present] or sorted(present - {"other"})
    names += sorted(present - set(names))
    return named.map({name: code for code, name in enumerate(names)}).to_numpy(), names


def unknown_gene(genes: Sequence[str], var_names: Sequence[str]) -> ConfigError:
    """Return the error for genes that are not there."""
    return unknown_key(genes[0], list(var_names), where="genes (var_names)")

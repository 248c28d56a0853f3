"""Root cell for scanpy's pseudotime: by time, by velocity, or among labelled cells."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import anndata
import numpy as np
import pandas as pd
from natsort import natsorted

from anncoder.config import unknown_key
from anncoder.data.adata import obs_column
from anncoder.dynamics.populations.root import medoid, origins
from anncoder.errors import ConfigError, InputError, counted
from anncoder.tl.slots import target_of
from anncoder.tl.time_series.population_balance import latent_of
from anncoder.tl.time_series.populations import record_of, refuse_taken
from anncoder.tl.time_series.time_points import read_times
from anncoder.training.progress import announce

Array = np.ndarray[Any, np.dtype[np.float64]]

ROOT_CELLS, GRAPH = "root_cells", "velocity_graph"  # of scVelo
REMEDY = "give time_key='day', or velocities (scv.tl.velocity_graph), or label=('cell_type', 'HSC')"


class Found(NamedTuple):
    """A root and how it was found."""

    row: int
    source: str


def root(
    adata: anndata.AnnData,
    *,
    time_key: str | None = None,
    velocity: Literal["auto"] | bool = "auto",
    key: str = "ae",
    use_rep: str | None = None,
    label: tuple[str, Any] | None = None,
    key_added: str = "root",
    copy: bool = False,
) -> anndata.AnnData | None:
    """Choose the root cell of a trajectory, for ``sc.tl.dpt``.

    What is known best counts first. With times it is the most typical cell of the earliest time: the medoid of its
    cells in the latent, which has the smallest sum of distances to the others. Else, with velocities, the cell that
    most of the walks against them come to: scVelo's ``obs["root_cells"]``, or, without it, computed from its velocity
    graph. Else the medoid of the cells of a label. A label given beside times or velocities narrows the choice to its
    cells.

    Parameters
    ----------
    adata
        Cells.
    time_key
        Column of obs with times (numbers); None for no times.
    velocity
        Whether to use what scVelo wrote; "auto" for where it is there.
    key, use_rep
        The latent is ``obsm["X_{key}"]``, or ``obsm[use_rep]``.
    label
        Column of obs and value of the cells among which the root is.
    key_added
        Name of the record.
    copy
        Return a copy with the results instead of writing into ``adata``.

    Returns
    -------
    anndata.AnnData or None
        ``uns["iroot"]``, the row of the root, as ``sc.tl.dpt`` reads it; ``uns[key_added]`` with its name
        (``cell``) and how it was found (``source``).

    Raises
    ------
    ConfigError
        There is no such column, value or slot.
    InputError
        Nothing tells a root, or times, velocities or latent cannot be used.

    References
    ----------
    Bergen et al. 2020, doi:10.1038/s41587-020-0591-3 (velocity).
    """
    target = target_of(adata, copy=copy)
    refuse_taken(target, key_added)
    if velocity not in ("auto", True, False):
        raise ConfigError("bad-value", f"velocity = {velocity!r}", "velocity", "True, False or 'auto'")
    rep = f"X_{key}" if use_rep is None else use_rep
    allowed = _labelled(target, label)
    if time_key is not None:
        found = _by_time(target, time_key, allowed, rep)
    elif velocity is True or (velocity == "auto" and _has_velocity(target)):
        found = _by_velocity(target, allowed, rep)
    elif label is not None:
        found = Found(_typical(target, np.flatnonzero(allowed), rep), "")
    else:
        raise InputError("no-root", "nothing here tells a root", "time_key, velocity, label", REMEDY)
    of_label = f"obs[{label[0]!r}] == {label[1]!r}" if label is not None else ""
    source = ", ".join(filter(None, (found.source, of_label)))
    cell = str(target.obs_names[found.row])
    target.uns["iroot"] = found.row
    settings = {"time_key": time_key, "velocity": velocity, "rep": rep, "label": None if label is None else str(label)}
    target.uns[key_added] = {**record_of(settings), "cell": cell, "source": source}
    announce(f"root: {cell!r} (row {found.row:,}), by {source}; wrote uns['iroot']; next: sc.tl.dpt(adata)")
    return target if copy else None


def _labelled(adata: anndata.AnnData, label: Any) -> Array:
    if not adata.n_obs:
        raise InputError("too-few-cells", "there are no cells", "adata", "check the filters that ran before")
    if label is None:
        return np.ones(adata.n_obs, dtype=bool)
    if not isinstance(label, tuple | list) or len(label) != 2:
        raise ConfigError(
            "bad-value", f"label = {label!r}", "label", "a column of obs and a value: ('cell_type', 'HSC')"
        )
    texts = pd.Series(np.asarray(obs_column(adata, label[0], what="label"), dtype=object)).map(str).to_numpy()
    if str(label[1]) not in texts:
        raise unknown_key(label[1], natsorted(set(texts)), where=f"label (values of obs[{label[0]!r}])")
    chosen: Array = texts == str(label[1])
    return chosen


def _by_time(adata: anndata.AnnData, key: str, allowed: Array, rep: str) -> Found:
    times = read_times(adata, key, fewest=1)
    earliest = times[allowed].min()
    rows = np.flatnonzero(allowed & (times == earliest))
    source = f"the earliest time, obs[{key!r}] == {earliest:g} ({counted(len(rows), 'cell')})"
    return Found(_typical(adata, rows, rep), source)


def _typical(adata: anndata.AnnData, rows: Any, rep: str) -> int:
    return int(rows[0]) if len(rows) == 1 else int(rows[medoid(latent_of(adata, rep)[rows])])


def _has_velocity(adata: anndata.AnnData) -> bool:
    return ROOT_CELLS in adata.obs or GRAPH in adata.obsp or GRAPH in adata.uns


def _by_velocity(adata: anndata.AnnData, allowed: Array, rep: str) -> Found:
    scores, source = _velocity_scores(adata)
    scores = np.where(allowed, scores, -np.inf)
    best = np.flatnonzero(scores == scores.max())
    if not scores.max() > 0:
        what = f"no cell is a root by {source}"
        raise InputError("no-root", what, source, REMEDY)
    row = _typical(adata, best, rep) if rep in adata.obsm else int(best[0])
    return Found(row, source)


def _velocity_scores(adata: anndata.AnnData) -> tuple[Array, str]:
    if ROOT_CELLS in adata.obs:
        try:
            stored: Array = np.nan_to_num(np.asarray(adata.obs[ROOT_CELLS], dtype=np.float64), posinf=0, neginf=0)
        except (TypeError, ValueError):
            where = f"obs[{ROOT_CELLS!r}]"
            raise InputError("no-root", f"{where} holds no numbers", where, "scv.tl.terminal_states(adata)") from None
        if stored.max() > 0 or not (GRAPH in adata.obsp or GRAPH in adata.uns):
            return stored, f"scVelo's obs[{ROOT_CELLS!r}]"
    for name, slots in (("obsp", adata.obsp), ("uns", adata.uns)):
        if GRAPH in slots:
            return origins(slots[GRAPH]), f"a walk against the velocities of scVelo's {name}[{GRAPH!r}]"
    what = f"scVelo's obs[{ROOT_CELLS!r}], obsp[{GRAPH!r}] and uns[{GRAPH!r}] are not there"
    raise InputError("no-root", what, "velocity", REMEDY)

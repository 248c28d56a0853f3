"""Population dynamics in AnnData: times, coordinates and sizes checked, results in uns."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any, Literal

import anndata
import numpy as np
import pandas as pd

from anncoder.data.adata import obs_column
from anncoder.dynamics.populations.finite_volumes import centres, faces
from anncoder.dynamics.populations.population import Grid, Population, Snapshots
from anncoder.dynamics.populations.population_errors import bands, choose_smoothness, covariance, left_out, profile
from anncoder.errors import ConfigError, InputError, counted, listed
from anncoder.tl.slots import target_of
from anncoder.tl.time_series.time_points import read_times
from anncoder.training.progress import announce, logger

Array = np.ndarray[Any, np.dtype[np.float64]]

FEW_CELLS, FEWEST_TIMES = 10, 3
CURVE = 49  # times at which the fitted size is written
SIZE_ERROR = 0.05  # relative, of sizes without sd or replicates


def dynamics(
    adata: anndata.AnnData,
    time_key: str,
    coordinate: str,
    *,
    sizes: Any,
    knots_velocity: int = 7,
    knots_growth: int = 9,
    knots_diffusion: int = 1,
    n_grid: int = 200,
    smoothness: float | Literal["auto"] = "auto",
    key_added: str = "dynamics",
    copy: bool = False,
) -> anndata.AnnData | None:
    """Fit velocity, growth and diffusion along a coordinate to cells and population sizes at several times.

    The law is du/dt = d/ds( D(s) du/ds - v(s) u ) + g(s) u on [0, 1], without flux at the ends. Log v and g are linear
    between knots. It knows no branches, no rotations and no oscillations, and v, D and g do not change with time.
    Where few cells are v and g trade off: see the confidence bands.

    Parameters
    ----------
    adata
        Cells, (n_obs, ...).
    time_key
        Column of obs with the time of each cell, numbers; three different ones at least.
    coordinate
        Column of obs with numbers from 0 to 1, such as ``dpt_pseudotime``.
    sizes
        Size of the population at each time of the cells, on any scale: a mapping or Series ``time -> size``, the size
        a number or a sequence of replicates; or a table with the columns ``time``, ``size`` and, if it is known,
        ``sd`` (of the size, same unit), one row or several a time. Without replicates and sd an error of 5 % is taken.
    knots_velocity, knots_growth, knots_diffusion
        Numbers of knots; one knot is a constant.
    n_grid
        Finite volumes on [0, 1].
    smoothness
        Weight of the roughness of v, g and D; "auto" for that which best predicts times left out of the fit.
    key_added
        Name of the results.
    copy
        Return a copy with the results instead of writing into ``adata``.

    Returns
    -------
    anndata.AnnData or None
        ``uns[key_added]``: ``s`` (n_grid,), ``v``, ``g``, ``D`` with ``_low`` and ``_high`` of 95 % (per unit of
        time), ``sizes`` (measured and fitted; between the times
        ``curve_sizes`` at ``curve_times``), ``cdf_measured`` and ``cdf_fitted`` (n_times, n_grid - 1) at ``faces``,
        ``left_out`` (a table), ``profile`` of D, ``params_json``.

    Raises
    ------
    ConfigError
        There is no such column, a setting is out of range, sizes are missing, or the slot is the user's.
    InputError
        Times, coordinates or sizes cannot be used.

    References
    ----------
    Fischer et al. 2019, doi:10.1038/s41587-019-0088-0 (pseudodynamics); Scharfetter and Gummel 1969,
    doi:10.1109/T-ED.1969.16566 (fluxes).
    """
    target = target_of(adata, copy=copy)
    refuse_taken(target, key_added)
    grid = _grid(knots_velocity, knots_growth, knots_diffusion, n_grid, smoothness)
    data = snapshots(target, time_key, coordinate, sizes, fewest=max(knots_velocity, knots_growth))
    if smoothness == "auto":
        grid = grid._replace(smoothness=choose_smoothness(data, grid))
    fitted = Population(data, grid).fit()
    settings = {"time_key": time_key, "coordinate": coordinate, "smoothness": smoothness, **grid._asdict()}
    target.uns[key_added] = _record_of_dynamics(fitted, settings)
    announce(f"wrote uns[{key_added!r}]: v, g and D along {coordinate!r}; next: ac.pl.dynamics(adata)")
    return target if copy else None


def _times(adata: anndata.AnnData, time_key: str) -> Array:
    # of three time points or more
    times = read_times(adata, time_key, fewest=0)
    n_times = len(np.unique(times))
    if n_times < FEWEST_TIMES:
        what = f"{counted(n_times, 'time')} in obs[{time_key!r}]; population dynamics need {FEWEST_TIMES}"
        remedy = "of a single snapshot: ac.tl.balance (anncoder balance)"
        raise InputError("too-few-times", what, f"obs[{time_key!r}]", remedy)
    return times


def snapshots(adata: anndata.AnnData, time_key: str, coordinate: str, sizes: Any, *, fewest: int) -> Snapshots:
    """Return cells and sizes by time; ``fewest`` different coordinates are needed."""
    times = _times(adata, time_key)
    values = _coordinates(obs_column(adata, coordinate, what="coordinate"), coordinate, fewest)
    unique = np.unique(times)
    cells = [values[times == time] for time in unique]
    few = [f"{time:g} ({len(found)})" for time, found in zip(unique, cells, strict=True) if len(found) < FEW_CELLS]
    if few:
        logger.warning("few cells at time %s: the distribution there is uncertain", listed(few))
    return Snapshots(unique, cells, *log_sizes(sizes, unique))


def _coordinates(column: Any, key: str, fewest: int) -> Array:
    where = f"obs[{key!r}]"
    try:
        values: Array = np.asarray(column, dtype=np.float64)
    except (TypeError, ValueError):
        remedy = "name a column of numbers from 0 to 1, such as dpt_pseudotime"
        raise InputError("bad-coordinates", f"{where} holds no numbers", where, remedy) from None
    if n_bad := int((~np.isfinite(values)).sum()):
        what = f"{counted(n_bad, 'cell')} of {len(values):,} with no finite coordinate"
        remedy = "pseudotime is infinite in parts of the graph without the root: raise n_neighbors, or leave them out"
        raise InputError("bad-coordinates", what, where, remedy)
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 1:
        scaled = f"adata.obs[{key!r}] = (adata.obs[{key!r}] - {low:g}) / {high - low:g}"
        raise InputError("bad-coordinates", f"{where} goes from {low:g} to {high:g}, not from 0 to 1", where, scaled)
    distinct, counts = np.unique(values, return_counts=True)
    if len(distinct) < fewest:
        what = f"{where} has {counted(len(distinct), 'different value')}, fewer than there are knots ({fewest})"
        raise InputError("bad-coordinates", what, where, "name a continuous coordinate, or take fewer knots")
    if counts.max() > len(values) / 10:
        most = f"{counts.max():,} of {len(values):,}"
        tie = distinct[counts.argmax()]
        logger.warning("%s cells have the same %s (%g): ties look like cells that wait there", most, where, tie)
    return values


def log_sizes(sizes: Any, times: Array) -> tuple[Array, Array]:
    """Return logarithms of the sizes at some times, and their standard deviations, each (t,).

    Raises
    ------
    ConfigError
        There are no sizes.
    InputError
        They are not one a time or more, or no positive numbers.
    """
    if sizes is None:
        what = "without the sizes of the population growth is only known up to a constant"
        remedy = "sizes={time: size, ...} (--sizes FILE.csv with the columns time, size), of all times, on any scale"
        raise ConfigError("no-sizes", what, "sizes", remedy)
    table = _size_table(sizes)
    logs, errors, counts = [], [], []
    for time in times:
        rows = table[np.isclose(table["time"], time, rtol=1e-9, atol=1e-12)]
        if rows.empty:
            known = listed(f"{known:g}" for known in table["time"].unique())
            what = f"no size for time {time:g}; there are sizes for {known}"
            raise InputError("bad-sizes", what, "sizes", "give the size of the population at every time of the cells")
        values = np.log(rows["size"].to_numpy())
        logs.append(values.mean())
        counts.append(len(values))
        errors.append((rows["sd"] / rows["size"]).to_numpy() if "sd" in rows else values - values.mean())
    without = [time for time in table["time"] if not np.isclose(times, time, rtol=1e-9, atol=1e-12).any()]
    if without:
        what = f"sizes for time {listed(f'{time:g}' for time in without)}, at which there are no cells"
        raise InputError("bad-sizes", what, "sizes", "leave them out, or check the unit of the times")
    return np.array(logs), _size_errors(errors, np.array(counts), given="sd" in table)


def _size_errors(errors: list[Array], counts: Array, *, given: bool) -> Array:
    if given:
        return np.array([np.sqrt(np.square(error).mean()) for error in errors]) / np.sqrt(counts)
    freedom = int((counts - 1).sum())
    pooled = np.sqrt(sum(float(np.square(error).sum()) for error in errors) / freedom) if freedom else 0.0
    return np.full(len(counts), pooled if pooled > 0 else SIZE_ERROR) / np.sqrt(counts)


def _size_table(sizes: Any) -> pd.DataFrame:
    # columns time, size, perhaps sd: finite numbers, sizes and sd > 0
    remedy = "a table with the columns time and size (and sd), or a mapping {time: size}"
    if isinstance(sizes, pd.DataFrame):
        table = sizes
    elif isinstance(sizes, Mapping | pd.Series):
        rows = [(time, one) for time, size in sizes.items() for one in np.atleast_1d(np.asarray(size, dtype=object))]
        table = pd.DataFrame(rows, columns=["time", "size"])
    else:
        raise ConfigError("bad-value", f"sizes is a {type(sizes).__name__}", "sizes", remedy)
    if missing := [name for name in ("time", "size") if name not in table]:
        what = f"the table of sizes has no column {listed(missing)}, but {listed(table.columns) or 'none'}"
        raise InputError("bad-sizes", what, "sizes", remedy)
    table = table[[name for name in ("time", "size", "sd") if name in table]].apply(pd.to_numeric, errors="coerce")
    values = table.to_numpy(dtype=np.float64)
    if not np.isfinite(values).all() or not (values[:, 1:] > 0).all():
        raise InputError("bad-sizes", "a time is no number, or a size or sd no positive one", "sizes", remedy)
    return table.astype(np.float64)


def _grid(velocity: Any, growth: Any, diffusion: Any, n_grid: Any, smoothness: Any) -> Grid:
    for name, value, low, high in (
        ("knots_velocity", velocity, 1, 50),
        ("knots_growth", growth, 1, 50),
        ("knots_diffusion", diffusion, 1, 50),
        ("n_grid", n_grid, 20, 2000),
    ):
        refuse_not_whole(name, value, low, high)
    if smoothness != "auto":
        number = isinstance(smoothness, int | float) and not isinstance(smoothness, bool)
        if not (number and 0 < smoothness < 1e6):
            remedy = "a positive number, or 'auto'"
            raise ConfigError("bad-value", f"smoothness = {smoothness!r}", "smoothness", remedy)
    return Grid(n_grid, velocity, growth, diffusion, 1.0 if smoothness == "auto" else float(smoothness))


def refuse_not_whole(name: str, value: Any, low: int, high: int) -> None:
    """Raise a ConfigError unless a setting is a whole number within bounds."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not (whole and low <= value <= high):
        raise ConfigError("bad-value", f"{name} = {value!r}", name, f"a whole number from {low} to {high:,}")


def refuse_taken(adata: anndata.AnnData, key: Any, slots: Sequence[tuple[str, str]] = ()) -> None:
    """Raise a ConfigError if a name for results is none, or belongs to something that is not ours."""
    if not isinstance(key, str) or not key or "/" in key:
        raise ConfigError("bad-key", f"key_added = {key!r} is no name for a slot", "key_added", "a word")
    found = adata.uns.get(key)
    if isinstance(found, Mapping) and found.get("made_by") == "anncoder":
        return
    names = [f"uns[{key!r}]"] * (found is not None)
    names += [f"{where}[{name!r}]" for where, name in slots if name in getattr(adata, where)]
    if names:
        what = f"{listed(names)} exists and was not written by anncoder"
        raise ConfigError("key-taken", what, "key_added", "choose another key_added, or delete it")


def record_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what says in uns that results are ours, and how they were made."""
    return {"made_by": "anncoder", "version": version("anncoder"), "params_json": json.dumps(settings)}


def _record_of_dynamics(fitted: Population, settings: Mapping[str, Any]) -> dict[str, Any]:
    data, s, spread = fitted.data, centres(fitted.grid.n_grid), covariance(fitted)
    band, of_diffusion, times = bands(fitted, s, spread), profile(fitted, spread), data.times.tolist()
    curves = {
        "v": (fitted.velocity(s), band.velocity),
        "g": (fitted.growth(s), band.growth),
        "D": (fitted.diffusion(s), band.diffusion),
    }
    masses = fitted.masses(times)
    sizes = {
        "time": data.times,
        "size": np.exp(data.log_sizes),
        "log_sd": data.log_sd,
        "fitted": masses.sum(axis=1),
        "n_obs": np.array([len(cells) for cells in data.coordinates]),
    }
    errors = pd.DataFrame(left_out(fitted), columns=["time", "area", "null_area", "size_error", "null_size_error", "_"])
    return {
        **record_of(settings),
        "s": s,
        **{name: values for name, (values, _) in curves.items()},
        **{f"{name}_low": limits[0] for name, (_, limits) in curves.items()},
        **{f"{name}_high": limits[1] for name, (_, limits) in curves.items()},
        "sizes": _named_rows(pd.DataFrame(sizes)),
        **_size_curve(fitted),
        "density": masses * fitted.grid.n_grid,
        "faces": faces(fitted.grid.n_grid),
        "cdf_measured": np.stack([fitted.cdf_measured(i) for i in range(len(times))]),
        "cdf_fitted": fitted.cdfs(times),
        "left_out": _named_rows(errors.drop(columns="_")),
        "profile": {
            "D": of_diffusion.diffusion,
            "rise": of_diffusion.rise,
            "interval": np.array(of_diffusion.interval),
        },
        "theta": fitted.theta,
        "cost": fitted.cost,
    }


def _size_curve(fitted: Population) -> dict[str, Array]:
    # between the times, too
    times = np.unique(
        np.concatenate([np.linspace(fitted.data.times[0], fitted.data.times[-1], CURVE), fitted.data.times])
    )
    return {"curve_times": times, "curve_sizes": fitted.masses(times.tolist()).sum(axis=1)}


def _named_rows(table: pd.DataFrame) -> pd.DataFrame:
    # h5ad wants text in an index
    return table.set_axis(table.index.astype(str), axis=0)

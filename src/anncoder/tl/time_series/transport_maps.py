"""``tl.growth`` and ``tl.transport``: growth rates, transport between time points."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import anndata
import numpy as np
import pandas as pd
import torch

from anncoder.data.adata import genes_of, obs_column, read_matrix, resolve_layer
from anncoder.device import choose_device, memory_errors, threads_set
from anncoder.dynamics.transport.cost import Cost, median_cost
from anncoder.dynamics.transport.growth import factor_of_doubling_time, genes_of_species, growth_factor, score
from anncoder.dynamics.transport.metacells import solve_with_metacells
from anncoder.dynamics.transport.sinkhorn import Report, Solution, solve
from anncoder.errors import ConfigError, InputError, counted, listed
from anncoder.tl.slots import target_of
from anncoder.tl.time_series.time_points import read_coordinates, read_rates, read_times, warn_of_few, warn_of_large
from anncoder.tl.time_series.transport_record import as_record, fingerprint, refuse_taken, settings_of
from anncoder.training.progress import announce, bar

logger = logging.getLogger("anncoder")

Array = np.ndarray[Any, Any]

LEAST_EPSILON = 1e-4  # of the median cost: below it, Sinkhorn's iterations do not end
MANY_PAIRS = 4_000_000_000  # above it, and on a CPU, metacells: 63,000 x 63,000 cells, some minutes in full
METACELLS = 5_000  # a time point
UNEVEN = 5.0  # largest row sum over the median, from which on learned growth is noise
MOST_ITERATIONS = 3  # of growth
FEWEST = 10  # metacells


def growth(
    adata: anndata.AnnData,
    *,
    proliferation: Any = None,
    apoptosis: Any = None,
    genes: str | Mapping[str, Sequence[str]] = "human",
    layer: str | None = None,
    time_unit_hours: float = 24.0,
    rate: Any = None,
    doubling_time: Any = None,
    key_added: str = "growth",
    copy: bool = False,
) -> anndata.AnnData | None:
    """Write by what factor each cell is expected to multiply in a unit of time: the prior of :func:`transport`.

    From scores of proliferation and apoptosis, birth = 0.3 + 1.4 / (1 + exp(-8 (p - 0.25))) and death =
    0.3 + 1.4 / (1 + exp(-20 (q - 0.1))) a day, and the factor is exp(birth - death), from 0.25 to 4.06 a day. The
    constants were made for mouse cells in a dish; scores depend on which cells are in the AnnData.

    Parameters
    ----------
    adata
        Cells of all time points.
    proliferation, apoptosis
        Scores: a column of obs or an array, (n_obs,), about 0 for the average cell; None for the mean of z-scores of
        ``genes``, clipped to +-5.
    genes
        ``"human"`` or ``"mouse"`` for our lists, or a mapping with lists ``"proliferation"`` and ``"apoptosis"``.
    layer
        Expression for the scores; None and ``"X"`` for ``X``, ``"raw.X"`` for ``raw``. Whole numbers are taken as
        counts: log(1 + 10,000 x share).
    time_unit_hours
        Hours in a unit of the time column: 24 for days, 1 for hours.
    rate
        The factors, instead of scores: a column of obs, an array, (n_obs,), or a number.
    doubling_time
        Instead of scores, in units of time: as ``rate``.
    key_added
        Column of obs to write.
    copy
        Return a copy with the result and leave ``adata`` alone.

    Returns
    -------
    AnnData or None
        With ``copy=True`` the copy.

    Sets ``adata.obs[key_added]``, (n_obs,) float64, and the settings in ``adata.uns[key_added]``.

    Raises
    ------
    ConfigError
        A bad option, or no gene of the lists is in the data.
    InputError
        Rates that are not positive numbers.

    References
    ----------
    Schiebinger et al. 2019, doi 10.1016/j.cell.2019.01.006.
    """
    target = target_of(adata, copy=copy)
    refuse_taken(target, key_added, [("obs", key_added)], "growth")
    _check_unit(time_unit_hours)
    if rate is not None and doubling_time is not None:
        problem = "rate and doubling_time are both given"
        raise ConfigError("bad-value", problem, "doubling_time", "give one of them")
    settings: dict[str, Any] = {"function": "growth", "time_unit_hours": time_unit_hours}
    if rate is not None:
        factors, source = read_rates(target, rate, "rate"), "rate"
    elif doubling_time is not None:
        factors = factor_of_doubling_time(read_rates(target, doubling_time, "doubling_time"))
        source = "doubling_time"
    else:
        scores = _scores(target, proliferation, apoptosis, genes, layer)
        factors, source = growth_factor(*scores, unit_hours=time_unit_hours), "scores"
    warn_of_large(factors, f"obs[{key_added!r}]")
    target.obs[key_added] = factors
    target.uns[key_added] = as_record({**settings, "source": source})
    return target if copy else None


def _check_unit(hours: Any) -> None:
    if isinstance(hours, bool) or not isinstance(hours, int | float | np.number) or not 0 < hours < np.inf:
        remedy = "hours in a unit of time: 24 for days"
        raise ConfigError("bad-value", f"time_unit_hours = {hours!r}", "time_unit_hours", remedy)


def _scores(adata: anndata.AnnData, proliferation: Any, apoptosis: Any, genes: Any, layer: str | None) -> list[Array]:
    given = {"proliferation": proliferation, "apoptosis": apoptosis}
    lists = _gene_lists(genes) if proliferation is None or apoptosis is None else {}
    return [
        _given_score(adata, value, name) if value is not None else _score_of(adata, lists[name], name, layer)
        for name, value in given.items()
    ]


def _given_score(adata: anndata.AnnData, given: Any, name: str) -> Array:
    values = np.asarray(obs_column(adata, given, what=name) if isinstance(given, str) else given, np.float64)
    if values.shape != (adata.n_obs,) or not np.isfinite(values).all():
        what = f"{name} is not a finite number for each of {counted(adata.n_obs, 'cell')}"
        raise InputError("bad-growth", what, name, "give a column of obs, or an array of one score a cell")
    return values


def _gene_lists(genes: Any) -> Mapping[str, Sequence[str]]:
    if isinstance(genes, Mapping) and {"proliferation", "apoptosis"} <= set(genes):
        return genes
    if genes not in ("human", "mouse"):
        remedy = "genes='human', 'mouse', or {'proliferation': [...], 'apoptosis': [...]}"
        raise ConfigError("bad-value", f"genes = {genes!r}", "genes", remedy)
    return genes_of_species(genes)


def _score_of(adata: anndata.AnnData, names: Sequence[str], which: str, layer: str | None) -> Array:
    layer = resolve_layer(layer, list(adata.layers))
    known = genes_of(adata, layer)
    columns = np.flatnonzero(known.isin(list(names)))
    if not len(columns):
        wanted, there = listed(names, 3), listed(known, 3)
        other = {str(name).upper() for name in known} & {str(name).upper() for name in names}
        spelled = "the symbols are there in another case: choose genes='mouse' or genes='human'" if other else ""
        what = f"no gene of {which} is in the data: the list begins with {wanted}, the data with {there}"
        remedy = spelled or "give lists of your genes: genes={'proliferation': [...], 'apoptosis': [...]}, or scores"
        raise ConfigError("unknown-genes", what, "genes", remedy)
    matrix = read_matrix(adata, layer)
    chosen = matrix[:, columns].toarray().astype(np.float64)
    if (matrix.data == np.rint(matrix.data)).all():
        total = np.asarray(matrix.sum(axis=1, dtype=np.float64)).ravel()
        chosen = np.log1p(1e4 * chosen / np.maximum(total, 1)[:, None])
    return score(chosen)


class Settings(NamedTuple):
    """Options of a transport that the mathematics needs."""

    growth_iters: int = 1
    epsilon: float = 0.05
    lambda1: float = 1.0
    lambda2: float = 50.0
    max_cells: int | str | None = "auto"
    tolerance: float = 1e-6
    max_iter: int = 2000
    seed: int = 0

    def checked(self) -> Settings:
        """Return them; a ConfigError for one out of bounds."""
        bounds = {
            "growth_iters": (1, 100, "a whole number from 1 on; more than 3 chase noise"),
            "epsilon": (LEAST_EPSILON, 10, "in units of the median cost, from 1e-4 on: 0.05"),
            "lambda1": (1e-6, 1e8, "a positive number; larger keeps nearer to the growth given"),
            "lambda2": (1e-6, 1e8, "a positive number; larger keeps nearer to the cells measured"),
            "tolerance": (1e-12, 1, "a small positive number: 1e-6"),
            "max_iter": (1, 10**7, "a whole number from 1 on"),
            "seed": (0, 2**63, "a whole number from 0 on"),
        }
        for name, (least, most, remedy) in bounds.items():
            value = getattr(self, name)
            whole = name in ("growth_iters", "max_iter", "seed")
            right = isinstance(value, int | np.integer if whole else int | float | np.number)
            if isinstance(value, bool) or not right or not least <= value <= most:
                raise ConfigError("bad-value", f"{name} = {value!r}", name, remedy)
        cells = self.max_cells
        if cells not in (None, "auto") and (not isinstance(cells, int | np.integer) or int(cells) < FEWEST):
            remedy = f"a whole number from {FEWEST} on, 'auto', or None for all cells"
            raise ConfigError("bad-value", f"max_cells = {cells!r}", "max_cells", remedy)
        return self


def transport(
    adata: anndata.AnnData,
    time_key: str,
    *,
    key: str = "ae",
    use_rep: str | None = None,
    growth_key: str | None = "auto",
    growth_iters: int = 1,
    epsilon: float = 0.05,
    lambda1: float = 1.0,
    lambda2: float = 50.0,
    pairs: Sequence[tuple[float, float]] | None = None,
    batch_key: str | None = None,
    max_cells: int | str | None = "auto",
    tolerance: float = 1e-6,
    max_iter: int = 2000,
    device: str = "auto",
    seed: int = 0,
    progress: bool | None = None,
    key_added: str = "transport",
    copy: bool = False,
) -> anndata.AnnData | None:
    """Find which cells of a time point the cells of the one before become: unbalanced optimal transport.

    The cost of a pair of cells is their squared Euclidean distance over its median. Only two numbers a cell are kept,
    from which :func:`fates`, :func:`ancestors`, :func:`couple`... rebuild a plan; see the table of slots below.

    Parameters
    ----------
    adata
        Cells of at least two time points, with coordinates; only ``obs`` and ``obsm`` are read.
    time_key
        Column of obs with the times, numbers in one unit.
    key, use_rep
        Coordinates: ``obsm["X_{key}"]``, or another slot of obsm.
    growth_key
        Column of obs with the factor by which a cell multiplies in a unit of time; ``"auto"`` is what
        :func:`growth` wrote, if it was run; None for no prior.
    growth_iters
        Times to solve; after each but the last, the growth found replaces the prior. From the second on, single cells
        are fitted to noise.
    epsilon
        Entropic regularisation, in units of the median cost, at least 1e-4.
    lambda1, lambda2
        Penalties on growth that differs from the prior, and on cells of the later time that nobody becomes.
    pairs
        Times to connect, ``[(0, 1), (1, 3)]``; None for all consecutive ones. A time is the first of one pair at most,
        and the second of one.
    batch_key
        Column of obs with experimental batches: it is only said whether batches and times are the same.
    max_cells
        Metacells a time point, by k-means, between which to solve; None for all cells; ``"auto"`` is None up to 4e9
        pairs and on GPUs, else 5,000.
    tolerance, max_iter
        When to stop: largest change of a potential, over epsilon, in a sweep; and sweeps.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"``...
    seed
        Start of the random streams: of metacells, and of the cells from which the median cost is taken (above 2,000 a
        time point).
    progress
        True for a progress bar, False for silence, None for a bar in a terminal or a notebook.
    key_added
        Name under which results are written.
    copy
        Return a copy with the results and leave ``adata`` alone.

    Returns
    -------
    AnnData or None
        With ``copy=True`` the copy.

    Sets the following fields:

    ``adata.obs["{key_added}_f"]``, ``adata.obs["{key_added}_g"]`` : (n_obs,) float64
        Dual potentials of a cell as source of the next pair and as target of the one before, in units of the scaled
        cost; NaN where there is no such pair.
    ``adata.obs["{key_added}_growth"]`` : (n_obs,) float64
        Learned factor a unit of time, (row sum of T)^(1 / dt); NaN at the last time.
    ``adata.uns[key_added]`` : dict
        ``settings_json``, with a fingerprint of the coordinates; ``pairs``, a frame: times, numbers of cells, median
        cost, metacells, iterations, error, mass (descendants a cell), converged, seconds.

    Interrupted (Ctrl-C), it warns and keeps the pairs that are finished.

    Raises
    ------
    ConfigError
        A bad option, an unknown column or slot.
    InputError
        Times, coordinates or rates that cannot be used; the message has the remedy.

    References
    ----------
    Schiebinger et al. 2019, doi 10.1016/j.cell.2019.01.006; Chizat et al. 2018, doi 10.1090/mcom/3303.
    """
    target = target_of(adata, copy=copy)
    names = [("obs", f"{key_added}_{name}") for name in ("f", "g", "growth")]
    refuse_taken(target, key_added, names, "transport")
    settings = Settings(growth_iters, epsilon, lambda1, lambda2, max_cells, tolerance, max_iter, seed).checked()
    times = read_times(target, time_key)
    warn_of_few(times, f"obs[{time_key!r}]")
    x, slot = read_coordinates(target, key, use_rep)
    growth_key = _growth_key(target, growth_key)
    prior = None if growth_key is None else read_rates(target, growth_key, "growth_key")
    wanted = pairs_of(pairs, np.unique(times))
    _say_batches(target, batch_key, times)
    place = _device(device)
    work = _Work(x, times, prior, settings, place)
    found = _solve_all(work, wanted, progress)
    settings_record = {
        "function": "transport",
        "time_key": time_key,
        "use_rep": slot,
        "growth_key": growth_key,
        **settings._asdict(),
        "device": device,
        "fingerprint": fingerprint(x, times),
    }
    _write(target, key_added, work, found, settings_record)
    return target if copy else None


def _device(name: str) -> torch.device:
    device = choose_device(name)
    if device.type == "mps":
        what = "potentials are float64, which Apple's GPUs do not have"
        raise ConfigError("no-device", what, "device", "device='cpu'")
    return device


class _Work(NamedTuple):
    """What is to be transported."""

    x: Array  # (n_obs, d)
    times: Array  # (n_obs,)
    prior: Array | None  # (n_obs,) factor a unit of time
    settings: Settings
    device: torch.device


class _Pair(NamedTuple):
    """A pair that is solved."""

    t0: float
    t1: float
    scale: float
    metacells: int  # 0 for none
    solution: Solution


def _growth_key(adata: anndata.AnnData, asked: str | None) -> str | None:
    if asked != "auto" or "auto" in adata.obs:
        return asked
    return "growth" if settings_of(adata, "growth") is not None and "growth" in adata.obs else None


def pairs_of(pairs: Any, known: Array) -> list[tuple[float, float]]:
    """Return pairs of the known times in order; consecutive ones for None.

    Raises
    ------
    ConfigError
        They are no such pairs, or a time is the first, or the second, of several.
    """
    if pairs is None:
        return list(zip(known[:-1].tolist(), known[1:].tolist(), strict=True))
    try:
        wanted = sorted({(min(a, b), max(a, b)) for a, b in ((float(a), float(b)) for a, b in pairs)})
    except (TypeError, ValueError):
        raise ConfigError("bad-pairs", f"pairs = {pairs!r}", "pairs", "pairs of times: [(0, 1), (1, 2)]") from None
    unknown = sorted({time for pair in wanted for time in pair} - set(known.tolist()))
    times = listed((f"{time:g}" for time in known), 20)
    if not wanted or unknown:
        what = f"pairs name the times {listed(unknown)}, which no cell has" if unknown else "pairs names no times"
        raise ConfigError("bad-pairs", what, "pairs", f"times here: {times}")
    for side, name in ((0, "first"), (1, "second")):
        ends = [pair[side] for pair in wanted]
        twice = sorted({time for time in ends if ends.count(time) > 1})
        if twice or any(a == b for a, b in wanted):
            what = f"time {twice[0]:g} is the {name} of several pairs" if twice else "a pair is of one time"
            remedy = "run transport several times, each with another key_added"
            raise ConfigError("bad-pairs", what, "pairs", remedy)
    skipped = [(a, b) for a, b in wanted if ((known > a) & (known < b)).any()]
    if skipped or any(float(a) > float(b) for a, b in pairs):
        logger.warning("pairs go forward in time and may skip some: %s", listed(f"{a:g} to {b:g}" for a, b in wanted))
    return wanted


def _say_batches(adata: anndata.AnnData, batch_key: str | None, times: Array) -> None:
    if batch_key is None:
        return
    batches = obs_column(adata, batch_key, what="batch_key").astype(str)
    if (pd.Series(times, index=batches.index).groupby(batches).nunique() == 1).all():
        logger.warning(
            "every batch of obs[%r] is of one time: what the transport moves is differences between batches as much as "
            "between times",
            batch_key,
        )


def _solve_all(work: _Work, wanted: list[tuple[float, float]], progress: bool | None) -> list[_Pair]:
    found: list[_Pair] = []
    shown = None if progress is False else bar(len(wanted), "pair", always=progress is True)
    quiet = progress is False or (shown is not None and not shown.disable)
    try:
        with threads_set(None), memory_errors("transport"):
            for t0, t1 in wanted:
                found.append(_solve_pair(work, t0, t1, _follow(shown, t0, t1)))
                if shown is not None:
                    shown.update()
                if not quiet:
                    announce(_line(found[-1]))
    except KeyboardInterrupt:
        if not found:
            raise KeyboardInterrupt("interrupted before the first pair was solved: nothing was written") from None
        logger.warning("interrupted: %d of %d pairs are solved, and are written", len(found), len(wanted))
    finally:
        if shown is not None:
            shown.close()
    return found


def _follow(shown: Any, t0: float, t1: float) -> Report | None:
    if shown is None:
        return None
    return lambda iteration, error: shown.set_postfix_str(f"{t0:g}-{t1:g}: iteration {iteration}, error {error:.0e}")


def _line(pair: _Pair) -> str:
    s = pair.solution
    how = f"{s.iterations} iterations, error {s.error:.0e}, {s.seconds:.1f} s"
    return f"transport {pair.t0:g} to {pair.t1:g}: {how}, {s.growth.mean():.3f} descendants a cell"


def _solve_pair(work: _Work, t0: float, t1: float, report: Report | None) -> _Pair:
    settings = work.settings
    source, target = work.times == t0, work.times == t1
    x, y = work.x[source].astype(np.float64), work.x[target].astype(np.float64)
    scale = median_cost(x, y, settings.seed)
    if not scale > 0:
        what = f"half of the cells of time {t0:g} and {t1:g} have the same coordinates: the median cost is 0"
        raise InputError("bad-coordinates", what, "use_rep", "name coordinates in which cells differ")
    prior = None if work.prior is None else work.prior[source] ** (t1 - t0)
    limit = metacells_of(settings, len(x), len(y), work.device)
    options: dict[str, Any] = {
        name: getattr(settings, name) for name in ("lambda1", "lambda2", "growth_iters", "tolerance", "max_iter")
    }
    if limit:
        announce(f"transport {t0:g} to {t1:g}: {len(x):,} x {len(y):,} cells by {limit:,} metacells a time point")
        solution = solve_with_metacells(
            x, y, scale, settings.epsilon, prior, max_cells=limit, seed=settings.seed, device=work.device, **options
        )
    else:
        cost = Cost(x, y, scale, settings.epsilon, device=work.device)
        solution = solve(cost, prior, report=report, **options)
    _warn(t0, t1, solution, settings)
    return _Pair(t0, t1, scale, limit, solution)


def metacells_of(settings: Settings, n0: int, n1: int, device: torch.device) -> int:
    """Return the number of metacells a time point, 0 for all cells."""
    if settings.max_cells == "auto":
        return METACELLS if n0 * n1 > MANY_PAIRS and device.type == "cpu" else 0
    most = int(settings.max_cells or 0)
    return most if most < max(n0, n1) else 0


def _warn(t0: float, t1: float, solution: Solution, settings: Settings) -> None:
    if not solution.converged:
        logger.warning(
            "transport %g to %g: error %.0e after %d iterations, more than the tolerance: raise max_iter or epsilon",
            t0,
            t1,
            solution.error,
            solution.iterations,
        )
    ratio = solution.growth.max() / np.median(solution.growth)
    if ratio > UNEVEN or settings.growth_iters > MOST_ITERATIONS:
        logger.warning(
            "transport %g to %g: the most prolific cell has %.1f times the descendants of the median cell: the growth "
            "of single cells is noise, that of labels may be right; growth_iters=1 keeps nearer to the prior",
            t0,
            t1,
            ratio,
        )


def _rows(found: list[_Pair], times: Array) -> Iterator[dict[str, Any]]:
    for t0, t1, scale, metacells, s in found:
        n0, n1 = int((times == t0).sum()), int((times == t1).sum())
        sizes = {"t0": t0, "t1": t1, "n0": n0, "n1": n1, "median_cost": scale, "metacells": metacells}
        how = {"iterations": s.iterations, "error": s.error, "mass": float(s.growth.mean())}
        yield {**sizes, **how, "converged": bool(s.converged), "seconds": s.seconds}


def _write(adata: anndata.AnnData, key: str, work: _Work, found: list[_Pair], settings: dict[str, Any]) -> None:
    columns = {name: np.full(len(work.times), np.nan) for name in ("f", "g", "growth")}
    for t0, t1, _, _, solution in found:
        source, target = work.times == t0, work.times == t1
        columns["f"][source], columns["g"][target] = solution.f, solution.g
        columns["growth"][source] = solution.growth ** (1 / (t1 - t0))
    frame = pd.DataFrame(list(_rows(found, work.times)))
    frame.index = frame.index.astype(str)
    for name, values in columns.items():
        adata.obs[f"{key}_{name}"] = values
    adata.uns[key] = as_record(settings, pairs=frame)

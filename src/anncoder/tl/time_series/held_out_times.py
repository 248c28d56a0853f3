"""``tl.interpolate`` and ``tl.validate_transport``: cells between times, held-out times."""

from __future__ import annotations

import logging
from typing import Any

import anndata
import numpy as np
import pandas as pd

from anncoder.data.adata import obs_column
from anncoder.device import threads_set
from anncoder.dynamics.transport import validation
from anncoder.dynamics.transport.cost import Cost, median_cost
from anncoder.dynamics.transport.plans import Plan
from anncoder.dynamics.transport.sinkhorn import solve
from anncoder.dynamics.transport.validation import Triplet, held_out, sentence, verdict
from anncoder.errors import ConfigError, InputError, listed
from anncoder.tl.slots import target_of
from anncoder.tl.time_series.time_points import read_rates, whole_number
from anncoder.tl.time_series.transport_record import Transport, as_record, device_here, read_transport, refuse_taken
from anncoder.training.progress import announce, bar

logger = logging.getLogger("anncoder")

Array = np.ndarray[Any, Any]


def interpolate(
    adata: anndata.AnnData, t: float, *, transport: str = "transport", n: int = 1000, seed: int = 0
) -> Array:
    """Return cells at a time between two time points, drawn through the plan.

    A cell i with g_i descendants at t1 has g_i^s at the fraction s of the interval: pairs are drawn in proportion to
    T_ij g_i^(s - 1), and put at (1 - s) x_i + s y_j, on a straight line.

    Parameters
    ----------
    adata
        Cells with a transport, see :func:`transport`.
    t
        Between the times of a pair.
    transport
        Name of the transport.
    n
        Cells to draw, systematically: equal steps along the cumulative weights.
    seed
        Start of the random stream.

    Returns
    -------
    array
        (n, d) float64, coordinates as those of the transport.

    Raises
    ------
    ConfigError
        There is no transport, or no pair with this time inside.
    InputError
        The coordinates are not those of the transport.
    """
    record = read_transport(adata, transport)
    n, seed = _whole(n, "n"), whole_number(seed, "seed", 0, "a whole number from 0 on")
    pairs = list(zip(record.pairs["t0"], record.pairs["t1"], strict=True))
    inside = [pair for pair in pairs if _is_between(t, *pair)]
    if not inside:
        known = listed((f"{a:g} to {b:g}" for a, b in pairs), 20)
        raise ConfigError("bad-value", f"t = {t!r} is in no pair of the transport", "t", f"pairs are {known}")
    t0, t1 = inside[0]
    x, y = (record.coordinates[record.cells(time)].astype(np.float64) for time in (t0, t1))
    rng = np.random.default_rng([seed, 43])
    return validation.interpolate(record.plan(t0, t1), x, y, (float(t) - t0) / (t1 - t0), n, rng)


def _is_between(t: Any, t0: float, t1: float) -> bool:
    return isinstance(t, int | float | np.number) and bool(t0 <= t <= t1)


def _whole(value: Any, name: str) -> int:
    return whole_number(value, name, 1, "a whole number from 1 on")


def validate_transport(
    adata: anndata.AnnData,
    *,
    transport: str = "transport",
    batch_key: str | None = None,
    n: int = 1000,
    n_seeds: int = 12,
    seed: int = 0,
    progress: bool | None = None,
    key_added: str = "transport_validation",
) -> pd.DataFrame:
    """Test a transport on time points held out: of three consecutive times, the middle one from the other two.

    Six guesses are compared with the cells of the middle time, in the 2-Wasserstein distance W2 and the energy
    distance E: I, through the plan of the outer times; R, between random pairs; Rg, the same with growth; F and L, the
    cells of the first and the last time; P, other cells of the middle time. Averages of independent cells have half
    the variance and are near a small sample: W2 below P is shrinkage, not skill. A win is a win only in both distances.

    Parameters
    ----------
    adata
        Cells with a transport of at least three times, whose settings are used: see :func:`transport`.
    transport
        Name of the transport.
    batch_key
        Column of obs with experimental batches: P is then between the largest batch of the middle time and the others.
        None for random halves, which are smaller samples, and farther from each other.
    n
        Cells to draw for I, R and Rg; rounded up to a multiple of the cells of the middle time.
    n_seeds, seed
        Repetitions, at least 2, and start of the random streams. Fewer than about ten are too few to tell.
    progress
        True for a progress bar, False for silence, None for a bar in a terminal or a notebook.
    key_added
        Slot of uns to write the table to.

    Returns
    -------
    DataFrame
        A row a triplet and guess: ``triplet``, ``guess``, ``W2``, ``W2_sd``, ``E``, ``E_sd`` (standard deviations over
        seeds), ``verdict``: "win", "tie" or "loss" of I against R, Rg, F and L, by more than 3 standard deviations.

    Sets ``adata.uns[key_added]``: ``table``, ``sentences``, ``settings_json``.

    Raises
    ------
    ConfigError
        There is no transport, or a bad option.
    InputError
        There are fewer than three times, or the coordinates are not those of the transport.
    """
    target = target_of(adata, copy=False)
    refuse_taken(target, key_added, [], "validate_transport")
    record = read_transport(target, transport)
    counts = _whole(n, "n"), whole_number(n_seeds, "n_seeds", 2, "at least 2: 12"), whole_number(seed, "seed", 0, "0")
    times = np.unique(record.times)
    if len(times) < 3:
        what = f"there are {len(times)} times; one in the middle is to be held out"
        raise InputError("bad-times", what, f"obs[{record.settings['time_key']!r}]", "three time points or more")
    batches = None if batch_key is None else obs_column(target, batch_key, what="batch_key").astype(str).to_numpy()
    prior_key = record.settings["growth_key"]
    prior = None if prior_key is None else read_rates(target, prior_key, "growth_key")
    frames, sentences = [], []
    shown = None if progress is False else bar(len(times) - 2, "triplet", always=progress is True)
    with threads_set(None):
        for triple in zip(times[:-2], times[1:-1], times[2:], strict=True):
            name, table = _tested(record, triple, prior, batches, *counts)
            frames.append(table.assign(triplet=name, verdict=verdict(table)))
            sentences.append(sentence(name, table))
            if shown is not None:
                shown.update()
            if progress is not False:
                announce(sentences[-1])
    if shown is not None:
        shown.close()
    frame = pd.concat(frames).rename_axis("guess").reset_index()
    frame = frame[["triplet", "guess", "W2", "W2_sd", "E", "E_sd", "verdict"]]
    settings: dict[str, Any] = {"function": "validate_transport", "transport": transport, "batch_key": batch_key}
    settings |= dict(zip(("n", "n_seeds", "seed"), counts, strict=True))
    stored = frame.set_axis(frame.index.astype(str))
    target.uns[key_added] = as_record(settings, table=stored, sentences=np.array(sentences, dtype=str))
    return frame


def _tested(
    record: Transport, triple: tuple[float, ...], prior: Array | None, batches: Array | None, *counts: int
) -> tuple[str, pd.DataFrame]:
    """Return the name of a triplet, and the table of its guesses."""
    first, middle, last = (record.cells(time) for time in triple)
    x, z, y = (record.coordinates[cells].astype(np.float64) for cells in (first, middle, last))
    options, span = record.settings, float(triple[2] - triple[0])
    cost = Cost(x, y, median_cost(x, y, options["seed"]), options["epsilon"], device=device_here(options))
    named = {name: options[name] for name in ("lambda1", "lambda2", "growth_iters", "tolerance", "max_iter")}
    solution = solve(cost, None if prior is None else prior[first] ** span, **named)
    replicate, held = _replicate(z, None if batches is None else batches[middle])
    triplet = Triplet(x, held, y, float(triple[1] - triple[0]) / span, replicate)
    n, n_seeds, seed = counts
    table = held_out(triplet, Plan(cost, solution.f, solution.g), n=n, n_seeds=n_seeds, seed=seed)
    return ", ".join(f"{time:g}" for time in triple), table


def _replicate(cells: Array, batches: Array | None) -> tuple[Array | None, Array]:
    """Return other cells of a time, of the smaller batches, and those to compare with, of the largest one."""
    if batches is None or len(np.unique(batches)) < 2:
        return None, cells
    names, sizes = np.unique(batches, return_counts=True)
    largest = batches == names[sizes.argmax()]
    return cells[~largest], cells[largest]

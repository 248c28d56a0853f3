"""``tl.gene_relations``: one gene against many, in the same cells or in their descendants."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import anndata
import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix, issparse

from anncoder.config import unknown_key
from anncoder.data.adata import obs_column
from anncoder.dynamics.genes.dremi import NOT_FINITE, TIES, why_not
from anncoder.dynamics.genes.relations import (
    LEVEL,
    Pair,
    Scores,
    Shuffles,
    correlation_with,
    descendants_of,
    directed,
    dremi_with,
    joined,
    neighbor_average,
    rank_correlation,
    shuffles_of,
    significance,
)
from anncoder.dynamics.transport.fates import pulled_back
from anncoder.errors import ConfigError, InputError, counted, listed
from anncoder.tl.expression import (
    DENOISED,
    Expression,
    given,
    measured,
    names_given,
    record_of,
    refuse_no_cells,
    refuse_no_name,
    refuse_not_finite,
    refuse_taken,
)
from anncoder.tl.slots import target_of
from anncoder.tl.time_series.time_points import read_times
from anncoder.tl.time_series.transport_record import Transport, read_transport, settings_of
from anncoder.training.progress import bar

logger = logging.getLogger("anncoder")

Array = np.ndarray[Any, Any]

FEWEST = 50  # cells
BLOCK = 1 << 22  # values of a block of genes
GENES = 256  # in a block, at most
KEY = "relations"
SMOOTH = "give denoised or smoothed values: ac.tl.denoise(adata, model), then layer='ae_denoised' (--layer ae_denoised)"


class Request(NamedTuple):
    """Checked arguments of :func:`gene_relations` that all steps need."""

    source: str
    names: pd.Index  # of the targets
    n_shuffles: int
    threads: int | None
    seed: int
    progress: bool | None


def gene_relations(
    adata: anndata.AnnData,
    source: str,
    target: str | Sequence[str] | None = None,
    *,
    layer: str | None = None,
    method: Literal["dremi", "lagged"] = "dremi",
    key: str = "ae",
    use_rep: str | None = None,
    n_neighbors: int | None = 15,
    counts: str | None = None,
    measure: Literal["dremi", "correlation"] = "dremi",
    transport: str = "transport",
    time_key: str | None = None,
    times: tuple[float, float] | None = None,
    groups: str | None = None,
    n_shuffles: int = 20,
    threads: int | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> pd.DataFrame:
    """Score one gene against others by DREMI, with shuffles as null; or against their expression in the descendants.

    DREMI (kNN-DREMI, in bits) is the dependence of the target on the source with all levels of the source of equal
    weight. On denoised values it measures the network as much as the cells: a decoder makes relations between genes
    that have none (``anncoder.evaluate(guard=True)`` counts them). So the same score of the measured values, averaged
    over neighbours in the latent, stands beside it, with a null of its own: the source is permuted before it is
    averaged. The null of the layer permutes cells that are not exchangeable, such as those of one cell type: it tells
    how large a score is by chance alone, not that a relation is more than one of cell types.

    A lagged relation is that of the source at one time with the target in the descendants of the same cells at the
    next. It is an association, not a cause: whatever comes before both, such as the state of the cell, makes one too.
    Expected expression is an average over descendants, and smoother than that of single cells.

    Parameters
    ----------
    adata
        Cells, (n_obs, n_vars).
    source
        Name of the gene that the others are scored against.
    target
        Names of other genes; None for all.
    layer
        Layer with smooth values, (n_obs, n_vars); None for ``layers["{key}_denoised"]``. Denoised counts of ours are
        scaled to the median library size and logged; other values are taken as they are. Raw counts are refused.
    method
        ``"dremi"`` for the same cells, ``"lagged"`` for descendants.
    key
        Name of the model's results.
    use_rep
        Slot of obsm in which neighbours are sought; None for ``"X_{key}"``.
    n_neighbors
        Cells that measured values are averaged over, the cell itself included; None leaves this second score out.
    counts
        Where measured values are, counts or logged; None for the layer of the fit.
    measure
        Of lagged relations: ``"dremi"``, or ``"correlation"`` for the partial rank correlation of source and
        descendants given the target's present value (absolute value).
    transport
        Of lagged relations: what :func:`transport` wrote; or slot of obsp with the descendants of each cell, a sparse
        (n_obs, n_obs) matrix whose entry (i, j) is the share of cell j among the descendants of i.
    time_key
        Of lagged relations: obs column of times; None for that of the transport.
    times
        Of lagged relations: the earlier and the later time; None for all pairs of the transport, together.
    groups
        Of lagged relations: obs column of labels. The null permutes the source within a time and label.
    n_shuffles
        Shuffles of the source for each target, at least 5. No p is below 1 / (1 + shuffles of all targets): for few
        targets take 100 or more.
    threads
        At most so many genes at a time; None for one a CPU. Results do not depend on it.
    seed
        Start of the shuffles.
    progress
        True for a progress bar, False for silence, None for a bar in a terminal or a notebook.

    Returns
    -------
    pandas.DataFrame
        A row a target, the strongest first. ``score`` (bits; or absolute correlation), ``correlation`` (Spearman's,
        for the sign), ``null_mean``, ``null_sd``, ``z``, ``p`` (empirical, from the shuffles of all targets together),
        ``q`` (Benjamini-Hochberg), ``reason`` (why there is no score, or none of the averages; else empty). Of
        ``"dremi"`` also ``smoothed``, the score of neighbour averages, with ``smoothed_null_mean``,
        ``smoothed_null_sd``, ``smoothed_z``, ``smoothed_p``, ``smoothed_q``. Of ``"lagged"`` also ``lag0`` and
        ``lag0_z`` (the same score within the earlier cells; of correlations not partial) and ``directed``: stronger
        than at lag 0, in bits and in z, and above 99 % of the null.

    Sets the following field:

    ``adata.uns["relations"]`` : dict
        ``table`` (the frame) and ``params_json``.

    Raises
    ------
    ConfigError
        An unknown gene, slot or column, or a value out of range.
    InputError
        Raw counts or other tied values, a constant source, fewer than 50 cells, no latent, times or transport that
        cannot be used.

    References
    ----------
    Krishnaswamy et al. 2014, doi 10.1126/science.1250689; van Dijk et al. 2018, doi 10.1016/j.cell.2018.05.061.
    """
    settings: dict[str, Any] = {
        "source": source,
        "method": method,
        "layer": layer,
        "key": key,
        "n_shuffles": n_shuffles,
        "seed": seed,
    }
    _refuse_settings(adata, key, method, measure, n_shuffles, threads, seed)
    expression = _smooth_values(adata, layer, key)
    request = Request(source, _targets(expression, source, target), n_shuffles, threads, seed, progress)
    if method == "dremi":
        average = None if n_neighbors is None else neighbor_average(*_latent(adata, use_rep, key, n_neighbors))
        settings |= {"n_neighbors": n_neighbors, "counts": counts, "use_rep": use_rep}
        table = _now(adata, request, expression, average, counts, key)
    else:
        pairs, strata = _pairs(adata, transport, time_key, times, groups)
        settings |= {"measure": measure, "transport": transport, "times": times, "groups": groups}
        table = _lagged(request, expression, pairs, strata, measure)
    result = table.sort_values(["score"], ascending=False, kind="stable", na_position="last")
    target_of(adata, copy=False).uns[KEY] = {"table": result, "params_json": json.dumps(settings, default=float)}
    return result


def _refuse_settings(adata: Any, key: Any, method: Any, measure: Any, n_shuffles: Any, threads: Any, seed: Any) -> None:
    refuse_no_cells(adata)
    refuse_no_name(key, "key")
    for name, value, allowed in (
        ("method", method, ("dremi", "lagged")),
        ("measure", measure, ("dremi", "correlation")),
    ):
        if value not in allowed:
            remedy = " or ".join(map(repr, allowed))
            raise ConfigError("bad-value", f"{name} = {value!r}", name, remedy)
    for name, value, low, high in (
        ("n_shuffles", n_shuffles, 5, 1000),
        ("threads", 1 if threads is None else threads, 1, 1024),
        ("seed", seed, 0, 2**32 - 1),
    ):
        whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
        if not whole or not low <= value <= high:
            raise ConfigError("bad-value", f"{name} = {value!r}", name, f"a whole number from {low} to {high:,}")
    refuse_few(adata.n_obs)
    refuse_taken(adata, KEY)


def refuse_few(n_obs: int) -> None:
    """Raise an InputError for fewer cells than a density can be estimated from."""
    if n_obs < FEWEST:
        what = f"{counted(n_obs, 'cell')}: densities need at least {FEWEST}"
        raise InputError("too-few-cells", what, "adata", "give more cells, or put several times together")


def _smooth_values(adata: anndata.AnnData, layer: str | None, key: str) -> Expression:
    owner = layer.removesuffix(DENOISED) if isinstance(layer, str) else key
    if owner != layer and owner != key and record_of(adata, owner) is not None:
        what = f"layer = {layer!r} is of the model {owner!r}, and the latent and the counts asked for are of {key!r}"
        raise ConfigError("bad-value", what, "layer", f"key={owner!r} (--set key={owner})")
    expression = given(adata, layer, key)
    if expression.kind == "counts":
        what = f"{expression.slot} holds raw counts: most cells share their few values, and ties have no density"
        raise InputError("tied-values", what, expression.slot, SMOOTH)
    return expression


def _targets(expression: Expression, source: Any, target: str | Sequence[str] | None) -> pd.Index:
    genes = expression.genes
    wanted = None if target is None else names_given(target, "target")
    for gene, where in ((source, "source"), *((gene, "target") for gene in wanted or ())):
        if not isinstance(gene, str) or gene not in genes:
            raise unknown_key(gene, list(genes.astype(str)), where=f"{where} (a gene of var_names)")
    names = genes[genes != source] if wanted is None else pd.Index(dict.fromkeys(wanted))
    if not len(names):
        raise ConfigError("bad-value", "there is no target", "target", "name other genes, or none for all of them")
    return names


def source_values(expression: Expression, gene: str) -> Array:
    """Return the source, (n,), or raise an InputError that says why nothing can be scored against it."""
    values = expression.columns(expression.genes.get_indexer([gene]))[:, 0]
    refuse_unfit(values, gene, expression.slot)
    return values


def refuse_unfit(values: Array, gene: str, slot: str) -> None:
    """Raise an InputError if the (n,) values of a source have no density."""
    reason, where = why_not(values), f"{slot}, gene {gene!r}"
    if reason == NOT_FINITE:
        refuse_not_finite(values[:, None], [gene], slot)
    if reason == TIES:
        remedy = "choose a source that more cells express, or values of a model: ac.tl.denoise(adata, model)"
        raise InputError("tied-values", f"{reason} of {gene!r}: ties have no density", where, remedy)
    if reason:
        what = f"{gene!r} has the value {values[0]:g} in all {len(values):,} cells"
        raise InputError("constant-gene", what, where, "choose a source that varies between these cells")


def _latent(adata: anndata.AnnData, use_rep: str | None, key: str, n_neighbors: Any) -> tuple[Array, int]:
    slot = f"X_{key}" if use_rep is None else use_rep
    if slot not in adata.obsm:
        what = f"there is no obsm[{slot!r}] to find neighbours in"
        remedy = "ac.tl.embed(adata, model); or use_rep='X_pca' (--set use_rep=X_pca); or n_neighbors=None (--set "
        raise InputError("no-results", what, f"obsm[{slot!r}]", f"{remedy}n_neighbors=null) for the layer alone")
    latent = np.asarray(adata.obsm[slot], dtype=np.float64)
    if latent.ndim != 2 or not np.isfinite(latent).all():
        what = f"obsm[{slot!r}] is not a matrix of finite numbers"
        raise InputError("bad-coordinates", what, f"obsm[{slot!r}]", "embed the cells anew: ac.tl.embed(adata, model)")
    whole = isinstance(n_neighbors, int | np.integer) and not isinstance(n_neighbors, bool)
    if not whole or not 2 <= n_neighbors <= adata.n_obs:
        remedy = f"a whole number from 2 to {adata.n_obs:,}, or None"
        raise ConfigError("bad-value", f"n_neighbors = {n_neighbors!r}", "n_neighbors", remedy)
    return latent, int(n_neighbors)


def _blocks(request: Request, n_obs: int) -> Iterator[pd.Index]:
    # names of the targets, a block at a time
    size = max(1, min(GENES, BLOCK // n_obs))
    shown = bar(len(request.names), "gene", always=request.progress is True) if request.progress is not False else None
    for start in range(0, len(request.names), size):
        names = request.names[start : start + size]
        yield names
        if shown is not None:
            shown.update(len(names))
    if shown is not None:
        shown.close()


def _now(
    adata: anndata.AnnData,
    request: Request,
    expression: Expression,
    average: csr_matrix | None,
    counts: str | None,
    key: str,
) -> pd.DataFrame:
    x = source_values(expression, request.source)
    measure = dremi_with(x, shuffles_of(x, request.n_shuffles, request.seed), request.threads)
    beside = None if average is None else smoothed_with(measured(adata, counts, key), average, request)
    scores, smoothed, signs = [], [], []
    for names in _blocks(request, adata.n_obs):
        places = expression.genes.get_indexer(names)
        values = expression.columns(places)
        refuse_not_finite(values, names, expression.slot)
        scores.append(measure(values, places))
        signs.append(rank_correlation(x, values))
        if beside is not None:
            smoothed.append(beside(names))
    table = _table(request.names, joined(scores), np.concatenate(signs))
    if smoothed:
        found = joined(smoothed)
        table["smoothed"] = found.score
        without = (table["reason"] == "") & np.array([bool(reason) for reason in found.reason])
        table.loc[without, "reason"] = [f"averages: {why}" for why in np.array(found.reason, object)[without]]
        for name, column in significance(found)._asdict().items():
            table[f"smoothed_{name}"] = column
    return table


def smoothed_with(values: Expression, average: csr_matrix, request: Request) -> Callable[[pd.Index], Scores]:
    """Return DREMI of neighbour averages: a function of the names of the targets.

    The null permutes the measured source, and averages it then: averages of neighbours are alike, permuted ones too.
    """
    names = values.genes.get_indexer([request.source])
    if names[0] < 0 or why_not(x := average @ (alone := values.columns(names)[:, 0])):
        nothing = f"the neighbour averages of {request.source!r} in {values.slot} cannot be scored"
        return lambda names: _none(len(names), request.n_shuffles, nothing)
    shuffles = shuffles_of(alone, request.n_shuffles, request.seed)
    averaged = Shuffles(average @ shuffles.values, shuffles.n, shuffles.seed)
    measure = dremi_with(x, averaged, request.threads)

    def beside(names: pd.Index) -> Scores:
        places = values.genes.get_indexer(names)
        found = average @ values.columns(np.maximum(places, 0))
        return measure(np.where(places >= 0, found, np.nan), places)

    return beside


def _none(m: int, n_shuffles: int, reason: str) -> Scores:
    return Scores(np.full(m, np.nan), np.full((m, n_shuffles), np.nan), [reason] * m)


def _table(names: pd.Index, found: Scores, signs: Array) -> pd.DataFrame:
    by_chance = significance(found)._asdict()
    columns = {"score": found.score, "correlation": np.where(np.isfinite(found.score), signs, np.nan)} | by_chance
    index = pd.Index(names.astype(str), name="gene")
    return pd.DataFrame(columns, index=index).assign(reason=pd.array(found.reason, dtype=object))


def _lagged(request: Request, expression: Expression, pairs: list[Pair], strata: Array, measure: str) -> pd.DataFrame:
    rows = np.concatenate([pair.sources for pair in pairs])
    alive = np.isfinite(descendants_of(pairs, np.ones((len(strata), 1)))[:, 0])
    refuse_few(int(alive.sum()))
    x = source_values(expression, request.source)[rows][alive]
    refuse_unfit(x, request.source, f"{expression.slot}, earlier cells")
    shuffles = shuffles_of(x, request.n_shuffles, request.seed, strata[rows][alive])
    if (total := len(request.names) * request.n_shuffles) * LEVEL < 1:
        logger.warning("%d shuffles in all cannot show that a relation is directed: take n_shuffles=100", total)
    later, now, signs = [], [], []
    dremi = dremi_with(x, shuffles, request.threads) if measure == "dremi" else None
    correlation = correlation_with(x, shuffles)
    for names in _blocks(request, len(strata)):
        places = expression.genes.get_indexer(names)
        values = expression.columns(places)
        refuse_not_finite(values, names, expression.slot)
        expected, present = descendants_of(pairs, values)[alive], values[rows][alive]
        later.append(correlation(expected, places, present) if dremi is None else dremi(expected, places))
        now.append(correlation(present, places, None) if dremi is None else dremi(present, places))
        signs.append(rank_correlation(x, expected))
    return _lagged_table(request.names, joined(later), joined(now), np.concatenate(signs))


def _lagged_table(names: pd.Index, later: Scores, now: Scores, signs: Array) -> pd.DataFrame:
    by_chance, now_by_chance = significance(later), significance(now)
    table = _table(names, later, signs)
    reason = table.pop("reason")
    found = directed(later, by_chance, now, now_by_chance)
    return table.assign(lag0=now.score, lag0_z=now_by_chance.z, directed=found, reason=reason)


def _pairs(
    adata: anndata.AnnData, transport: str, time_key: str | None, times: Any, groups: str | None
) -> tuple[list[Pair], Array]:
    # pairs of times, and the time and label of each cell as a code
    when, record = times_of(adata, time_key, transport), _record(adata, transport)
    known = np.unique(when)
    if len(known) < 2:
        what = f"all cells are of one time, {known[0]:g}"
        raise InputError("too-few-times", what, "time_key", "give cells of at least two times")
    if record is not None and not np.array_equal(when, record.times):
        what = f"obs[{time_key!r}] has other times than the transport {transport!r}, of {record.settings['time_key']!r}"
        raise ConfigError("bad-value", what, "time_key", "leave time_key out")
    if times is not None:
        asked = [_two(times, known)]
    else:
        solved = () if record is None else zip(record.pairs["t0"], record.pairs["t1"], strict=True)
        asked = list(solved) or list(pairwise(known))
    if record is None:
        pairs = [_descendants_of(adata, transport, t0, t1, when) for t0, t1 in asked]
    else:
        pairs = [_rebuilt(record, t0, t1) for t0, t1 in asked]
    labels = np.zeros(adata.n_obs) if groups is None else pd.factorize(obs_column(adata, groups, what="groups"))[0]
    return pairs, np.unique(np.column_stack([when, labels]), axis=0, return_inverse=True)[1].ravel()


def _record(adata: anndata.AnnData, transport: str) -> Transport | None:
    # of tl.transport; None where descendants are in obsp
    found = settings_of(adata, transport)
    return read_transport(adata, transport) if found is not None and found.get("function") == "transport" else None


def _rebuilt(record: Transport, t0: float, t1: float) -> Pair:
    """Return the cells of two times, with the way back along the plans of the pairs between them."""
    plans = record.plans(t0, t1)
    sums = pulled_back(plans, np.ones(plans[-1].shape[1]))[0]

    def pull_back(values: Array) -> Array:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(pulled_back(plans, values)[0] / sums[:, None])

    return Pair(record.cells(t0), record.cells(t1), pull_back)


def _two(times: Any, known: Array) -> tuple[float, float]:
    given = list(times) if isinstance(times, Sequence) and not isinstance(times, str) else []
    if len(given) != 2 or not all(time in known for time in given) or not given[0] < given[1]:
        remedy = f"an earlier and a later one of {listed([f'{time:g}' for time in known], 10)}"
        raise ConfigError("bad-value", f"times = {times!r}", "times", remedy)
    return float(given[0]), float(given[1])


def times_of(adata: anndata.AnnData, time_key: str | None, transport: str = "transport") -> Array:
    """Return the time of each cell, (n_obs,) float64; without a column, of the one that the transport was made with.

    Raises
    ------
    ConfigError
        There is no such column, or none is known.
    InputError
        It cannot be one axis of time.
    """
    if time_key is None:
        known = settings_of(adata, transport) or adata.uns.get(transport)
        time_key = known.get("time_key") if isinstance(known, Mapping) else None
    if time_key is None:
        raise ConfigError("bad-value", "time_key is missing", "time_key", "time_key='day': an obs column of numbers")
    return read_times(adata, time_key, fewest=1)


def _descendants_of(adata: anndata.AnnData, transport: str, t0: float, t1: float, when: Array) -> Pair:
    """Return the cells of two times, with the way from the earlier to their descendants."""
    if transport not in adata.obsp:
        what = f"there is no obsp[{transport!r}] or transport that tells the descendants of a cell"
        matrix = "put a sparse (n_obs, n_obs) matrix of shares there, descendants of each cell in its row"
        remedy = f"run ac.tl.transport(adata, time_key), or {matrix}"
        raise InputError("no-transport", what, f"obsp[{transport!r}]", remedy)
    whole = adata.obsp[transport]
    earlier, later = np.flatnonzero(when == t0), np.flatnonzero(when == t1)
    plan = csr_matrix(whole[earlier][:, later] if issparse(whole) else np.asarray(whole)[np.ix_(earlier, later)])
    if not np.isfinite(plan.data).all() or (plan.data < 0).any():
        what = f"obsp[{transport!r}] has negative or infinite values, or NaN"
        raise InputError("bad-transport", what, f"obsp[{transport!r}]", "shares of descendants are from 0 on")
    sums = np.asarray(plan.sum(axis=1)).ravel()
    if not sums.any():
        what = f"obsp[{transport!r}] leads from no cell at {t0:g} to a cell at {t1:g}"
        remedy = "name other times, or transpose the matrix: row i holds the descendants of cell i"
        raise InputError("no-transport", what, f"obsp[{transport!r}]", remedy)

    def pull_back(values: Array) -> Array:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray((plan @ values) / sums[:, None])

    return Pair(earlier, later, pull_back)

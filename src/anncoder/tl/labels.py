"""Label transfer from reference to query cells, by weighted nearest neighbours in a latent.

The vote of the k nearest reference cells, weighed by a Gaussian kernel of their distance, as query cells are annotated
in scArches: Lotfollahi et al. 2022, doi 10.1038/s41587-021-01001-7.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import anndata
import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from anncoder.config import unknown_key
from anncoder.data.adata import not_anndata, obs_column
from anncoder.errors import ConfigError, InputError, counted
from anncoder.tl.slots import target_of
from anncoder.tl.time_series.transport_record import as_record, refuse_taken
from anncoder.training.progress import announce

Array = np.ndarray[Any, Any]


class Votes(NamedTuple):
    """The best label of each query cell, (n,) codes, and its probability, (n,) float32."""

    best: Array
    probability: Array


def transfer_labels(
    query: anndata.AnnData,
    reference: anndata.AnnData,
    key: str,
    *,
    n_neighbors: int = 30,
    use_rep: str | None = None,
    latent_key: str = "ae",
    threshold: float = 0.5,
    unknown: str = "unknown",
    key_added: str | None = None,
    copy: bool = False,
) -> anndata.AnnData | None:
    """Give each query cell the label of the reference cells next to it in the latent.

    The probability of a label is the share of the weight of its cells among the k nearest reference cells, weighed by
    ``exp(-d^2 / (2 s^2))``: d is the Euclidean distance and s^2 the mean of d^2 over the k neighbours of the query
    cell. It is a vote, whatever the scale of the latent: a cell of a type that the reference lacks is unknown where it
    lies between others, not where it lies beyond one of them.

    Parameters
    ----------
    query, reference
        Cells, both with the latent of one model (``tl.embed``, or of one model and of those that
        :meth:`Autoencoder.adapt` made from it). Reference cells without a label are left out.
    key
        Column of ``reference.obs`` with the labels.
    n_neighbors
        Reference cells that vote, k.
    use_rep
        Slot of obsm to take for the latent; None for ``obsm["X_{latent_key}"]``, of which the records in
        ``uns[latent_key]`` are compared too.
    latent_key
        Name under which the latents were written.
    threshold
        Probability of the best label below which a cell is ``unknown``, from 0 to 1.
    unknown
        Label of these cells.
    key_added
        Name of the results; None for ``"{key}_transferred"``.
    copy
        Return a copy with the results instead of writing into ``query``.

    Returns
    -------
    anndata.AnnData or None
        Written are ``obs[key_added]`` (categorical, the labels in the order of the reference and ``unknown``),
        ``obs["{key_added}_probability"]``, (n_obs,) float32 from 0 to 1, of the best label, also where it is below the
        threshold, and ``uns[key_added]``, the settings.

    Raises
    ------
    ConfigError
        There is no such column or slot, a value is out of range, or a name is taken.
    InputError
        A latent is not finite, the two are of other models or widths, or fewer reference cells than neighbours have a
        label.
    """
    refuse_settings(n_neighbors, threshold, unknown)
    target = target_of(query, copy=copy)
    if not isinstance(reference, anndata.AnnData):
        raise not_anndata(reference)
    name = f"{key}_transferred" if key_added is None else key_added
    refuse_taken(target, name, [("obs", name), ("obs", f"{name}_probability")], "transfer_labels")
    column = pd.Series(np.asarray(obs_column(reference, key, what="key"), dtype=object))
    latents, slot = _latents(target, reference, latent_key, use_rep)
    codes, labels = _labels(column, obs_column(reference, key, what="key"), unknown)
    known = codes >= 0
    _refuse_few(int(known.sum()), n_neighbors, f"reference.obs[{key!r}]")
    votes = vote(latents[0], latents[1][known], codes[known], len(labels), n_neighbors)
    sure = votes.probability >= threshold
    settings = {"function": "transfer_labels", "key": key, "n_neighbors": n_neighbors, "threshold": threshold}
    target.obs[name] = pd.Categorical.from_codes(np.where(sure, votes.best, len(labels)), [*labels, unknown])
    target.obs[f"{name}_probability"] = votes.probability
    target.uns[name] = as_record({**settings, "unknown": unknown, "use_rep": slot})
    announce(f"wrote obs[{name!r}]: {counted(int((~sure).sum()), 'cell')} of {target.n_obs:,} {unknown!r}")
    return target if copy else None


def vote(query: Array, reference: Array, codes: Array, n_labels: int, n_neighbors: int) -> Votes:
    """Return the weighted vote of the nearest reference cells; see :func:`transfer_labels`.

    Parameters
    ----------
    query, reference
        (n, k) and (m, k) latents.
    codes
        (m,) labels of the reference cells, from 0 to ``n_labels - 1``.
    n_labels, n_neighbors
        Numbers of labels and of cells that vote.
    """
    from sklearn.neighbors import NearestNeighbors

    with threadpool_limits(1, "openmp"):  # as in anncoder.evaluation.graph
        distances, around = NearestNeighbors(n_neighbors=n_neighbors).fit(reference).kneighbors(query)
    square = np.square(distances.astype(np.float64))
    spread = square.mean(axis=1, keepdims=True)
    weights = np.exp(-square / np.where(spread > 0, 2 * spread, 1))
    shares = np.zeros((len(query), n_labels))
    np.add.at(shares, (np.arange(len(query))[:, None], codes[around]), weights)
    shares /= weights.sum(axis=1, keepdims=True)
    return Votes(shares.argmax(axis=1), np.minimum(shares.max(axis=1), 1).astype(np.float32))


def refuse_settings(n_neighbors: Any, threshold: Any, unknown: Any) -> None:
    """Raise a ConfigError for a value that an argument of :func:`transfer_labels` cannot have."""
    numbers = (int, np.integer)
    if not isinstance(n_neighbors, numbers) or isinstance(n_neighbors, bool) or n_neighbors < 1:
        what = f"n_neighbors = {n_neighbors!r} is not a whole number above 0"
        raise ConfigError("bad-value", what, "n_neighbors", "n_neighbors=30")
    if not isinstance(threshold, (float, np.floating, *numbers)) or not 0 <= threshold <= 1:
        what = f"threshold = {threshold!r} is not a probability"
        raise ConfigError("bad-value", what, "threshold", "a number from 0 (every cell has a label) to 1")
    if not isinstance(unknown, str) or not unknown:
        raise ConfigError("bad-value", f"unknown = {unknown!r} is not a text", "unknown", "unknown='unknown'")


def _refuse_few(n: int, n_neighbors: int, where: str) -> None:
    if not n:
        raise InputError("no-labels", "no cell of the reference has a label", where, "name another column as key")
    if n < n_neighbors:
        what = f"{counted(n, 'reference cell')} with a label, but n_neighbors = {n_neighbors}"
        raise InputError("too-few-cells", what, where, f"n_neighbors={n}, or label more cells")


def _labels(column: pd.Series, stored: Any, unknown: str) -> tuple[Array, list[str]]:
    # codes, -1 without a label, and the names; categories in their order, other labels sorted
    texts = column.map(str).where(column.notna())
    order = stored.cat.categories if isinstance(stored.dtype, pd.CategoricalDtype) else sorted(set(texts.dropna()))
    found = set(texts.dropna())
    labels = [name for name in dict.fromkeys(map(str, order)) if name in found]
    if unknown in labels:
        what = f"unknown = {unknown!r} is a label of the reference"
        remedy = f"choose another word, or set these labels to None: they are left out ({unknown!r} says nothing)"
        raise ConfigError("bad-value", what, "unknown", remedy)
    return pd.Index(labels).get_indexer(texts) if labels else np.full(len(texts), -1), labels


def _latents(
    query: anndata.AnnData, reference: anndata.AnnData, key: str, use_rep: str | None
) -> tuple[tuple[Array, Array], str]:
    slot = f"X_{key}" if use_rep is None else use_rep
    found, others = _finite(query, slot, "query"), _finite(reference, slot, "reference")
    remedy = "ac.tl.embed(query, model) and ac.tl.embed(reference, model) with one model"
    if found.shape[1] != others.shape[1]:
        what = f"obsm[{slot!r}] has {found.shape[1]} columns in the query and {others.shape[1]} in the reference"
        raise InputError("other-latent", what, f"obsm[{slot!r}]", remedy)
    marks = _mark(query, key), _mark(reference, key)
    if use_rep is None and None not in marks and marks[0] != marks[1]:
        what = f"obsm[{slot!r}] of query and reference are of different models (uns[{key!r}])"
        raise InputError("other-latent", what, f"obsm[{slot!r}]", remedy)
    return (found, others), slot


def _finite(adata: anndata.AnnData, slot: str, name: str) -> Array:
    if slot not in adata.obsm:
        error = unknown_key(slot, [str(there) for there in adata.obsm], where=f"use_rep (a slot of {name}.obsm)")
        raise ConfigError(error.code, error.what, error.where, f"{error.remedy}; or ac.tl.embed({name}, model)")
    where = f"{name}.obsm[{slot!r}]"
    try:
        values = np.asarray(adata.obsm[slot])
        finite = np.isfinite(values.astype(np.float64))
    except (TypeError, ValueError):
        values = finite = np.empty(0)
    if values.ndim != 2 or not values.shape[1] or not len(values):
        remedy = "name a slot with a number for every cell and axis, such as X_ae"
        raise InputError("bad-coordinates", f"{where} is no matrix of numbers", where, remedy)
    if not finite.all():
        what = f"{where} of {counted(int((~finite.all(axis=1)).sum()), 'cell')} is not finite"
        remedy = f"leave them out: {name} = {name}[np.isfinite({where}).all(axis=1)].copy()"
        raise InputError("latent-not-finite", what, where, remedy)
    return values


def _mark(adata: anndata.AnnData, key: str) -> str | None:
    # that of the latent is the same for a model and those adapted from it; records of 0.1.0 have none
    record = adata.uns.get(key)
    if not isinstance(record, Mapping) or "params_json" not in record:
        return None
    found = record.get("latent_fingerprint", json.loads(record["params_json"]).get("fingerprint"))
    return None if found is None else str(found)

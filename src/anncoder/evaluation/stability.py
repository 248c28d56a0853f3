"""Stability: agreement of clusters, neighbours and pseudotime between fits of other seeds.

The seed chooses the initial weights, the order of the minibatches, the noise and the cells that are held out. A result
that another seed changes is no result about the cells. Pairs of fits are compared, on the same cells, by

- ``leiden_ari``, ``kmeans_ari``: adjusted Rand index of Leiden clusters (scanpy's graph of 15 neighbours, resolution 1)
  and of k-means (as many clusters as there are labels; without labels, as Leiden finds in the first fit);
- ``neighbors``: share of the 14 nearest other cells in common;
- ``pseudotime``: Spearman correlation of scanpy's diffusion pseudotime (Haghverdi et al. 2016, doi 10.1038/nmeth.3971)
  from one root, over the cells that both reach.

Clusterings have a seed of their own: one fit clustered again with other seeds is the floor, how much clusters move
without any network. PCA has no seed, and its clusters move by that alone. Stable is not true: PCA always agrees with
itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

import anndata
import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components

from anncoder.errors import ConfigError, DivergenceError, InputError, counted
from anncoder.evaluation.baselines import Cells, Method
from anncoder.evaluation.cells import Sample, row_of
from anncoder.evaluation.clusters import N_NEIGHBORS, comparable, kmeans, leiden_of
from anncoder.evaluation.graph import nearest, neighbor_graph
from anncoder.models.base import Array, Autoencoder
from anncoder.training.progress import announce

FEWEST, MOST = 2, 20  # fits
LARGEST = 5000  # cells whose neighbours, clusters and pseudotime are compared
SEEDS = 2**32  # number of seeds
BETWEEN, AGAIN, OF_PCA = "between fits", "one fit, clustered again", "PCA, clustered again"
SCORES = ("leiden_ari", "kmeans_ari", "neighbors", "pseudotime")


@dataclass(frozen=True)
class Stability:
    """How much results move with the seed: ``stability`` of :class:`anncoder.evaluation.comparison.Evaluation`.

    Attributes
    ----------
    pairs
        A row a pair: ``compared`` (``"between fits"``, ``"one fit, clustered again"``, ``"PCA, clustered again"``),
        ``first`` and ``second``, their seeds, and ``leiden_ari``, ``kmeans_ari``, ``neighbors``, ``pseudotime``: 1
        for no difference, 0 for chance (of neighbours: none in common). Pseudotime is NaN without a root.
    fits
        A row a seed, and one for PCA: ``epochs`` and ``stopped`` of the fit; ``clusters`` of Leiden; with labels
        ``labels_ari``, the agreement of these with them; ``parts`` of the neighbour graph, and ``outside``, the cells
        that are not in the largest; with a root ``unreached``, the cells without a pseudotime.
    n_obs
        Number of cells compared.
    root
        Name of the cell that pseudotime starts from, or None.
    own
        Whether the fitted model is one of the fits. It is not where it was fitted to other cells than these, or to more
        than ``max_cells``: then all are fits to these cells.
    """

    pairs: pd.DataFrame
    fits: pd.DataFrame
    n_obs: int
    root: str | None
    own: bool

    @property
    def seeds(self) -> list[int]:
        """Seeds of the fits that are compared: all but those that diverged."""
        return [int(seed) for seed in self.fits.index[~self.fits["stopped"].isin(["diverged", ""])]]

    @property
    def table(self) -> pd.DataFrame:
        """Mean of the pairs: a row a comparison, a column a score."""
        return self.pairs.groupby("compared", sort=False)[list(SCORES)].mean().rename_axis(None)

    @property
    def lowest(self) -> pd.DataFrame:
        """Lowest of the pairs, in the form of :attr:`table`."""
        return self.pairs.groupby("compared", sort=False)[list(SCORES)].min().rename_axis(None)

    @property
    def head(self) -> str:
        """One line on the fits, their seeds and the cells."""
        own = "the fitted model and others like it" if self.own else "all of them fits to these cells"
        seeds = ", ".join(map(str, self.seeds))
        return f"{counted(len(self.seeds), 'fit')} with seeds {seeds} ({own}), {counted(self.n_obs, 'cell')}"

    @property
    def notes(self) -> list[str]:
        """Sentences on fits that diverged, on graphs in parts, and on cells that pseudotime does not reach."""
        found = [f"seed {seed}: the fit diverged" for seed in self.fits.index[self.fits["stopped"] == "diverged"]]
        for name, row in self.fits[self.fits["parts"] > 1].iterrows():
            of = f"of {self.n_obs:,} cells"
            lost = f"{row['outside']:,.0f} {of} are not in the largest"
            if pd.notna(row.get("unreached")):
                lost = f"{row['unreached']:,.0f} {of} have no pseudotime"
            where = "PCA" if name == "pca" else f"seed {name}"
            found.append(f"{where}: the neighbour graph falls into {row['parts']:.0f} parts, and {lost}")
        return found

    def shown(self) -> pd.DataFrame:
        """Return the means, and the lowest in brackets, as text; without a score that is never defined."""
        mean, low = self.table.dropna(axis=1, how="all"), self.lowest

        def entry(name: Any, score: Any) -> str:
            value = mean.loc[name, score]
            return "" if pd.isna(value) else f"{value:.2f} ({low.loc[name, score]:.2f})"

        rows = [[entry(name, score) for score in mean] for name in mean.index]
        return pd.DataFrame(rows, index=mean.index, columns=mean.columns)

    def __str__(self) -> str:
        fits = self.fits.drop(columns="stopped").to_string(float_format=lambda v: f"{v:.4g}", na_rep="-")
        head = f"stability: {self.head}; agreement of two, mean (lowest)"
        return "\n".join([head, str(self.shown().to_string()), str(fits), *self.notes])

    def _repr_html_(self) -> str:
        # no name of the user's is in it
        tables = self.shown().to_html() + self.fits.to_html(float_format=lambda v: f"{v:.4g}", na_rep="")
        notes = "".join(f"<p>{note}</p>" for note in self.notes)
        return f"<p>Stability: {self.head}. Agreement of two, mean (lowest):</p>{tables}{notes}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values with stable names."""
        pairs = [_plain(row) for row in self.pairs.to_dict(orient="records")]
        fits = [{"seed": name} | _plain(row) for name, row in self.fits.to_dict(orient="index").items()]
        scores = {
            str(name): {
                score: _plain({"mean": mean, "lowest": self.lowest.loc[name, score]}) for score, mean in row.items()
            }
            for name, row in self.table.to_dict(orient="index").items()
        }
        head = {"seeds": self.seeds, "n_obs": self.n_obs, "root": self.root, "fitted_model_is_one": self.own}
        return head | {"scores": scores, "fits": fits, "pairs": pairs}


def _plain(row: dict[Any, Any]) -> dict[str, Any]:
    # numbers without a fraction as whole ones, NaN as None
    def value(x: Any) -> Any:
        if isinstance(x, str):
            return x
        return None if pd.isna(x) else int(x) if float(x).is_integer() else float(x)

    return {str(name): value(x) for name, x in row.items()}


class Question(NamedTuple):
    """What is asked of every latent."""

    truth: Any  # (n,) labels, NaN or None where there is none; None for no labels
    root: int | None  # row of the cell that pseudotime starts from
    n_clusters: int | None = None  # of k-means; None for as many as Leiden finds


class View(NamedTuple):
    """A latent of n cells, in the forms that are compared."""

    leiden: Any  # (n,) clusters
    kmeans: Any  # (n,)
    neighbors: csr_matrix  # (n, n), 1 where a row has a neighbour
    pseudotime: Any  # (n,) infinite where the root does not lead to; None without a root


def seeds_given(seeds: Any, root: Any = None) -> int:
    """Return the number of fits, 0 for none; a ConfigError for what is no number of them, and a root without them."""
    whole = isinstance(seeds, int | np.integer) and not isinstance(seeds, bool)
    if seeds is not None and not (whole and (seeds == 0 or FEWEST <= seeds <= MOST)):
        what = f"seeds = {seeds!r} is no number of fits to compare"
        raise ConfigError("bad-value", what, "seeds", f"a whole number from {FEWEST} to {MOST}, or None for none")
    if not seeds and root is not None:
        what = "root is the start of the pseudotime that fits with other seeds are compared by, and there are none"
        raise ConfigError("bad-value", what, "root", "seeds=5 (--seeds 5), or leave root out")
    return int(seeds or 0)


def root_of(data: Any, root: Any) -> Any:
    """Return the name of the root: the one given, else that of scanpy's ``uns["iroot"]``, else None."""
    if root is not None or not isinstance(data, anndata.AnnData):
        return root
    place = data.uns.get("iroot")
    there = isinstance(place, int | np.integer) and 0 <= place < data.n_obs
    return str(data.obs_names[place]) if there else None


def stability_of(
    model: Autoencoder,
    sample: Sample,
    cells: Cells,
    pca: Method,
    *,
    truth: Any,
    seeds: int,
    root: str | None,
    seed: int,
) -> Stability:
    """Fit the settings of a model again with other seeds, and compare the fits.

    Parameters
    ----------
    model
        A fitted model, left as it is.
    sample
        The n cells; of more than 5,000 a random part is compared, and all are fitted.
    cells
        What the model reads of them, (n, g), in its gene order.
    pca
        PCA beside it.
    truth
        (n,) labels, or None.
    seeds
        How many fits, the fitted model among them if it was fitted to these cells. Their seeds follow its own.
    root
        Name of the cell that pseudotime starts from, or None.
    seed
        Start of the clusterings, and of the choice of the cells to compare.

    Raises
    ------
    ConfigError
        The root is not among the cells.
    InputError
        There are too few cells for a graph of neighbours, or less than two fits ended with a finite loss.
    """
    n_obs = cells.matrix.shape[0]
    if n_obs <= N_NEIGHBORS:
        what = f"{counted(n_obs, 'cell')} have no {N_NEIGHBORS} neighbours each"
        raise InputError("too-few-cells", what, "seeds", "evaluate more cells, or leave seeds out")
    known = int((sample.held_out >= 0).sum()) == len(model.valid_obs_)
    own = known and not sample.new and sample.n_obs == sample.adata.n_obs
    names = sample.adata.obs_names
    rows = _compared(n_obs, None if root is None else row_of(names, root), seed)
    labels = truth[rows] if truth is not None and comparable(truth[rows]) else None
    asked = Question(labels, None if root is None else row_of(names[rows], root))
    adata = anndata.AnnData(cells.matrix, obs=sample.adata.obs, var=pd.DataFrame(index=model.var_names_))
    adata.obsm = sample.adata.obsm  # a model may read it
    fits = dict(_fits(model, adata, seeds, own=own))
    facts: dict[Any, dict[str, Any]] = {
        name: {"epochs": len(fit.history_), "stopped": fit.stopped_} for name, fit in fits.items()
    }
    latents = {name: fit.embed(adata[rows], layer="X") for name, fit in fits.items() if fit.stopped_ != "diverged"}
    if len(latents) < FEWEST:
        what = f"{len(latents)} of {seeds} fits ended with a finite loss"
        raise InputError("too-few-fits", what, "seeds", "fit with a smaller learning_rate, or leave seeds out")
    components = pca.latent(cells.take(rows))
    assert components is not None
    pairs, seen = compared(latents, components, asked, seed)
    facts["pca"] = {"stopped": ""}
    table = pd.DataFrame.from_dict({name: row | seen.get(name, {}) for name, row in facts.items()}, orient="index")
    return Stability(pairs, table, len(rows), root, own)


def _fits(model: Autoencoder, cells: anndata.AnnData, seeds: int, *, own: bool) -> Iterator[tuple[int, Autoencoder]]:
    """Yield each seed with its fit: the fitted model itself, where it is one of them, and others of its settings."""
    settings = model.training_.model_dump()
    missing = {"valid_stratify", "valid_groups"} - {k for k, v in settings.items() if v in list(cells.obs)}
    settings |= dict.fromkeys((*missing, "mask_var"))  # the genes are chosen already
    first = model.training_.seed
    for step in range(seeds):
        seed = (first + step) % SEEDS
        if own and not step:
            yield seed, model
            continue
        announce(f"stability: fit {step + 1} of {seeds}, seed {seed}")
        again = model.unfitted()
        try:
            again.fit(cells, progress=False, **settings | {"seed": seed})
        except DivergenceError:
            if again.stopped_ != "diverged":
                raise
        yield seed, again


def _compared(n_obs: int, root: int | None, seed: int) -> Any:
    """Return the rows of the cells to compare, in order, the root among them."""
    rows = np.random.default_rng([seed, 14]).permutation(n_obs)[:LARGEST]
    if root is not None and root not in rows:
        rows[0] = root
    return np.sort(rows)


def compared(
    latents: dict[int, Array], components: Array, asked: Question, seed: int
) -> tuple[pd.DataFrame, dict[Any, dict[str, Any]]]:
    """Compare latents of the same n cells with each other, and PCA's components with themselves.

    Parameters
    ----------
    latents
        (n, k) of each fit, by its seed.
    components
        (n, k) of PCA.
    asked
        Labels and root.
    seed
        First seed of the clusterings.

    Returns
    -------
    tuple
        ``pairs`` of :class:`Stability`; for each fit and for ``"pca"`` the columns of ``fits`` from ``clusters`` on.
    """
    views: dict[int, View] = {}
    seen: dict[Any, dict[str, Any]] = {}
    graphs = {name: neighbor_graph(latent, N_NEIGHBORS) for name, latent in latents.items()}
    for name, latent in latents.items():
        views[name], seen[name] = _view(latent, graphs[name], asked, seed)
        asked = asked._replace(n_clusters=_classes(asked, seen[name]["clusters"]))
    found = [_agreements(BETWEEN, views)]
    first, *_ = latents
    of_pca = neighbor_graph(components, N_NEIGHBORS)
    for name_, latent, graph in ((AGAIN, latents[first], graphs[first]), (OF_PCA, components, of_pca)):
        view, facts = _view(latent, graph, asked, seed)
        others = [(seed + step) % SEEDS for step in range(1, len(latents))]
        again = {other: view._replace(**_clusters(latent, graph, asked, other)) for other in others}
        found.append(_agreements(name_, {seed: view, **again}))
    return pd.concat(found, ignore_index=True), seen | {"pca": facts}


def _classes(asked: Question, n_clusters: int) -> int:
    # number of clusters of k-means
    if asked.n_clusters is not None:
        return asked.n_clusters
    return max(2, n_clusters if asked.truth is None else len(set(asked.truth[pd.notna(asked.truth)].astype(str))))


def _clusters(latent: Array, graph: csr_matrix, asked: Question, seed: int) -> dict[str, Any]:
    (found,) = leiden_of(graph, (1.0,), seed)
    return {"leiden": found, "kmeans": kmeans(latent, _classes(asked, len(set(found))), seed)}


def _view(latent: Array, graph: csr_matrix, asked: Question, seed: int) -> tuple[View, dict[str, Any]]:
    """Return the forms of a latent that are compared, and the facts of its row in the table of fits."""
    n, others = len(latent), nearest(latent, N_NEIGHBORS - 1)[1]
    start = np.arange(0, others.size + 1, others.shape[1])
    neighbors = csr_matrix((np.ones(others.size), others.ravel(), start), shape=(n, n))
    times = None if asked.root is None else pseudotime(graph, asked.root)
    view = View(**_clusters(latent, graph, asked, seed), neighbors=neighbors, pseudotime=times)
    facts: dict[str, Any] = {"clusters": len(set(view.leiden))}
    if asked.truth is not None:
        known = pd.notna(asked.truth)
        facts["labels_ari"] = _ari(asked.truth[known].astype(str), view.leiden[known])
    n_parts, part = connected_components(graph, directed=False)
    facts |= {"parts": n_parts, "outside": n - int(np.bincount(part).max())}
    return view, facts if times is None else facts | {"unreached": int((~np.isfinite(times)).sum())}


def pseudotime(graph: csr_matrix, root: int) -> Any:
    """Return scanpy's diffusion pseudotime of n cells from one of them, (n,); infinite in other parts of the graph."""
    import scanpy as sc

    cells = anndata.AnnData(obs=pd.DataFrame(index=[str(i) for i in range(graph.shape[0])]))
    cells.obsp["connectivities"] = cells.obsp["distances"] = graph
    params = {"n_neighbors": N_NEIGHBORS, "method": "umap"}
    keys = {"connectivities_key": "connectivities", "distances_key": "distances", "params": params}
    cells.uns |= {"neighbors": keys, "iroot": root}
    sc.tl.diffmap(cells)
    sc.tl.dpt(cells)
    return cells.obs["dpt_pseudotime"].to_numpy(np.float64)


def _agreements(name: str, views: dict[int, View]) -> pd.DataFrame:
    """Return a row a pair of views, as in ``pairs`` of :class:`Stability`."""

    def row(one: int, other: int) -> dict[str, Any]:
        a, b = views[one], views[other]
        return {
            "compared": name,
            "first": one,
            "second": other,
            "leiden_ari": _ari(a.leiden, b.leiden),
            "kmeans_ari": _ari(a.kmeans, b.kmeans),
            "neighbors": float(a.neighbors.multiply(b.neighbors).sum() / a.neighbors.nnz),
            "pseudotime": np.nan if a.pseudotime is None else rank_correlation(a.pseudotime, b.pseudotime),
        }

    return pd.DataFrame([row(*pair) for pair in combinations(views, 2)])


def _ari(one: Any, other: Any) -> float:
    from sklearn.metrics import adjusted_rand_score

    return float(adjusted_rand_score(one, other))


def rank_correlation(one: Any, other: Any) -> float:
    """Return Spearman's correlation of two (n,) times over the cells where both are finite; NaN where it has none."""
    both = np.isfinite(one) & np.isfinite(other)
    from scipy.stats import rankdata  # as long an import as half of torch

    ranks = [rankdata(times[both]) for times in (one, other)]
    if both.sum() < 3 or min(np.ptp(r) for r in ranks) == 0:
        return float("nan")
    return float(np.corrcoef(*ranks)[0, 1])

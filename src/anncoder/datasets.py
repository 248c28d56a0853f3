"""Example data: real blood cells; simulated counts (Splatter) and branching population."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import anndata
import h5py
import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp
from anndata.io import sparse_dataset, write_elem
from pydantic import Field
from scipy.sparse import csr_matrix
from scipy.special import expit

from anncoder.config import Settings
from anncoder.errors import ConfigError, InputError
from anncoder.io.atomic import atomic_path
from anncoder.io.hdf5 import new_h5

__all__ = ["branching", "pbmc68k_counts", "simulate", "simulate_to_file"]


def pbmc68k_counts() -> anndata.AnnData:
    """Return 700 real blood cells with their raw counts and published labels; nothing is downloaded.

    scanpy carries them as logarithms of counts per 10,000; together with each cell's total the integers can be had
    back exactly: ``expm1(raw.X) * n_counts / 10,000``.

    Returns
    -------
    AnnData
        700 cells x 765 genes. ``X``: raw counts, CSR float32. ``obs["bulk_labels"]``: published cell type (10 of
        them), ``obs["n_counts"]``: molecules of the cell over all genes, and the published ``louvain`` clusters.

    Raises
    ------
    InputError
        The values of the installed scanpy are not integers when taken back.

    References
    ----------
    Zheng et al. 2017, doi 10.1038/ncomms14049; the reduced set of ``scanpy.datasets.pbmc68k_reduced``.
    """
    import scanpy as sc

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the file is old, and some versions of anndata say so at length
        reduced = sc.datasets.pbmc68k_reduced()
    logs = csr_matrix(reduced.raw.X)
    per_entry = np.repeat(reduced.obs["n_counts"].to_numpy(dtype=np.float64), np.diff(logs.indptr))
    values = np.expm1(logs.data.astype(np.float64)) * per_entry / 1e4
    counts = np.rint(values)
    if np.abs(values - counts).max() > 0.1:
        raise InputError("unexpected-data", "scanpy's pbmc68k_reduced is not what it was", "raw.X")
    matrix = csr_matrix((counts.astype(np.float32), logs.indices, logs.indptr), shape=logs.shape)
    matrix.eliminate_zeros()
    matrix.sort_indices()
    obs = reduced.obs[["bulk_labels", "n_counts", "louvain"]].copy()
    return anndata.AnnData(matrix, obs=obs, var=reduced.raw.var[[]].copy())


BRANCH_RATES = {"P": 0.3, "A": 0.6, "B": 0.0}  # a unit time, natural logarithm


def branching(
    n_cells: int = 200, noise_sd: float = 0.2, seed: int = 20260, *, n_times: int = 5, n_dims: int = 10
) -> anndata.AnnData:
    """Simulate a population that grows and branches, measured at the times 0, 1, 2...; coordinates, not counts.

    Up to time 1 all cells are progenitors, P; then each lineage is in branch A, which grows faster, or in B. A
    progenitor's chance to go to A depends on its second coordinate. The sizes of the branches are those expected, not
    drawn.

    Parameters
    ----------
    n_cells
        Cells measured at each time.
    noise_sd
        Standard deviation of each coordinate about the path of its branch; the branches move apart by 2 a unit time.
    seed
        Start of the random stream.
    n_times
        Time points, at least 3.
    n_dims
        Coordinates, at least 2.

    Returns
    -------
    AnnData
        ``n_times * n_cells`` cells, in the order of the times. ``X`` and ``obsm["X_sim"]``: coordinates,
        (n_obs, n_dims) float64. ``obs``: ``time`` (float), ``label`` (P, A, B), ``growth_true`` (factor a unit time:
        e^0.3, e^0.6, 1) and ``fate_A``, the share of a cell's descendants at the last time that are in A.

    Raises
    ------
    ConfigError
        A number is out of range.

    Examples
    --------
    >>> import anncoder as ac
    >>> ac.datasets.branching().obs.groupby("time", observed=True)["fate_A"].mean().round(3).tolist()
    [0.721, 0.73, 0.645, 0.77, 0.86]
    """
    for name, value, least in (("n_cells", n_cells, 2), ("n_times", n_times, 3), ("n_dims", n_dims, 2)):
        if value < least or value != round(value):
            raise ConfigError("bad-value", f"{name} = {value!r}", name, f"a whole number from {least} on")
    if not 0 <= noise_sd < math.inf:
        raise ConfigError("bad-value", f"noise_sd = {noise_sd!r}", "noise_sd", "a number from 0 on")
    rng = np.random.default_rng(seed)
    times = [_branching_time(rng, time, int(n_cells), noise_sd, n_dims) for time in range(int(n_times))]
    x, labels, chance = (np.concatenate(parts) for parts in zip(*times, strict=True))
    grown = math.exp(BRANCH_RATES["A"] * (n_times - 2))
    obs = pd.DataFrame(
        {
            "time": np.repeat(np.arange(float(n_times)), n_cells),
            "label": pd.Categorical(labels, categories=list(BRANCH_RATES)),
            "growth_true": np.exp([BRANCH_RATES[label] for label in labels]),
            "fate_A": chance * grown / (chance * grown + 1 - chance),
        },
        index=[f"Cell{i}" for i in range(len(x))],
    )
    var = pd.DataFrame(index=[f"Dim{k}" for k in range(n_dims)])
    return anndata.AnnData(x, obs=obs, var=var, obsm={"X_sim": x.copy()})


def _branching_time(rng: np.random.Generator, time: int, n: int, noise_sd: float, n_dims: int) -> tuple[Any, Any, Any]:
    """Return coordinates, labels, and the chances to be in A, of the cells of one time."""
    z = rng.standard_normal((n, n_dims))
    x = noise_sd * z
    x[:, 0] += time
    if time <= 1:
        return x, np.full(n, "P"), expit(3 * z[:, 1])
    size = math.exp((BRANCH_RATES["A"] - BRANCH_RATES["B"]) * (time - 1))
    in_a = np.arange(n) < round(n * size / (size + 1))
    x[:, 1] += np.where(in_a, time - 1, 1 - time)
    return x, np.where(in_a, "A", "B"), in_a.astype(float)


Share = Annotated[float, Field(ge=0, le=1)]
# beyond these bounds a factor is no biology any more, and products of factors leave float32
LogMean = Annotated[float, Field(ge=-10, le=10)]
LogDeviation = Annotated[float, Field(ge=0, le=2, description="its standard deviation")]


class SplatParameters(Settings):
    """Parameters of Splatter's model, without dropout by default.

    The defaults are the paper's but for three. The paper's are of 60,000 molecules in a cell of 10,000 genes, whatever
    their number, and of groups that differ little; here cells have the 85 to 95 % zeros of droplet data with any number
    of genes (``lib_loc``), and groups differ as cell types do (``de_prob`` 0.1, ``de_fac_loc`` 0.1 in the paper).

    A factor is ``exp(|z|)``, or ``exp(-|z|)`` for a gene that goes down, with z normal of mean ``*_loc`` and
    standard deviation ``*_scale``. Gene j at mean mu has the coefficient of biological variation
    ``bcv = (bcv_common + 1/sqrt(mu)) * sqrt(bcv_df / chi2_j)``: its counts have variance ``mu + (bcv mu)^2``.

    In mode ``"groups"`` each group has factors of its own; a single group has none. In mode ``"paths"`` cells
    lie on ``n_groups`` paths: a path begins with the factors at the end of the path it comes from and goes to
    those times its own, in a straight line or, for a share of its genes, along a Brownian bridge.

    Raises
    ------
    ConfigError
        An unknown parameter, a value out of range, or proportions that do not fit their number.

    References
    ----------
    Zappia, Phipson, Oshlack 2017, Genome Biology 18:174, doi 10.1186/s13059-017-1305-0.
    """

    n_obs: Annotated[int, Field(ge=1, description="cells")] = 1000
    n_vars: Annotated[int, Field(ge=1, description="genes")] = 2000
    mode: Annotated[Literal["groups", "paths"], Field(description="what cells belong to")] = "groups"
    n_groups: Annotated[int, Field(ge=1, le=1000, description="groups, or paths")] = 1
    group_probabilities: Annotated[tuple[Share, ...] | None, Field(description="null for equal ones")] = None
    n_batches: Annotated[int, Field(ge=1, le=1000, description="experimental batches")] = 1
    batch_proportions: Annotated[tuple[Share, ...] | None, Field(description="null for equal ones")] = None
    batch_fac_loc: Annotated[LogMean, Field(description="mean log batch factor of a gene")] = 0.1
    batch_fac_scale: LogDeviation = 0.1
    mean_shape: Annotated[float, Field(ge=0.05, le=100, description="shape of the gamma of gene means")] = 0.6
    mean_rate: Annotated[float, Field(ge=1e-6, le=1e6, description="its rate")] = 0.3
    # above exp(16) molecules a count would no longer be exact in float32
    lib_loc: Annotated[
        float | None,
        Field(ge=-10, le=15, description="mean log library size, in molecules; null for 0.35 molecules a gene"),
    ] = None
    lib_scale: LogDeviation = 0.2
    out_prob: Annotated[Share, Field(description="share of outlier genes")] = 0.05
    out_fac_loc: Annotated[LogMean, Field(description="mean log ratio of an outlier to the median")] = 4.0
    out_fac_scale: LogDeviation = 0.5
    de_prob: Annotated[Share, Field(description="share of genes that a group or path changes")] = 0.2
    de_fac_loc: Annotated[LogMean, Field(description="mean log factor of a changed gene")] = 1.0
    de_fac_scale: LogDeviation = 0.4
    de_down_prob: Annotated[Share, Field(description="share of the changed genes that go down")] = 0.5
    bcv_common: Annotated[float, Field(ge=0, le=10, description="variation of abundant genes")] = 0.1
    bcv_df: Annotated[float, Field(ge=1, le=1e9, description="evenness of the variation over genes")] = 60.0
    path_from: Annotated[tuple[int, ...] | None, Field(description="0: origin, k: end of path k")] = None
    path_n_steps: Annotated[int, Field(ge=2, le=10_000, description="steps of a path")] = 100
    path_skew: Annotated[Share, Field(description="1: cells gather at the start, 0: at the end")] = 0.5
    path_nonlinear_prob: Annotated[Share, Field(description="share of genes that follow a bridge")] = 0.1
    path_sigma_fac: Annotated[float, Field(ge=0, le=10, description="standard deviation of its walk")] = 0.8
    dropout_mid: Annotated[float | None, Field(description="log mean where half is lost")] = None
    dropout_shape: Annotated[float, Field(ge=-100, le=100, description="its slope; rare go if < 0")] = -1.0
    seed: Annotated[int, Field(ge=0, description="start of every random stream")] = 0

    def model_post_init(self, context: Any, /) -> None:
        """Refuse proportions and origins that do not fit their number."""
        _check_shares("group_probabilities", self.group_probabilities, self.n_groups)
        _check_shares("batch_proportions", self.batch_proportions, self.n_batches)
        _check_length("path_from", self.path_from, self.n_groups)
        for path, origin in enumerate(self.path_from or (), start=1):
            if not 0 <= origin < path:
                what = f"path {path} cannot begin at the end of path {origin}"
                raise _bad_value(what, "path_from", "name an earlier path, counted from 1, or 0 for the origin")

    @property
    def log_library_size(self) -> float:
        """Mean log library size: as set, or for 0.35 molecules a gene, but no cell is to be empty."""
        return math.log(max(0.35 * self.n_vars, 150)) if self.lib_loc is None else self.lib_loc

    @property
    def group_names(self) -> list[str]:
        """Names of the groups or paths: ``"Group1"`` or ``"Path1"`` and so on."""
        return numbered("Group" if self.mode == "groups" else "Path", self.n_groups)

    @property
    def batch_names(self) -> list[str]:
        """Names of the batches: ``"Batch1"`` and so on."""
        return numbered("Batch", self.n_batches)


def numbered(prefix: str, n: int, start: int = 0) -> list[str]:
    """Return ``n`` names counted from 1: ``"Cell1"``, ``"Cell2"``; ``start`` of them are passed over."""
    return [f"{prefix}{number}" for number in range(start + 1, start + n + 1)]


def _check_shares(name: str, shares: Sequence[float] | None, n: int) -> None:
    _check_length(name, shares, n)
    if shares is not None and abs(sum(shares) - 1) > 1e-8:
        raise _bad_value(f"{name} sum to {sum(shares):g}, not to 1", name, "divide each by their sum")


def _check_length(name: str, values: Sequence[float] | None, n: int) -> None:
    if values is not None and len(values) != n:
        raise _bad_value(f"{len(values)} {name} for {n}", name, f"give {n} values, or leave it out")


def _bad_value(what: str, name: str, remedy: str) -> ConfigError:
    return ConfigError("bad-value", what, f"SplatParameters.{name}", remedy)


def simulate(*, keep_means: bool = False, **parameters: Any) -> anndata.AnnData:
    """Simulate counts of groups or paths of cells with a known truth (Splatter), in memory.

    Parameters
    ----------
    keep_means
        Keep the expected counts before noise as ``layers["true_mean"]``: dense, 4 bytes an entry.
    **parameters
        Of :class:`anncoder.datasets.SplatParameters`: ``n_obs``, ``n_vars``, ``n_groups``, ``mode``, ``n_batches``,
        ``dropout_mid``, ``seed``...

    Returns
    -------
    AnnData
        ``X``: counts after dropout, (n_obs, n_vars) CSR float32 integers.
        ``obs``: ``group`` and ``batch``, categorical; ``library_size``, expected molecules before dropout; for paths
        ``step``, 1 to ``path_n_steps``, and ``pseudotime``, the way from the origin in path lengths.
        ``var``: ``gene_mean`` at the origin, outliers included, in arbitrary units; ``outlier_factor``, 1 for none;
        ``bcv_factor``, sqrt(bcv_df / chi2); ``de_factor_Group1`` and so on, for a path ``de_factor_Path1``, at its end
        and relative to the origin; ``batch_factor_Batch1`` and so on where there are several.
        ``layers["true_mean"]``, with ``keep_means``: expected counts before dropout of a cell of this group or step,
        batch and library size, (n_obs, n_vars) float32.
        ``uns["simulation"]``: the parameters as JSON text.

    Raises
    ------
    ConfigError
        Unknown parameter, or a value out of range.

    References
    ----------
    Zappia, Phipson, Oshlack 2017, doi 10.1186/s13059-017-1305-0.

    Examples
    --------
    >>> import anncoder as ac
    >>> ac.datasets.simulate(n_obs=100, n_vars=50, n_groups=3, seed=1).shape
    (100, 50)
    """
    p = SplatParameters(**parameters)
    genes = _draw_genes(p)
    counts, means, obs = [], [], []
    for block in _blocks(p, genes):
        counts.append(block.counts)
        obs.append(block.obs)
        if keep_means:
            means.append(block.true_mean)
    return anndata.AnnData(
        X=sp.vstack(counts, format="csr"),
        obs=pd.concat(obs),
        var=genes.var,
        layers={"true_mean": np.concatenate(means)} if keep_means else None,
        uns=_uns(p),
    )


def simulate_to_file(
    path: str | Path,
    *,
    keep_means: bool = False,
    progress: Callable[[int], object] | None = None,
    **parameters: Any,
) -> None:
    """Simulate any number of cells straight to an ``.h5ad`` file, in memory that does not grow with ``n_obs``.

    Parameters
    ----------
    path
        The file to write. It appears when it is complete, and only then replaces an older one.
    keep_means
        Also write ``layers["true_mean"]``, uncompressed: 4 bytes an entry.
    progress
        Called with the number of cells of each block when it is written, such as a tqdm bar's ``update``.
    **parameters
        Of :class:`anncoder.datasets.SplatParameters`: ``n_obs``, ``n_vars``, ``n_groups``...; the same give the same
        counts as in :func:`simulate`.

    Raises
    ------
    ConfigError
        Unknown parameter, or a value out of range.
    ResourceError
        The folder does not exist or cannot be written, or the disk is full.
    """
    p = SplatParameters(**parameters)
    genes = _draw_genes(p)
    with atomic_path(path) as temporary, new_h5(temporary) as (file, disk):
        _create(file, p, genes, keep_means=keep_means)
        for block in _blocks(p, genes):
            disk.stop_if_failed()
            _append(file, block)
            if progress is not None:
                progress(block.counts.shape[0])


Floats = npt.NDArray[np.floating[Any]]

_CELLS = 256  # cells of one random stream: 256 x 2,000 genes are 2 MiB of float32, near the cache


class _Genes(NamedTuple):
    """What is drawn once for all cells."""

    var: pd.DataFrame  # g rows
    bcv_factor: Floats  # (g,) float32, sqrt(df / chi2)
    share: Floats  # (n_batches, g) float32, share of each gene at the origin, times the batch's factor
    program: Floats  # (n_groups, n_steps, g) float32, factors along each path; a group has one step


class _Block(NamedTuple):
    """Consecutive cells."""

    counts: sp.csr_matrix  # (b, g) float32
    true_mean: Floats  # (b, g) float32
    obs: pd.DataFrame  # b rows


def _draw_genes(p: SplatParameters) -> _Genes:
    # groups and paths come last: another number of them leaves the means and batches as they were
    rng = np.random.default_rng([p.seed, 0])
    mean = rng.gamma(p.mean_shape, 1 / p.mean_rate, p.n_vars)
    outlier = _factors(rng, (p.n_vars,), p.out_prob, p.out_fac_loc, p.out_fac_scale, down_prob=0.0)
    mean = np.where(outlier == 1, mean, np.median(mean) * outlier)
    bcv = np.sqrt(p.bcv_df / rng.chisquare(p.bcv_df, p.n_vars))
    batch = _draw_batches(rng, p)
    program = _draw_paths(rng, p) if p.mode == "paths" else _draw_groups(rng, p)
    var = {"gene_mean": mean, "outlier_factor": outlier, "bcv_factor": bcv}
    var |= {f"de_factor_{name}": steps[-1] for name, steps in zip(p.group_names, program, strict=True)}
    if p.n_batches > 1:
        var |= {f"batch_factor_{name}": row for name, row in zip(p.batch_names, batch, strict=True)}
    frame = pd.DataFrame(var, index=_index("Gene", p.n_vars))
    share = mean / mean.sum() * batch
    return _Genes(frame, bcv.astype(np.float32), share.astype(np.float32), program.astype(np.float32))


def _draw_batches(rng: np.random.Generator, p: SplatParameters) -> Floats:
    """Return the factors of each batch, (n_batches, g); a single batch differs from nothing."""
    prob = float(p.n_batches > 1)
    return _factors(rng, (p.n_batches, p.n_vars), prob, p.batch_fac_loc, p.batch_fac_scale, down_prob=0.5)


def _draw_groups(rng: np.random.Generator, p: SplatParameters) -> Floats:
    """Return the factors of each group, (n_groups, 1, g); a single group differs from nothing."""
    prob = p.de_prob if p.n_groups > 1 else 0.0
    return _factors(rng, (p.n_groups, 1, p.n_vars), prob, p.de_fac_loc, p.de_fac_scale, p.de_down_prob)


def _draw_paths(rng: np.random.Generator, p: SplatParameters) -> Floats:
    """Return the factors along each path, (n_groups, n_steps, g)."""
    paths = np.empty((p.n_groups, p.path_n_steps, p.n_vars))
    for path, origin in zip(paths, _origins(p), strict=True):
        start = paths[origin - 1, -1] if origin else np.ones(p.n_vars)
        own = _factors(rng, (p.n_vars,), p.de_prob, p.de_fac_loc, p.de_fac_scale, p.de_down_prob)
        sigma = p.path_sigma_fac * (rng.random(p.n_vars) < p.path_nonlinear_prob)
        path[:] = _bridges(rng, start, start * own, sigma, p.path_n_steps)
    return paths


def _bridges(rng: np.random.Generator, start: Floats, end: Floats, sigma: Floats, n_steps: int) -> Floats:
    """Return Brownian bridges from (g,) to (g,), straight where sigma is 0, kept above 0: (n_steps, g)."""
    time = np.linspace(0, 1, n_steps)[:, None]
    walk = np.zeros((n_steps, start.size))
    walk[1:] = rng.standard_normal((n_steps - 1, start.size)).cumsum(axis=0) * sigma / np.sqrt(n_steps - 1)
    bridge: Floats = (1 - time) * start + time * end + walk - time * walk[-1]
    return np.abs(bridge)


def _factors(
    rng: np.random.Generator, shape: tuple[int, ...], prob: float, loc: float, scale: float, down_prob: float
) -> Floats:
    """Return log-normal factors, 1 for the genes that are not selected."""
    selected = rng.random(shape) < prob
    log_factor = np.abs(rng.normal(loc, scale, shape))
    down = rng.random(shape) < down_prob
    return np.where(selected, np.exp(np.where(down, -log_factor, log_factor)), 1.0)


def _blocks(p: SplatParameters, genes: _Genes) -> Iterator[_Block]:
    for number, start in enumerate(range(0, p.n_obs, _CELLS), start=1):
        rng = np.random.default_rng([p.seed, number])
        obs = _draw_cells(rng, p, start)
        mean = _true_mean(obs, genes)
        counts = _draw_counts(rng, p, mean, genes.bcv_factor)
        # the last block is drawn whole and cut, so that its cells are the same in a larger simulation
        n = min(_CELLS, p.n_obs - start)
        yield _Block(counts[:n], mean[:n], obs.iloc[:n])


def _draw_cells(rng: np.random.Generator, p: SplatParameters, start: int) -> pd.DataFrame:
    group = rng.choice(p.n_groups, _CELLS, p=p.group_probabilities)
    batch = rng.choice(p.n_batches, _CELLS, p=p.batch_proportions)
    obs: dict[str, Any] = {
        "group": pd.Categorical.from_codes(group, pd.Index(p.group_names)),
        "batch": pd.Categorical.from_codes(batch, pd.Index(p.batch_names)),
        "library_size": rng.lognormal(p.log_library_size, p.lib_scale, _CELLS),
    }
    if p.mode == "paths":
        weight = np.linspace(p.path_skew, 1 - p.path_skew, p.path_n_steps)
        step = rng.choice(p.path_n_steps, _CELLS, p=weight / weight.sum())
        obs |= {"step": step + 1, "pseudotime": _depths(p)[group] + step / (p.path_n_steps - 1)}
    return pd.DataFrame(obs, index=_index("Cell", _CELLS, start))


def _true_mean(obs: pd.DataFrame, genes: _Genes) -> Floats:
    """Return the expected counts of each cell, (b, g) float32."""
    step = obs["step"].to_numpy() - 1 if "step" in obs else 0
    mean: Floats = genes.program[obs["group"].cat.codes, step] * genes.share[obs["batch"].cat.codes]
    per_share = obs["library_size"].to_numpy() / mean.sum(axis=1)
    mean *= per_share.astype(np.float32)[:, None]
    return mean


def _draw_counts(rng: np.random.Generator, p: SplatParameters, mean: Floats, bcv_factor: Floats) -> sp.csr_matrix:
    """Return gamma-Poisson counts after dropout, (b, g) CSR float32."""
    # mu bcv^2 = ((1 + common sqrt(mu)) factor)^2 is finite at mu = 0, where bcv itself is not
    scale = np.square((1 + np.float32(p.bcv_common) * np.sqrt(mean)) * bcv_factor)
    rate = rng.standard_gamma(mean / scale, dtype=np.float32) * scale
    counts = rng.poisson(rate)
    kept = np.flatnonzero(counts)
    if p.dropout_mid is not None:  # only what was counted can be lost: zeros need no draw
        lost = expit(p.dropout_shape * (np.log(rate.ravel()[kept]) - p.dropout_mid))
        kept = kept[rng.random(kept.size) >= lost]
    rows, columns = np.divmod(kept, mean.shape[1])
    indptr = np.concatenate([[0], np.bincount(rows, minlength=mean.shape[0]).cumsum()])
    values = counts.ravel()[kept].astype(np.float32)
    return sp.csr_matrix((values, columns.astype(np.int32), indptr), shape=mean.shape)


def _index(prefix: str, n: int, start: int = 0) -> pd.Index:
    # object, not the text type of pandas 3: anndata writes it as the string array that every version reads
    return pd.Index(numbered(prefix, n, start), dtype=object)


def _origins(p: SplatParameters) -> Sequence[int]:
    return p.path_from or (0,) * p.n_groups


def _depths(p: SplatParameters) -> npt.NDArray[np.int64]:
    """Return how many paths lie before each path, (n_groups,)."""
    depths: list[int] = []
    for origin in _origins(p):
        depths.append(depths[origin - 1] + 1 if origin else 0)
    return np.array(depths)


def _create(file: h5py.File, p: SplatParameters, genes: _Genes, *, keep_means: bool) -> None:
    """Write an .h5ad file of no cells whose arrays can grow."""
    file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
    no_cells = _draw_cells(np.random.default_rng(0), p, 0).iloc[:0]
    write_elem(file, "obs", no_cells, dataset_kwargs={"maxshape": (None,), "chunks": (4096,)})
    write_elem(file, "var", genes.var)
    write_elem(file, "uns", _uns(p))
    for slot in ("layers", "obsm", "obsp", "varm", "varp"):
        write_elem(file, slot, {})
    no_counts = sp.csr_matrix((0, p.n_vars), dtype=np.float32)
    no_counts.indptr = no_counts.indptr.astype(np.int64)  # as many counts as will come
    # not compressed, as anndata writes by default: training reads small blocks at random, and of a compressed chunk
    # nothing can be read without all of it
    write_elem(file, "X", no_counts, dataset_kwargs={"chunks": (8192,)})
    if keep_means:
        growing = {"maxshape": (None, p.n_vars), "chunks": (64, p.n_vars)}
        write_elem(file["layers"], "true_mean", np.empty((0, p.n_vars), np.float32), dataset_kwargs=growing)


def _append(file: h5py.File, block: _Block) -> None:
    sparse_dataset(file["X"]).append(block.counts)
    if "true_mean" in file["layers"]:
        _extend(file["layers"]["true_mean"], block.true_mean)
    obs = file["obs"]
    _extend(obs[obs.attrs["_index"]], block.obs.index.to_numpy())
    for name, column in block.obs.items():
        if isinstance(column.dtype, pd.CategoricalDtype):
            _extend(obs[name]["codes"], column.cat.codes.to_numpy())
        else:
            _extend(obs[name], column.to_numpy())


def _extend(dataset: h5py.Dataset, values: npt.NDArray[Any]) -> None:
    start = dataset.shape[0]
    dataset.resize(start + len(values), axis=0)
    dataset[start:] = values


def _uns(p: SplatParameters) -> dict[str, str]:
    return {"simulation": p.model_dump_json()}

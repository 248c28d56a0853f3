"""Population dynamics and balance on simulated populations: recovery, left-out times, fates, seconds.

``python -m benchmarks.population_dynamics [--seeds 10] [--sizes 1500 10000 100000] [--only recovery|balance|scale]``

Each line has a measured number and the one that is asked for. The population of the first part is simulated on a grid
that is finer than that of the fit; the tree of the second has a root and two arms, 0.7 of the cells leave by one.
"""

from __future__ import annotations

import argparse
import time
from functools import cache
from typing import Any, NamedTuple

import anndata
import numpy as np
from sklearn.neighbors import NearestNeighbors

from anncoder.dynamics.populations.balance import Rates, balanced_rates, fates, potential, symmetric_graph
from anncoder.dynamics.populations.finite_volumes import centres, faces, rates, solve
from anncoder.dynamics.populations.population import Grid, Population, Snapshots
from anncoder.dynamics.populations.population_errors import (
    LeftOut,
    bands,
    choose_smoothness,
    covariance,
    left_out,
    profile,
)
from anncoder.tl.time_series.population_balance import graph_of

TIMES = np.array([0.0, 2.0, 4.0, 6.0, 8.0])
DIFFUSION, ERROR, REPLICATES = 4e-4, 0.05, 3
SCORED = np.linspace(0.1, 0.9, 81)
FINE = 500
Array = np.ndarray[Any, Any]


def true_velocity(s: Array) -> Array:
    """Return the velocity of the simulated population."""
    return 0.12 * np.exp(-(((s - 0.35) / 0.25) ** 2)) + 0.03


def true_growth(s: Array) -> Array:
    """Return the growth of the simulated population."""
    return 0.3 * np.tanh((0.55 - s) / 0.1) + 0.1


@cache
def _true_masses() -> Array:
    at = faces(FINE)
    law = rates(np.full(FINE - 1, DIFFUSION), true_velocity(at), true_growth(centres(FINE)))
    start = np.exp(-(((centres(FINE) - 0.12) / 0.04) ** 2) / 2)
    return solve(law, start / start.sum(), TIMES.tolist())


def population(seed: int, n: int = 500) -> Snapshots:
    """Return cells of five times and sizes with an error of 5 %, of three replicates."""
    random = np.random.default_rng(seed)
    cells, sizes = [], []
    for mass in _true_masses():
        centre = random.choice(centres(FINE), n, p=mass / mass.sum())
        cells.append(np.clip(centre + random.uniform(-0.5, 0.5, n) / FINE, 0, 1))
        sizes.append(np.log(mass.sum()) + ERROR * random.standard_normal(REPLICATES).mean())
    return Snapshots(TIMES, cells, np.array(sizes), np.full(len(TIMES), ERROR / np.sqrt(REPLICATES)))


class Recovery(NamedTuple):
    """A fit against the truth."""

    smoothness: float
    velocity: float  # correlation
    velocity_error: float  # median, relative
    growth: float  # correlation
    growth_error: float  # mean, absolute
    diffusion: float  # over the true one
    covered_velocity: float  # share of the coordinates where the truth is within the band
    covered_growth: float
    covered_diffusion: float  # by the profile
    left_out: LeftOut  # the middle time
    seconds: float


def recovered(seed: int) -> Recovery:
    """Simulate, fit, and compare."""
    data, began = population(seed), time.perf_counter()
    grid = Grid(smoothness=choose_smoothness(data, Grid()))
    fit = Population(data, grid).fit()
    spread = covariance(fit)
    band, of_diffusion, middle = bands(fit, SCORED, spread), profile(fit, spread), left_out(fit)[1]
    seconds = time.perf_counter() - began
    v, g, truth_v, truth_g = fit.velocity(SCORED), fit.growth(SCORED), true_velocity(SCORED), true_growth(SCORED)
    low, high = of_diffusion.interval
    return Recovery(
        grid.smoothness,
        float(np.corrcoef(v, truth_v)[0, 1]),
        float(np.median(np.abs(v / truth_v - 1))),
        float(np.corrcoef(g, truth_g)[0, 1]),
        float(np.abs(g - truth_g).mean()),
        float(fit.diffusion(SCORED)[0] / DIFFUSION),
        float(np.mean((band.velocity[0] <= truth_v) & (truth_v <= band.velocity[1]))),
        float(np.mean((band.growth[0] <= truth_g) & (truth_g <= band.growth[1]))),
        float(low <= DIFFUSION <= high),
        middle,
        seconds,
    )


def recovery(n_seeds: int) -> None:
    """Print the recovery of seeds 0, 1, ..."""
    found = [recovered(seed) for seed in range(n_seeds)]
    asked = {
        "velocity": "correlation >= 0.95",
        "growth": "correlation >= 0.95",
        "diffusion": "0.5 to 2 times the true one",
        "covered_velocity": "0.95",
        "covered_growth": "0.95",
        "covered_diffusion": "0.95",
    }
    for name in Recovery._fields:
        if name != "left_out":
            _line(name, [getattr(one, name) for one in found], asked.get(name, ""))
    of_left_out = {"area": "<= 0.03", "null_area": ">= 3 times the area", "size_error": "", "null_size_error": ""}
    for name, wanted in of_left_out.items():
        _line(f"left out: {name}", [getattr(one.left_out, name) for one in found], wanted)


def _line(name: str, values: list[float], asked: str) -> None:
    print(f"{name:28s} mean {np.mean(values):8.4f}  min {min(values):8.4f}  max {max(values):8.4f}  {asked}")


class Tree(NamedTuple):
    """Cells of a tree with one root and two arms, and where they enter and leave."""

    points: Array  # (n, 10)
    entry: Array  # (n,) bool
    tips: Array  # (n, 2) bool
    entries: Array  # (n,) rates
    exits: Array  # (n, 2) rates

    def graph(self, n_neighbors: int = 10) -> Any:
        """Return the symmetric graph of neighbours."""
        return symmetric_graph(NearestNeighbors(n_neighbors=n_neighbors).fit(self.points).kneighbors_graph())


def tree(n: int, seed: int, share: float = 0.7) -> Tree:
    """Return a tree of even density: entry in the first tenth of the root, exits in the last tenths of the arms."""
    random = np.random.default_rng(seed)
    at = random.uniform(0, 3, n)
    branch = np.minimum(at.astype(int), 2)
    s = at - branch
    points = np.zeros((n, 10))
    points[:, 0] = np.where(branch == 0, s, 1 + s / np.sqrt(2))
    points[:, 1] = np.choose(branch, [np.zeros(n), s, -s]) / np.sqrt(2)
    points += 0.03 * random.standard_normal(points.shape)
    entry, tips = (branch == 0) & (s < 0.1), np.column_stack([(branch == arm) & (s > 0.9) for arm in (1, 2)])
    return Tree(points, entry, tips, entry / entry.sum(), tips / tips.sum(axis=0) * [share, 1 - share])


def fates_of(one: Tree, graph: Any, found: Rates, values: Array, diffusion: float, scale: Any) -> list[float]:
    """Return the first fate at the root and at both tips."""
    first = fates(graph, values, found, diffusion, exit_scale=scale)[:, 0]
    return [float(first[cells].mean()) for cells in (one.entry, *one.tips.T)]


def balance(n_seeds: int) -> None:
    """Print fates of 1,500 cells for four D and both scales of the exits."""
    for scale in ("balanced", "published"):
        for diffusion in (0.02, 0.05, 0.1, 0.3):
            rows = []
            for seed in range(n_seeds):
                one = tree(1500, seed)
                graph = one.graph()
                found = balanced_rates(graph, one.entries, one.exits)
                rows.append(fates_of(one, graph, found, potential(graph, found.net), diffusion, scale))
            root, tip, other = np.mean(rows, axis=0)
            sd = np.std(rows, axis=0, ddof=1)[0]
            at_root = f"{scale:10s} D {diffusion:4.2f}  root {root:.3f} +- {sd:.3f} (0.70)"
            print(f"{at_root}  tips {tip:.3f}, {other:.3f} (1, 0)")


def scale(sizes: list[int]) -> None:
    """Print the seconds of graph, potential and fates."""
    for n in sizes:
        one, marks = tree(n, 0), [time.perf_counter()]
        cells = anndata.AnnData(obsm={"X_ae": one.points}, shape=(n, 0))
        graph = graph_of(cells, 10, "X_ae", None)
        marks.append(time.perf_counter())
        found = balanced_rates(graph, one.entries, one.exits)
        values = potential(graph, found.net)
        marks.append(time.perf_counter())
        root, *_ = fates_of(one, graph, found, values, 0.05, "balanced")
        marks.append(time.perf_counter())
        neighbors, of_potential, of_fates = np.diff(marks)
        line = f"{n:7,} cells: neighbours {neighbors:.1f} s, potential {of_potential:.2f} s, fates {of_fates:.2f} s"
        print(f"{line}, root {root:.3f}")


def main() -> None:
    """Print all, or one part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1500, 10_000, 100_000])
    parser.add_argument("--only", choices=["recovery", "balance", "scale"])
    options = parser.parse_args()
    if options.only in (None, "recovery"):
        recovery(options.seeds)
    if options.only in (None, "balance"):
        balance(min(options.seeds, 8))
    if options.only in (None, "scale"):
        scale(options.sizes)


if __name__ == "__main__":
    main()

"""``anncoder dynamics`` and ``anncoder balance``: populations in files of any size."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import anndata
import numpy as np
import pandas as pd

from anncoder.cli.run_folder import write_json
from anncoder.cli.time_series.output import (
    draw,
    options_of,
    output_of,
    plain,
    refuse_no_latent,
    results_beside,
    say_plan,
    write_into,
    write_table,
)
from anncoder.errors import ConfigError, FileError, counted
from anncoder.tl.slot_files import CellsFile, open_cells
from anncoder.tl.time_series.population_balance import APPROXIMATE, balance
from anncoder.tl.time_series.populations import dynamics

DYNAMICS = ("knots_velocity", "knots_growth", "knots_diffusion", "n_grid", "smoothness")
BALANCE = ("D", "exit_scale", "n_neighbors", "neighbors_key")
# measured on one core: seconds a cell of neighbours (all pairs, approximate) and of fates; of fits on 200 volumes
PAIR, SEARCH, FATES, FIT = 1e-8, 4e-4, 1e-4, 0.25


class DynamicsRequest(NamedTuple):
    """Arguments and options of ``anncoder dynamics``."""

    data: Path
    output: Path
    time_key: str
    coordinate: str
    sizes: Path | None
    key: str
    settings: list[str] | None
    in_place: bool
    dry_run: bool
    quiet: bool


class BalanceRequest(NamedTuple):
    """Arguments and options of ``anncoder balance``."""

    data: Path
    output: Path
    labels: str
    entry: list[str] | None
    exits: list[str] | None
    rates: str | None
    key: str
    use_rep: str | None
    key_added: str
    basis: str
    settings: list[str] | None
    in_place: bool
    dry_run: bool
    quiet: bool


def run_dynamics(request: DynamicsRequest) -> None:
    """Write the input plus ``uns[key]``; table, numbers and picture beside it."""
    options = options_of(request.settings, DYNAMICS)
    output = output_of(request.data, request.output, in_place=request.in_place)
    sizes = None if request.sizes is None else _read_sizes(request.sizes)
    with open_cells(request.data, uns=[request.key]) as file:
        if request.dry_run:
            n_times = file.cells.obs[request.time_key].nunique() if request.time_key in file.cells.obs else 0
            fits = 4 * max(n_times - 1, 1) + 10
            seconds = fits * FIT * (options.get("n_grid", 200) / 200) ** 2
            say_plan(file, f"{counted(n_times, 'time')} in obs[{request.time_key!r}]", 0, seconds)
            return
        dynamics(file.cells, request.time_key, request.coordinate, sizes=sizes, key_added=request.key, **options)
        found = file.cells.uns[request.key]
        with results_beside(output) as folder:
            write_into(file, output, [f"uns/{request.key}"])
            curves = {f"{name}{end}": found[f"{name}{end}"] for name in "vgD" for end in ("", "_low", "_high")}
            write_table(pd.DataFrame({"s": found["s"], **curves}), folder / "dynamics.csv")
            write_json(folder / "dynamics.json", plain({**found, "output": output.name}))
            draw(folder / "dynamics.png", lambda pl: pl.dynamics(file.cells, key=request.key)[0, 0])


def run_balance(request: BalanceRequest) -> None:
    """Write the input plus ``obs["key_V"]``, ``obsm["key_fates"]``, ``uns["key"]``; table and picture beside it."""
    options = options_of(request.settings, BALANCE)
    exits = None if request.exits is None else _rates_of(request.exits)
    output, rep = (
        output_of(request.data, request.output, in_place=request.in_place),
        request.use_rep or f"X_{request.key}",
    )
    graph = options.get("neighbors_key")
    slot = "connectivities" if graph == "neighbors" else f"{graph}_connectivities"
    wanted = {"obsm": {rep, request.basis, f"{request.key_added}_fates"}, "uns": [request.key_added]}
    with open_cells(request.data, obsp=[] if graph is None else [slot], **wanted) as file:
        refuse_no_latent(file, rep, needed=graph is None)
        if request.dry_run:
            _plan_of_balance(file, rep, options)
            return
        flows: dict[str, Any] = {
            "labels": request.labels,
            "entry": request.entry,
            "exits": exits,
            "rates": request.rates,
        }
        balance(file.cells, **flows, use_rep=rep, key_added=request.key_added, **options)
        with results_beside(output) as folder:
            names = (f"obs/{request.key_added}_V", f"obsm/{request.key_added}_fates", f"uns/{request.key_added}")
            write_into(file, output, names)
            write_table(_fates_of_labels(file.cells, request.labels, request.key_added), folder / "balance.csv")
            write_json(folder / "balance.json", plain({**file.cells.uns[request.key_added], "output": output.name}))
            if request.basis in file.cells.obsm:
                drawn = {"basis": request.basis, "key": request.key_added}
                draw(folder / "balance.png", lambda pl: pl.balance(file.cells, **drawn)[0])


def _read_sizes(path: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(path, sep="\t" if path.suffix == ".tsv" else ",")
    except FileNotFoundError:
        raise FileError("no-file", f"no such file: {str(path)!r}", str(path), "check the path") from None
    except (OSError, ValueError) as error:  # of pandas, too
        what = f"cannot read the sizes in {str(path)!r}: {str(error).splitlines()[0]}"
        raise FileError(
            "unreadable", what, str(path), "a CSV file with the columns time, size and, if known, sd"
        ) from None


def _rates_of(words: list[str]) -> dict[str, float]:
    rates = {}
    for word in words:
        label, equals, rate = word.rpartition("=") if "=" in word else (word, "", "1")
        try:
            rates[label] = float(rate)
        except ValueError:
            what = f"{word!r} is not of the form LABEL=RATE"
            raise ConfigError("bad-assignment", what, "--exits", "--exits Ery=0.7 --exits Mono=0.3") from None
        del equals
    return rates


def _plan_of_balance(file: CellsFile, rep: str, options: Mapping[str, Any]) -> None:
    n, k = file.cells.n_obs, int(options.get("n_neighbors", 10))
    width = file.cells.obsm[rep].shape[1] if rep in file.cells.obsm else 0
    search = 0.0 if "neighbors_key" in options else SEARCH * n if n > APPROXIMATE else PAIR * n**2
    edges = 2 * n * k
    say_plan(file, f"latent of {width}, {edges:,} neighbours at most", 8 * n * width + 250 * edges, search + FATES * n)


def _fates_of_labels(cells: anndata.AnnData, labels: str, key: str) -> pd.DataFrame:
    # mean fates and potential of each label
    names = [f"fate_{name}" for name in cells.uns[key]["names"]]
    table = pd.DataFrame(cells.obsm[f"{key}_fates"], columns=names)
    table["potential"], label = cells.obs[f"{key}_V"].to_numpy(), np.asarray(cells.obs[labels], dtype=object)
    groups = table.groupby(pd.Series(label).map(str), sort=True)
    return groups.mean().assign(n_obs=groups.size()).rename_axis("label").reset_index()

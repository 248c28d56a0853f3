"""``anncoder transport``: transport between times, fates and flows, in files of any size."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import anndata
import numpy as np
import pandas as pd

from anncoder.cli.exit import signals
from anncoder.cli.run_folder import write_json
from anncoder.cli.settings import set_in
from anncoder.cli.time_series.output import (
    draw,
    options_of,
    output_of,
    plain,
    refuse_no_latent,
    results_beside,
    say_plan,
    write_table,
)
from anncoder.data.adata import obs_column
from anncoder.device import choose_device
from anncoder.errors import InputError, counted
from anncoder.tl.slot_files import CellsFile, open_cells, write_slots
from anncoder.tl.time_series.held_out_times import validate_transport
from anncoder.tl.time_series.time_points import read_rates, read_times
from anncoder.tl.time_series.transport_maps import Settings, metacells_of, pairs_of, transport
from anncoder.tl.time_series.transport_record import labels_at, refuse_taken, settings_of
from anncoder.tl.time_series.transport_results import fates, flows
from anncoder.training.progress import announce

logger = logging.getLogger("anncoder")

OPTIONS = (*Settings._fields, "pairs", "batch_key", "device")
KEY, FATES, TABLE = "transport", "fates", "transport_validation"
# measured on one core, ten coordinates: pairs of cells a second in a sweep, sweeps, seconds of a time held out
RATE, SWEEPS, HELD_OUT = 2.5e8, 16, 7.0
BLOCKS = 90 * 2**20  # bytes, of blocks of pairs and torch


class TransportRequest(NamedTuple):
    """Arguments and options of ``anncoder transport``."""

    data: Path
    output: Path
    time_key: str
    labels: str | None
    key: str
    use_rep: str | None
    growth_key: str | None
    settings: list[str] | None
    validate: bool
    in_place: bool
    dry_run: bool
    quiet: bool


def run_transport(request: TransportRequest) -> None:
    """Write the input plus ``obs["transport_f"]``, ``_g``, ``_growth``, fates and records; tables beside it.

    Interrupted, it writes the pairs that are solved, and ends with the signal's code.
    """
    options = options_of(request.settings, OPTIONS)
    output = output_of(request.data, request.output, in_place=request.in_place)
    rep = request.use_rep or f"X_{request.key}"
    records = [KEY, FATES, TABLE, "growth", f"{request.labels}_colors"]
    with open_cells(request.data, obsm={rep, FATES}, uns=records) as file, set_in({"--set": options}):
        refuse_no_latent(file, rep, needed=True)
        settings = Settings(**{name: value for name, value in options.items() if name in Settings._fields}).checked()
        device = choose_device(options.get("device", "auto"))
        pairs, times = _checked(file.cells, request, options)
        if request.dry_run:
            sizes = [(t0, t1, int((times == t0).sum()), int((times == t1).sum())) for t0, t1 in pairs]
            held_out = max(len(np.unique(times)) - 2, 0) if request.validate else 0
            _say_plan(file, np.shape(file.cells.obsm[rep])[1:], sizes, held_out, settings, device)
            return
        made = list(_made(file.cells, rep, request, options))
        with results_beside(output) as folder, signals.saving("the pairs solved until then were saved"):
            write_slots(file, output, made)
            _write_results(file.cells, made, request.labels, folder, output)


def _checked(
    cells: anndata.AnnData, request: TransportRequest, options: Mapping[str, Any]
) -> tuple[list[tuple[float, float]], np.ndarray[Any, Any]]:
    """Return pairs and times; errors that would else come after the transport."""
    times = read_times(cells, request.time_key)
    pairs = pairs_of(options.get("pairs"), np.unique(times))
    refuse_taken(cells, KEY, [("obs", f"{KEY}_{name}") for name in ("f", "g", "growth")], "transport")
    if request.labels is not None:
        refuse_taken(cells, FATES, [("obsm", FATES)], "fates")
        labels_at(cells, request.labels, np.flatnonzero(times == pairs[-1][1]), times)
    if request.validate:
        refuse_taken(cells, TABLE, [], "validate_transport")
        if (n := len(np.unique(times))) < 3:
            what, where = f"there are {n} times; one in the middle is to be held out", f"obs[{request.time_key!r}]"
            raise InputError("bad-times", what, where, "leave out --validate, or give three time points or more")
    return pairs, times


def _say_plan(
    file: CellsFile,
    shape: tuple[int, ...],
    sizes: list[tuple[float, float, int, int]],
    held_out: int,
    settings: Settings,
    device: Any,
) -> None:
    seconds, largest = HELD_OUT * held_out, 0
    for t0, t1, n0, n1 in sizes:
        most = metacells_of(settings, n0, n1, device)
        by = f" by {most:,} metacells" if most else ""
        announce(f"transport {t0:g} to {t1:g}: {n0:,} x {n1:,} cells{by}")
        solved = min(n0, most) * min(n1, most) + (n0 + n1) * most if most else n0 * n1
        seconds += solved * SWEEPS * settings.growth_iters / RATE
        largest = max(largest, n0 + n1)
    width = math.prod(shape)
    memory = BLOCKS + 8 * width * (file.cells.n_obs + 3 * largest)
    say_plan(file, f"{counted(len(sizes), 'pair')}, latent of {width}", memory, seconds)


def _made(cells: anndata.AnnData, rep: str, request: TransportRequest, options: Mapping[str, Any]) -> Iterator[str]:
    """Yield the slots that are made; those until then if a signal comes."""
    progress = False if request.quiet else None
    growth_key = "auto" if request.growth_key is None else request.growth_key
    transport(cells, request.time_key, use_rep=rep, growth_key=growth_key, progress=progress, **options)
    yield from (f"obs/{KEY}_{name}" for name in ("f", "g", "growth"))
    yield f"uns/{KEY}"
    try:
        if request.labels is not None and signals.number is None:
            fates(cells, request.labels)
            yield from (f"obsm/{FATES}", f"uns/{FATES}")
        if request.validate and signals.number is None:
            validate_transport(cells, progress=progress)
            yield f"uns/{TABLE}"
    except KeyboardInterrupt:
        logger.warning("interrupted: the transport is written, and what was made of it until then")


def _write_results(cells: anndata.AnnData, made: list[str], labels: str | None, folder: Path, output: Path) -> None:
    pairs, settings = cells.uns[KEY]["pairs"], settings_of(cells, KEY) or {}
    for pair in pairs.to_dict("records"):
        logger.debug("pair %s", json.dumps(plain(pair)))
    write_table(pairs, folder / "pairs.csv")
    write_table(_growth_of(cells, settings, labels), folder / "growth.csv")
    numbers: dict[str, Any] = {"output": output.name, "settings": settings, "pairs": pairs}
    if f"obsm/{FATES}" in made:
        write_table(_fates_of(cells, settings["time_key"], str(labels)), folder / "fates.csv")
        _write_flows(cells, str(labels), folder)
    if f"uns/{TABLE}" in made:
        found = cells.uns[TABLE]
        write_table(found["table"], folder / "validation.csv")
        numbers["validation"] = {"table": found["table"], "sentences": found["sentences"]}
        draw(folder / "validation.png", lambda pl: pl.validation(cells)[0, 0])
    write_json(folder / "transport.json", plain(numbers))


def _write_flows(cells: anndata.AnnData, labels: str, folder: Path) -> None:
    try:
        table = flows(cells, labels)
    except InputError as error:
        if error.code != "no-labels":
            raise
        announce(f"no flows between labels: {error.what}")
        return
    write_table(table, folder / "flows.csv")
    draw(folder / "flow.png", lambda pl: pl.flow(cells, labels))


def _grouped(cells: anndata.AnnData, time_key: str, labels: str | None) -> list[pd.Series]:
    # times, and labels if there are any
    groups = [pd.Series(read_times(cells, time_key), cells.obs_names, name="time")]
    if labels is not None:
        column = obs_column(cells, labels, what="labels")
        groups.append(column.astype(object).where(column.notna(), "other").astype(str).rename("label"))
    return groups


def _growth_of(cells: anndata.AnnData, settings: Mapping[str, Any], labels: str | None) -> pd.DataFrame:
    table = pd.DataFrame({"learned": cells.obs[f"{KEY}_growth"]}, cells.obs_names)
    if settings["growth_key"] is not None:
        table.insert(0, "prior", read_rates(cells, settings["growth_key"], "growth_key"))
    groups = table.groupby(_grouped(cells, settings["time_key"], labels))
    return groups.mean().assign(n_obs=groups.size()).reset_index()


def _fates_of(cells: anndata.AnnData, time_key: str, labels: str) -> pd.DataFrame:
    # mean chances of each label, until the time that they are of
    names = [f"fate_{name}" for name in cells.uns[FATES]["names"]]
    table = pd.DataFrame(cells.obsm[FATES], cells.obs_names, names)
    groups = table.groupby(_grouped(cells, time_key, labels))
    return groups.mean().assign(n_obs=groups.size()).dropna().reset_index()

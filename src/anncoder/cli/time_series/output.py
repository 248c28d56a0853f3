"""Options, plans, run folders, tables and pictures of the commands on time series."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from anncoder.cli.exit import signals
from anncoder.cli.run_folder import LOG, logged, refuse_run_folder, run_folder
from anncoder.cli.settings import parse_assignments
from anncoder.config import unknown_key
from anncoder.errors import counted
from anncoder.io.atomic import atomic_path
from anncoder.io.output_paths import outputs_of
from anncoder.tl.slot_files import CellsFile, names_of, write_slots
from anncoder.training.progress import announce

LIBRARIES = 400  # MiB


def options_of(assignments: list[str] | None, known: Collection[str]) -> dict[str, Any]:
    """Return the settings of ``--set``; a ConfigError for a name that is not among those known."""
    found = parse_assignments(assignments or ())
    for name in found:
        if name not in known:
            raise unknown_key(name, list(known), where="--set")
    return found


def output_of(data: Path, output: Path, *, in_place: bool) -> Path:
    """Return the output of a single input; errors for a name that cannot be used."""
    (found,) = outputs_of(str(data), output, in_place=in_place)
    refuse_run_folder(found)
    return found


@contextmanager
def results_beside(output: Path) -> Iterator[Path]:
    """Give the run folder of an output; messages go to its log as well."""
    folder = run_folder(output)
    output.parent.mkdir(exist_ok=True)
    folder.mkdir(exist_ok=True)
    with logged(folder / LOG):
        yield folder
        announce(f"{output}; table, numbers and log: {folder}")


def write_into(file: CellsFile, output: Path, slots: Collection[str]) -> None:
    """Write a copy of the input with new slots; a signal waits until it is complete."""
    with signals.saving():
        write_slots(file, output, slots)


def refuse_no_latent(file: CellsFile, rep: str, *, needed: bool) -> None:
    """Raise a ConfigError if the coordinates that are needed are not in the file."""
    if needed and rep not in file.cells.obsm:
        raise unknown_key(rep, names_of(file, "obsm"), where="--key or --use-rep (a slot of obsm)")


def say_plan(file: CellsFile, what: str, memory: float, seconds: float) -> None:
    """Say how many cells there are, and what memory (bytes beside the libraries) and time they will take."""
    n = file.cells.n_obs
    needed = LIBRARIES + math.ceil((memory + 200 * n) / 2**20)
    costs = f"about {needed:,} MiB, {max(1, round(seconds)):,} s"
    announce(f"{file.path}: {counted(n, 'cell')}, {what}; {costs}; nothing was written")


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a CSV file, whole or not at all."""
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False)


def draw(path: Path, drawn: Callable[[Any], Any]) -> None:
    """Save the figure of the axes that a function of ``pl`` returns."""
    from matplotlib import pyplot as plt

    from anncoder import pl

    plt.switch_backend("agg")  # a command needs no window, and may have no display
    figure = drawn(pl).figure
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150)
    plt.close(figure)


def plain(value: Any) -> Any:
    """Return a value as JSON has it: no arrays, and null for what is no finite number."""
    if isinstance(value, pd.DataFrame):
        return {str(name): plain(column.to_numpy()) for name, column in value.items()} | {
            "index": [str(name) for name in value.index]
        }
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value

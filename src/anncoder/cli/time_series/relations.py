"""``anncoder relations``: one gene against all others, as a table."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import typer

from anncoder.cli.settings import parse_assignments, set_in
from anncoder.config import unknown_key
from anncoder.io.atomic import atomic_path, locked
from anncoder.io.h5ad_write import read_input
from anncoder.io.output_paths import refuse_output
from anncoder.tl.time_series.relations import gene_relations

SHOWN = 10  # targets that are printed


class RelationsRequest(NamedTuple):
    """Arguments and options of ``anncoder relations``."""

    data: Path
    output: Path
    source: str
    targets: list[str] | None = None
    layer: str | None = None
    settings: tuple[str, ...] = ()
    seed: int | None = None
    threads: int | None = None
    quiet: bool = False

    def arguments(self) -> dict[str, Any]:
        """Return the other arguments of ``gene_relations``; an option beats ``--set``."""
        known = inspect.signature(gene_relations).parameters.values()
        names = [parameter.name for parameter in known if parameter.kind is parameter.KEYWORD_ONLY]
        values = parse_assignments(self.settings)
        for name in values:
            if name not in names:
                raise unknown_key(name, names, where="--set")
        given = {"layer": self.layer, "seed": self.seed, "threads": self.threads}
        given |= {"progress": False if self.quiet else None}
        return values | {name: value for name, value in given.items() if value is not None}


def run_relations(request: RelationsRequest) -> None:
    """Score a gene against the others, write the table to a CSV file, and print its first rows."""
    refuse_output(request.output, suffix=".csv")
    arguments = request.arguments()
    with locked(request.output):
        adata = read_input(request.data)
        with set_in({"--set": parse_assignments(request.settings)}):
            table = gene_relations(adata, request.source, request.targets or None, **arguments)
        with atomic_path(request.output) as temporary:
            table.to_csv(temporary)
    typer.echo(_in_short(table))
    typer.echo(f"{len(table):,} genes against {request.source}: {request.output}")


def _in_short(table: pd.DataFrame) -> str:
    names = ("score", "null_mean", "z", "q", "smoothed", "smoothed_z", "lag0", "directed")
    return str(table[[name for name in names if name in table]].head(SHOWN).to_string(float_format="%.3g"))

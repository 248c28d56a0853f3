"""API reference: a page for every public name, sorted by where it is defined; nothing to add for a new one."""

from __future__ import annotations

import inspect
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from notebook_pages import written
from sphinx.application import Sphinx

import anncoder
import anncoder.errors

REFERENCE = Path(__file__).resolve().parents[1] / "reference"
ERRORS = [
    f"anncoder.errors.{name}"
    for name, thing in vars(anncoder.errors).items()
    if inspect.isclass(thing) and issubclass(thing, anncoder.AnncoderError) and thing is not anncoder.AnncoderError
]


class Group(NamedTuple):
    """A heading, the modules (by their beginning) whose public names stand under it, and what is met without a name."""

    heading: str
    homes: tuple[str, ...]
    more: tuple[str, ...] = ()


class Page(NamedTuple):
    """A page on a module; its last group takes the names that no other one has taken."""

    module: str
    title: str
    lead: str
    groups: tuple[Group, ...]


PAGES = {
    "api": Page(
        "anncoder",
        "Models, evaluation, errors",
        "`import anncoder as ac`. Names are imported when they are first used, so the import costs nothing.",
        (
            Group("Models", ("anncoder.models.",), ("anncoder.models.base.Autoencoder",)),
            Group(
                "Check, evaluate, choose, report",
                ("anncoder.data.check", "anncoder.evaluation.", "anncoder.reporting."),
                (
                    "anncoder.evaluation.comparison.Evaluation",
                    "anncoder.reporting.page.ModelReport",
                ),
            ),
            Group("Errors", ("anncoder.errors",), tuple(ERRORS)),
            Group("Data from other readers, and more", ("",)),
        ),
    ),
    "tl": Page(
        "anncoder.tl",
        "Tools: `ac.tl`",
        "scanpy's manners: the AnnData comes first, results are written into it, and `X`, `raw` and your layers stay "
        "as they are. Files can take its place where a page says so.",
        (
            Group("Time series and populations", ("anncoder.tl.time_series.",)),
            Group("Autoencoders", ("",)),
        ),
    ),
    "pl": Page(
        "anncoder.pl",
        "Plots: `ac.pl`",
        "Every function draws into matplotlib axes and returns them; none shows a window or changes a setting.",
        (
            Group(
                "Time series and populations",
                tuple(f"anncoder.pl.{name}" for name in ("fate_", "populations", "relations", "transport_")),
            ),
            Group("Models and their results", ("",)),
        ),
    ),
    "datasets": Page(
        "anncoder.datasets",
        "Data sets: `ac.datasets`",
        "Nothing is downloaded: the real cells come with scanpy, the others are simulated, and their truth is known.",
        (Group("Real and simulated cells", ("",), ("anncoder.datasets.SplatParameters",)),),
    ),
}


def setup(app: Sphinx) -> dict[str, Any]:
    """Write the pages before Sphinx looks for them."""
    app.connect("config-inited", _write_pages)
    return {"parallel_read_safe": True}


def _write_pages(app: Sphinx, config: Any) -> None:
    for name, page in PAGES.items():
        written(REFERENCE / f"{name}.md", _text(page).encode())


def _text(page: Page) -> str:
    module = import_module(page.module)
    names = [name for name in module.__all__ if not name.startswith("_")]
    homes = {name: getattr(module, name).__module__ for name in names if not inspect.ismodule(getattr(module, name))}
    sections = {}
    for group in page.groups:
        mine = [name for name, home in homes.items() if home.startswith(group.homes)]
        homes = {name: home for name, home in homes.items() if name not in mine}
        entries = [f"{page.module}.{name}" for name in sorted(mine, key=str.lower)]
        sections[group.heading] = [*entries, *group.more]
    # the group that takes the rest is of autoencoders, and comes first; of the package itself it is the odds and ends
    ordered = sections if page.module == "anncoder" else dict(reversed(sections.items()))
    parts = [f"## {heading}\n\n{_summary(entries)}" for heading, entries in ordered.items() if entries]
    return "\n\n".join([f"# {page.title}", page.lead, *parts]) + "\n"


def _summary(entries: list[str]) -> str:
    lines = "\n".join(f"   {entry}" for entry in entries)
    return f"```{{eval-rst}}\n.. autosummary::\n   :toctree: generated\n   :nosignatures:\n\n{lines}\n```"

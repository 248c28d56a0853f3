"""What is written about the package: links lead somewhere, parameters are all described, numbers were measured."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import anncoder as ac
from anncoder.cli.app import app
from anncoder.models import find, names

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
GENERATED = {"_build", "tutorials", "generated"}  # of the site, not in the repository
PAGES = [path for path in PAGES if not GENERATED & set(path.relative_to(ROOT).parts)]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

FENCE = re.compile(r"^(?P<fence>```+|~~~+).*?^(?P=fence)\s*$", re.DOTALL | re.MULTILINE)
CODE = re.compile(r"`[^`\n]+`")
LINK = re.compile(r"(?<!\\)\]\(\s*<?([^)\s>]+)>?\s*\)")
HEADING = re.compile(r"^#{1,6}\s+(.*?)\s*#*$", re.MULTILINE)
LABEL = re.compile(r"^\(([\w-]+)\)=$", re.MULTILINE)
NUMBER = re.compile(r"(?<![\w.])\d+\.\d+")


def text_of(path: Path) -> str:
    """Return the prose of a page or of a notebook, without its code."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return FENCE.sub("", text)


def anchors(path: Path) -> set[str]:
    """Return the anchors of a page as GitHub and the site make them of its headings, and those set by hand."""
    text = text_of(path)
    slugs = [re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", h).lower()) for h in HEADING.findall(text)]
    return {slug.replace(" ", "-") for slug in slugs} | set(LABEL.findall(text))


def links(path: Path) -> Iterator[str]:
    yield from (link for link in LINK.findall(CODE.sub("", text_of(path))) if not re.match(r"[a-z]+:", link))


def is_generated(target: Path) -> bool:
    folder = target.parent.relative_to(ROOT / "docs").as_posix() if target.is_relative_to(ROOT / "docs") else ""
    return folder in ("tutorials", "reference")


@pytest.mark.parametrize("path", [*PAGES, *NOTEBOOKS], ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_to_files_and_headings(path: Path) -> None:
    for link in links(path):
        place, _, anchor = link.partition("#")
        target = (path.parent / place).resolve() if place else path
        if is_generated(target):
            continue  # the build of the site checks these
        assert target.is_relative_to(ROOT), (link, "leads out of the repository")
        assert target.exists(), (link, "there is no such file")
        assert not anchor or anchor in anchors(target), (link, "there is no such heading", sorted(anchors(target)))


def test_the_readme_can_be_read_where_only_the_repository_is() -> None:
    assert len(list(links(ROOT / "README.md"))) > 10  # or they were not found
    assert not [link for link in links(ROOT / "README.md") if link.startswith(("/", "docs/tutorials", "docs/_"))]


COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
SHELL = re.compile(r"^```(?:bash|sh)\n(.*?)^```", re.DOTALL | re.MULTILINE)
OURS = re.compile(r"(?:^|[ \"(])anncoder ([a-z]+)\b([^|&#]*)")


def commands(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield our commands in the shell blocks of a page with the options that they are given."""
    for block in SHELL.findall(path.read_text(encoding="utf-8")):
        for line in block.replace("\\\n", " ").splitlines():
            if not line.startswith("#"):
                yield from ((name, re.findall(r"(?<=\s)--?[a-z][\w-]*", rest)) for name, rest in OURS.findall(line))


def test_commands_on_pages_and_their_options_exist() -> None:
    found = [(path.name, *each) for path in PAGES for each in commands(path)]
    assert len(found) > 30  # or they were not found
    for page, name, options in found:
        assert name in COMMANDS, (page, name)
        spellings = [s for p in COMMANDS[name].params for s in (*p.opts, *p.secondary_opts)]
        assert set(options) <= {*spellings, "--help"}, (page, name, options)


def documented(docstring: str | None) -> set[str]:
    """Return the parameters that a docstring describes."""
    _, _, section = inspect.cleandoc(docstring or "").partition("Parameters\n----------\n")
    section = re.split(r"\n\n\w+\n-{3,}\n", section)[0]
    lines = [line.split(" :")[0] for line in section.splitlines() if re.match(r"[*\w]", line)]
    return {name.strip(" *") for line in lines for name in line.split(",")}


def described() -> Iterator[tuple[str, Any]]:
    """Yield every public function, class and method with its name."""
    for module in (ac, ac.tl, ac.pl, ac.datasets):
        for name in module.__all__:
            thing = getattr(module, name)
            if inspect.isfunction(thing):
                yield f"{module.__name__}.{name}", thing
            elif inspect.isclass(thing):
                yield from methods(thing)
    for name in names():
        yield from methods(find(name))


def methods(thing: type[Any]) -> Iterator[tuple[str, Any]]:
    if "Attributes\n" not in (thing.__doc__ or "") or thing.__init__ is not object.__init__:
        yield thing.__name__, thing
    for name, method in inspect.getmembers(thing, inspect.isfunction):
        if not name.startswith("_"):
            yield f"{thing.__name__}.{name}", method


def test_every_parameter_of_every_public_name_is_described_where_it_is() -> None:
    missing, elsewhere = {}, []
    for name, thing in described():
        asked = [p for p in inspect.signature(thing).parameters if p not in ("self", "args")]
        fields = "Attributes\n" in (thing.__doc__ or "")  # those of a dataclass
        lacking = [] if fields else sorted(set(asked) - documented(thing.__doc__))
        if lacking:
            missing[name] = lacking
        if re.search(r"^ *As (in|of|for) ", thing.__doc__ or "", re.MULTILINE):
            elsewhere.append(name)
    assert missing == {}
    assert elsewhere == []  # a reader of one page is not sent to another for a parameter


def test_the_numbers_of_the_decision_page_were_measured() -> None:
    """Each stands, digit for digit, on a page with the command that prints it; else that page was measured anew."""
    measured = " ".join(
        path.read_text(encoding="utf-8")
        for path in [ROOT / "README.md", ROOT / "docs" / "benchmarks.md", *(ROOT / "docs").glob("models*/*.md")]
    )
    page = text_of(ROOT / "docs" / "which-model.md")
    known = {*NUMBER.findall(measured), *NUMBER.findall((ROOT / "docs" / "models.md").read_text(encoding="utf-8"))}
    table, _, rest = page.partition("(pca-first)=")  # the first table rounds the numbers below it
    assert len(NUMBER.findall(rest)) > 60
    assert sorted(set(NUMBER.findall(rest)) - known) == []
    rounded = {f"{float(number):.{digits}f}" for number in known for digits in (1, 2, 3)}
    assert sorted(set(NUMBER.findall(table)) - rounded) == []

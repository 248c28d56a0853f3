"""Tutorials: the notebooks of the repository as they are stored, with a gallery; links between files mended."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import nbformat
from sphinx.application import Sphinx

DOCS = Path(__file__).resolve().parents[1]
NOTEBOOKS = DOCS.parent / "notebooks"
PAGES = DOCS / "tutorials"
LINK = re.compile(r"(?<=\]\()(?P<up>(?:\.\./)*)notebooks/(?P<name>\w+\.ipynb)")
TO_DOCS = re.compile(r"(?<=\]\()\.\./docs/")
PICTURE = "image/png"

INDEX = """# Tutorials

Notebooks that you can read here, as they were run, or run yourself: they are in the folder `notebooks/` of the
repository, each takes some minutes on two cores, and nothing has to be downloaded. They read in order, with the
quickstart first; what they claim is computed in front of you, PCA stands beside it, and where a network does not win
they say so.

::::{{grid}} 1 2 2 2
:gutter: 3

{cards}
::::

```{{toctree}}
:hidden:

{names}
```
"""
# tables of contents that the repository's own view of a page has no use for
BELOW = {"models": "\n```{toctree}\n:hidden:\n:glob:\n\nmodels/*\n```\n"}
CARD = """:::{{grid-item-card}} {title}
:link: {name}
:link-type: doc
{image}
{lead}
:::
"""


def setup(app: Sphinx) -> dict[str, Any]:
    """Write the pages before Sphinx looks for them."""
    app.connect("config-inited", _write_pages)
    app.connect("source-read", _mend_links)
    app.connect("env-get-outdated", lambda *_: ["project"])  # which lists pages that it does not name itself
    return {"parallel_read_safe": True}


def written(path: Path, content: bytes) -> None:
    """Write a file, if it is not there with that content: Sphinx reads again what is newer than its page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_bytes() != content:
        path.write_bytes(content)


def _write_pages(app: Sphinx, config: Any) -> None:
    cards, kept = [], {PAGES / "index.md"}
    paths = sorted(NOTEBOOKS.glob("*.ipynb"))
    for path in paths:
        notebook = nbformat.read(path, as_version=4)
        _prepare(notebook)
        page, picture = PAGES / path.name, PAGES / f"{path.stem}.png"
        written(page, nbformat.writes(notebook).encode())
        image = _first_picture(notebook)
        if image:
            written(picture, image)
        kept |= {page, picture}
        cards.append(_card(path.stem, notebook, picture if image else None))
    names = "\n".join(path.stem for path in paths)
    written(PAGES / "index.md", INDEX.format(cards="\n".join(cards), names=names).encode())
    for stale in set(PAGES.iterdir()) - kept:
        stale.unlink()


def _prepare(notebook: Any) -> None:
    """Link to pages, not to files of the repository; of lines that were written over, keep the last."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = TO_DOCS.sub("../", cell.source)
            continue
        streams = [output for output in cell.outputs if output.output_type == "stream"]
        if streams:
            text = "".join(output.text for output in streams)
            streams[0].text = "\n".join(line.rstrip("\r").rsplit("\r", 1)[-1] for line in text.split("\n"))
            kept = streams[:1] if streams[0].text.strip() else []
            cell.outputs = [o for o in cell.outputs if o in kept or o.output_type != "stream"]


def _first_picture(notebook: Any) -> bytes | None:
    """Return the picture of the cell with the tag "thumbnail", else the widest one, which shows most."""
    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if PICTURE in output.get("data", {}):
                data = base64.b64decode(output["data"][PICTURE])
                width = int.from_bytes(data[16:20], "big")  # of the header of a PNG file
                found.append(("thumbnail" in cell.metadata.get("tags", []), width, data))
    return max(found, key=lambda each: each[:2])[2] if found else None


def _card(name: str, notebook: Any, picture: Path | None) -> str:
    heading, _, rest = notebook.cells[0].source.partition("\n")
    lead = rest.strip().split("\n\n")[0].replace("\n", " ")
    image = f":img-top: {picture.name}\n" if picture else ""
    return CARD.format(title=heading.lstrip("# "), name=name, image=image, lead=lead)


def _without_a_place() -> list[str]:
    """Return the pages beside the landing page that no table of contents names: they are of the project."""
    tables = [path.read_text(encoding="utf-8") for path in DOCS.rglob("index.md")]
    named = {line.rsplit("/", 1)[-1].strip(" <>") for line in "\n".join(tables).splitlines()}
    named |= {line.partition("<")[2].rstrip(">") for line in "\n".join(tables).splitlines()}
    known = {*named, *(DOCS / "project.md").read_text(encoding="utf-8").split(), "index", "project"}
    return sorted({path.stem for path in DOCS.glob("*.md")} - known)


def _mend_links(app: Sphinx, name: str, source: list[str]) -> None:
    """Lead links to notebooks to their pages; links between pages are the same here and in the repository."""
    source[0] += BELOW.get(name, "")
    if name == "project":
        source[0] = source[0].replace(
            "changelog\n", "changelog\n" + "".join(f"{page}\n" for page in _without_a_place())
        )
    if not name.startswith("tutorials/"):
        source[0] = LINK.sub(lambda found: f"{found['up'].removeprefix('../')}tutorials/{found['name']}", source[0])

"""Types and defaults of parameters in the pages, from the signature: docstrings need not repeat them."""

from __future__ import annotations

import inspect
import re
import sys
from functools import partial
from typing import Any

from pydantic import BaseModel
from sphinx.application import Sphinx
from sphinx.util.typing import stringify_annotation

import anncoder
from anncoder.models.base import Autoencoder

UNDERLINE = re.compile(r"^-{3,}\s*$")
NAMES = re.compile(r"^\*{0,2}[A-Za-z_]\w*(, \*{0,2}[A-Za-z_]\w*)*$")
MODULES = (anncoder.tl, anncoder.pl, anncoder.datasets)
METHOD = re.compile(r":meth:`(?:Autoencoder\.)?(\w+)`")
BARE = re.compile(r":(func|class):`(\w+)`")
PAGE = re.compile(r"\bdocs/([\w/-]+)\.md\b")  # as it is called in help()
LITERAL = re.compile(r"(?:~?typing\.)?Literal\[([^\]]*)\]")


def setup(app: Sphinx) -> dict[str, Any]:
    """Read docstrings before numpydoc does."""
    app.connect("autodoc-process-docstring", _add_types, priority=400)
    return {"parallel_read_safe": True}


def _add_types(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    if inspect.isclass(thing) and issubclass(thing, BaseModel):
        lines[:] = _with_fields(lines, thing)
        return
    parameters = _parameters(thing)
    section = ""
    for position, line in enumerate(lines):
        line = BARE.sub(partial(_of_module, name), METHOD.sub(_of_every_model, line))
        lines[position] = line = PAGE.sub(r":doc:`\1 </\1>`", line)
        following = lines[position + 1] if position + 1 < len(lines) else ""
        if UNDERLINE.match(following):
            section = line.strip()
        elif section == "Returns" and line.startswith("``"):
            lines[position] = line.replace("``", "")  # numpydoc makes these words bold
        elif section == "Parameters" and NAMES.match(line):
            names = vars(sys.modules[thing.__module__])
            described = _of_all([parameters.get(part.lstrip("*")) for part in line.split(", ")], names)
            lines[position] = f"{line} : {described}" if described else line


def _of_module(name: str, found: re.Match[str]) -> str:
    """Give a public name its module: that of the page, if it has such a name, or the package."""
    place = next((module for module in MODULES if name.startswith(f"{module.__name__}.")), anncoder)
    home = next((module for module in (place, anncoder) if found[2] in module.__all__), None)
    return f":{found[1]}:`~{home.__name__}.{found[2]}`" if home else found[0]


def _of_every_model(found: re.Match[str]) -> str:
    """Lead a method to the page of those that all models share, if it is one of them."""
    shared = found[1] in vars(Autoencoder)
    return f":meth:`~{Autoencoder.__module__}.Autoencoder.{found[1]}`" if shared else found[0]


def _with_fields(lines: list[str], settings: type[BaseModel]) -> list[str]:
    """Return a docstring with the fields of a set of named values as its parameters."""
    end = next((at - 1 for at, line in enumerate(lines) if UNDERLINE.match(line)), len(lines))
    fields = ["Parameters", "----------"]
    for name, field in settings.model_fields.items():
        fields += [f"{name} : {_type(field.annotation)}, default: ``{field.default!r}``"]
        fields += [f"    {field.description or ''}".rstrip()]
    return [*lines[:end], *fields, "", *lines[end:]]


def _parameters(thing: Any) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(thing).parameters)
    except (TypeError, ValueError):
        return {}


def _of_all(parameters: list[inspect.Parameter | None], names: dict[str, Any]) -> str:
    """Return type and default of parameters that are described together; only the type where defaults differ."""
    known = [parameter for parameter in parameters if parameter is not None]
    types = list(dict.fromkeys(_type(parameter.annotation, names) for parameter in known))
    defaults = list(dict.fromkeys(repr(parameter.default).replace("'", '"') for parameter in known))
    given = len(defaults) == 1 and known[0].default is not inspect.Parameter.empty
    default = [f"default: ``{defaults[0]}``"] if given else []
    return ", ".join([*(types if len(types) == 1 else []), *default])


def _type(annotation: Any, names: dict[str, Any] | None = None) -> str:
    if annotation is inspect.Parameter.empty:
        return ""
    if isinstance(annotation, str):
        try:
            annotation = eval(annotation, names)  # as typing.get_type_hints does, for one of them at a time
        except (NameError, TypeError):
            return annotation  # of a module that is imported for types alone
    text = LITERAL.sub(_choices, stringify_annotation(annotation, mode="smart"))
    text = re.sub(r"~(?:\w+\.)+(?=\w)", "", text)  # the last part of a dotted name
    return text.replace("NoneType", "None")


def _choices(found: re.Match[str]) -> str:
    words = [part.strip().replace("'", '"') for part in found[1].split(",")]
    return " | ".join(f"``{word}``" for word in words)

"""Reference of the command line, from the commands themselves."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import typer
from notebook_pages import written
from sphinx.application import Sphinx

from anncoder.cli.app import app as commands

PAGE = Path(__file__).resolve().parents[1] / "reference" / "cli.rst"


def setup(app: Sphinx) -> dict[str, Any]:
    """Write the page before Sphinx looks for it."""
    app.connect("config-inited", _write_page)
    return {"parallel_read_safe": True}


def _write_page(app: Sphinx, config: Any) -> None:
    written(PAGE, "\n".join(_page(typer.main.get_command(commands))).encode())


def _page(group: Any) -> list[str]:
    lines = [*_heading("Command line", "="), group.help or "", ""]
    lines += [".. list-table::", "   :widths: 15 85", ""]
    for name, command in group.commands.items():
        lines += [f"   * - `{name} <#anncoder-{name}>`__", f"     - {_sentence(command.help)}"]
    lines += ["", "``anncoder COMMAND --help`` prints the same in a shell, ``--debug`` adds the traceback to an error,"]
    lines += ["``--install-completion`` lets the Tab key complete commands and options.", "", group.epilog or "", ""]
    for name, command in group.commands.items():
        lines += _section(name, command)
    return lines


def _section(name: str, command: Any) -> list[str]:
    shown = [parameter for parameter in command.params if not getattr(parameter, "hidden", False)]
    arguments = [p for p in shown if p.param_type_name == "argument"]
    options = [p for p in shown if p.param_type_name == "option"]
    usage = " ".join(
        ["anncoder", name, *(_metavar(p) for p in arguments), *(_needed(p) for p in options if p.required)]
    )
    lines = [f".. _anncoder-{name}:", "", *_heading(f"anncoder {name}", "-"), _sentence(command.help), ""]
    lines += [".. code-block:: text", "", f"   {usage} [OPTIONS]", "", f".. program:: anncoder {name}", ""]
    for parameter in arguments:
        lines += _described(_metavar(parameter), parameter)
    for parameter in sorted(options, key=lambda p: not p.required):
        lines += _described(_spelled(parameter), parameter)
    return lines


def _described(spelling: str, parameter: Any) -> list[str]:
    notes = [_sentence(getattr(parameter, "help", "") or "")]
    default = parameter.default
    if parameter.required:
        notes.append("*Required.*")
    elif not (default is None or callable(default) or default == [] or isinstance(default, bool)):
        notes.append(f"Default: ``{default}``.")
    return [f".. option:: {spelling}", "", f"   {' '.join(note for note in notes if note)}", ""]


def _spelled(parameter: Any) -> str:
    """Return an option as it is typed: ``-o, --output <PATH>``, or ``--report`` of a flag."""
    short_first = sorted(parameter.opts, key=len)
    if parameter.is_flag:
        return ", ".join([*short_first, *parameter.secondary_opts])
    value = f" <{_value(parameter)}>"
    return ", ".join(f"{spelling}{value}" for spelling in short_first)


def _value(parameter: Any) -> str:
    """Return the word for a value: TEXT, PATH, INT, FLOAT; typer's own of before version 0.26 too."""
    if parameter.metavar:
        return str(parameter.metavar).strip("<>").upper()
    kind = parameter.type_descriptor.annotation if hasattr(parameter, "type_descriptor") else parameter.type
    words = str(getattr(kind, "name", getattr(kind, "__name__", kind))).upper()
    return next((word for word in ("PATH", "INT", "FLOAT") if word in words), "TEXT")


def _metavar(parameter: Any) -> str:
    metavar = str(parameter.metavar or parameter.name.upper())
    return f"{metavar}..." if parameter.nargs == -1 and "..." not in metavar else metavar


def _needed(parameter: Any) -> str:
    return f"{max(parameter.opts, key=len)} {_value(parameter)}"


def _heading(text: str, line: str) -> list[str]:
    return [text, line * len(text), ""]


def _sentence(text: str) -> str:
    """Return a help text for a page: one line, with backticks and stars as they are printed."""
    words = " ".join(str(text).split())
    return re.sub(r"([\\*_|])", r"\\\1", words).replace("`", "``")

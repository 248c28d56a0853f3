"""Recipe, citation and workflows say what the package says: dependencies, version, licence, commands and options."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

import anncoder
from anncoder.cli.app import app

ROOT = Path(__file__).resolve().parents[1]
HOW_TO = ROOT / "docs" / "how-to"
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CONDA = {"torch": "pytorch", "matplotlib": "matplotlib-base"}


def recipe() -> dict[str, Any]:
    text = (HOW_TO / "conda" / "meta.yaml").read_text(encoding="utf-8")
    text = (
        re.sub(r"\{%.*?%\}", "", text).replace("{{ version }}", anncoder.__version__).replace("{{ PYTHON }}", "python")
    )
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def test_the_recipe_has_the_dependencies_of_the_package() -> None:
    wanted = {"python": PROJECT["requires-python"], "python-igraph": "", "leidenalg": ""}  # scanpy[leiden]
    for line in PROJECT["dependencies"]:
        name, bound = re.fullmatch(r"([\w-]+)(?:\[\w+\])?(.*)", line).groups()  # type: ignore[union-attr]
        wanted[CONDA.get(name, name)] = bound
    found = dict((*line.split(), "")[:2] for line in recipe()["requirements"]["run"])
    assert found == wanted
    assert recipe()["about"]["license"] == PROJECT["license"]
    assert recipe()["package"]["version"] == PROJECT["version"]


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == PROJECT["version"] == anncoder.__version__
    assert citation["license"] == PROJECT["license"]
    assert {"cff-version", "message", "title", "authors"} <= {*citation}


@pytest.mark.parametrize("name", ["Snakefile", "main.nf"])
def test_the_workflows_use_commands_and_options_that_there_are(name: str) -> None:
    text = (HOW_TO / "workflows" / name).read_text(encoding="utf-8")
    text = re.sub(r'"\n\s+"|\\+\n\s+', "", text)  # a command goes on in the next line
    used = re.findall(r"anncoder (\w+) ([^\n]*)", text)
    commands: Any = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert {command for command, _ in used} == {"check", "train", "embed", "evaluate", "report"}
    for command, words in used:
        options = {option for parameter in commands[command].params for option in parameter.opts}
        options |= {option for parameter in commands[command].params for option in parameter.secondary_opts}
        assert {*re.findall(r"(?<!\w)--?[a-z][a-z-]*", words)} <= options, command

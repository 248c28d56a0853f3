"""Remedies name options, commands, settings and arguments that exist where they are printed."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

import anncoder as ac
from anncoder.cli.app import app
from anncoder.config import TrainingConfig
from anncoder.datasets import SplatParameters
from anncoder.models import find, names

PACKAGE = Path(ac.__file__).parent
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z_-]*")
COMMAND = re.compile(r"(?<!import )(?<!from )\banncoder ([a-z]+)\b(?![.(])")  # no lines of Python
SETTING = re.compile(r"--set ([a-z_0-9]+)=")
ARGUMENT = re.compile(r"(?<![\w.'\"{-])([a-z][a-z_]*)=(?=[^=])")


def options_of(command: str) -> set[str]:
    found = {name for parameter in COMMANDS[command].params for name in (*parameter.opts, *parameter.secondary_opts)}
    return {*found, "--help", "--version"}


SETTINGS = {
    *TrainingConfig.model_fields,
    *SplatParameters.model_fields,
    *(field for name in names() for field in find(name).config_class.model_fields),
    *inspect.signature(ac.tl.gene_relations).parameters,  # of `anncoder relations`
}


def arguments() -> set[str]:
    public = [getattr(ac, name) for name in ac.__all__]
    public += [thing for module in (ac.tl, ac.pl, ac.datasets) for thing in vars(module).values() if callable(thing)]
    public += [find(name) for name in names()]
    found: set[str] = {*SETTINGS, "key_added"}
    for thing in public:
        for function in (thing, *(member for _, member in inspect.getmembers(thing, inspect.isfunction))):
            if inspect.isfunction(function) or inspect.isclass(function):
                found |= set(inspect.signature(function).parameters)
    return found


def messages() -> Iterator[tuple[str, str]]:
    """Yield file and text of every string of the package that is no docstring, f-strings with {} for their values."""
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                parts = [str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values]
                yield path.name, "".join(parts)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and {id(node)} - docs - inside:
                yield path.name, node.value


def test_every_option_command_and_setting_in_a_message_exists() -> None:
    options = set.union(*map(options_of, COMMANDS))
    for file, text in messages():
        assert set(OPTION.findall(text)) <= options | {"--max-restarts", "--nproc-per-node", "--include"}, (
            file,
            text,
        )  # torchrun's, git's
        commands = {word for word in COMMAND.findall(text) if f"anncoder {word}" not in NO_COMMANDS}
        assert commands <= set(COMMANDS), (file, text)
        assert set(SETTING.findall(text)) <= SETTINGS, (file, text)


NO_COMMANDS = {"anncoder wrote", "anncoder writes"}
# of other packages, in the lines of Python that remedies give
THEIRS = {"label", "index_unique", "axis", "use_rep", "uns_merge", "min_cells", "obs", "var", "dtype", "data"}


def test_every_argument_in_a_remedy_exists() -> None:
    known = arguments() | THEIRS
    for file, text in remedies():
        assert set(ARGUMENT.findall(re.sub(r"--set \S+", "", text))) <= known, (file, text)


def remedies() -> Iterator[tuple[str, str]]:
    """Yield file and text of the remedies that stand in calls of errors."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
                continue
            if node.func.id.endswith("Error") and (len(node.args) > 3 or node.keywords):
                last = [*node.args[3:4], *(k.value for k in node.keywords if k.arg == "remedy")]
                for value in last:
                    for part in ast.walk(value):
                        if isinstance(part, ast.Constant) and isinstance(part.value, str):
                            yield path.name, part.value


Fault = Callable[[anndata.AnnData], Any]


def without(adata: anndata.AnnData, n: int) -> anndata.AnnData:
    return adata[:, n:].copy()


def layered(adata: anndata.AnnData, values: Any) -> anndata.AnnData:
    adata.layers["counts"] = adata.X.copy()
    adata.X = values
    return adata


def repeated(adata: anndata.AnnData) -> anndata.AnnData:
    adata.var_names = ["twice", "twice", *adata.var_names[2:]]
    return adata


def with_value(adata: anndata.AnnData, value: float) -> anndata.AnnData:
    adata.X = adata.X.toarray()
    adata.X[0, 0] = value
    return adata


FAULTS: dict[str, Fault] = {
    "logarithms": lambda a: layered(a, np.log1p(a.X.toarray())),
    "logarithms alone": lambda a: anndata.AnnData(np.log1p(a.X.toarray()), a.obs, a.var),
    "fractions": lambda a: with_value(a, 1.5),
    "negative": lambda a: with_value(a, -1),
    "nan": lambda a: with_value(a, np.nan),
    "huge": lambda a: with_value(a, 2.0**25),
    "zero": lambda a: anndata.AnnData(np.zeros(a.shape, np.float32), a.obs, a.var),
    "repeated genes": repeated,
    "few genes": lambda a: a[:, :10].copy(),
    "one cell": lambda a: a[:1].copy(),
    "other genes": lambda a: without(a, 30),
    "no matrix": lambda a: anndata.AnnData(None, a.obs, a.var),
    "text": lambda a: "no HDF5 at all",
    "nothing": lambda a: None,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, simulated: anndata.AnnData) -> Path:
    folder = tmp_path_factory.mktemp("remedies")
    model = ac.CountAutoencoder(n_latent=2, n_hidden=(8,)).fit(simulated, max_epochs=1, threads=1, progress=False)
    model.save(folder / "model")
    simulated.write_h5ad(folder / "good.h5ad")
    for name, fault in FAULTS.items():
        made = fault(simulated.copy())
        path = folder / f"{name}.h5ad"
        if isinstance(made, str):
            path.write_text(made)
        elif made is not None:
            made.write_h5ad(path)
    return folder


def words_of(command: str, data: str, place: Path) -> list[str]:
    file, out = str(place / f"{data}.h5ad"), str(place / "out.h5ad")
    return {
        "check": ["check", file],
        "train": ["train", file, "-o", out, "--set", "max_epochs=1", "--threads", "1", "--no-evaluation"],
        "search": ["search", file, "-o", out, "--trials", "1", "--set", "max_epochs=1", "--threads", "1"],
        "embed": ["embed", str(place / "model"), file, "-o", out],
        "denoise": ["denoise", str(place / "model"), file, "-o", out],
        "evaluate": ["evaluate", str(place / "model"), file, "-o", str(place / "out.json")],
        "dca": ["dca", file, str(place / "dca"), "--epochs", "1", "--hiddensize", "8,4,8"],
    }[command]


def assert_good(command: str, words: list[str]) -> str:
    """Run a command that must fail, with an error that names nothing the command does not have."""
    result = CliRunner().invoke(app, words)
    said = result.stdout + (result.stderr if result.stderr_bytes else "")
    assert result.exit_code in (2, 3, 4, 6), (words, result.exit_code, said, result.exception)
    assert "Traceback" not in said
    assert "bug in anncoder" not in said
    for remedy in re.findall(r"remedy: (.*)", said):
        here = command
        for word in re.findall(rf"{COMMAND.pattern}|({OPTION.pattern})", remedy):
            named, option = word
            here = named if named in COMMANDS else here
            if option:
                assert option in options_of(here), (words, remedy)
    if command == "dca":  # its settings have names of their own
        assert not {where.rpartition(".")[2] for where in re.findall(r"where: +(\S+)", said)} & SETTINGS, said
    return said


FINE = {  # a fault of one command that is none of another
    *(("few genes", command) for command in ("check", "dca")),
    *(("other genes", command) for command in ("check", "train", "search", "dca")),
    *(("one cell", command) for command in ("embed", "denoise", "evaluate")),
}


@pytest.mark.parametrize("command", ["check", "train", "search", "embed", "denoise", "evaluate", "dca"])
@pytest.mark.parametrize("fault", FAULTS)
def test_what_a_fault_of_the_data_is_answered_with_can_be_done(fault: str, command: str, place: Path) -> None:
    if (fault, command) not in FINE:
        assert_good(command, words_of(command, fault, place))


WRONG_WORDS: dict[str, list[list[str]]] = {
    "train": [
        ["--model", "scvi"],
        ["--model", "pca"],
        ["--set", "lr=1"],
        ["--set", "n_latent=5000"],
        ["--set", "n_latent=x"],
        ["--set", "mask_var=highly_variable"],
        ["--set", "batch_key=nowhere"],
        ["--model", "dca", "--set", "batch_key=group"],
        ["--layer", "nowhere"],
        ["--device", "abacus"],
        ["--labels", "nowhere"],
        ["--config", "nowhere.yaml"],
        ["--key", "a/b"],
    ],
    "search": [["--model", "scvi"], ["--set", "trials=3"], ["--space", "nowhere.yaml"], ["--layer", "nowhere"]],
    "embed": [["--layer", "nowhere"], ["--device", "abacus"], ["--allow-missing", "2"]],
    "denoise": [["--scale", "log"], ["--batch", "b1"]],
    "evaluate": [["--labels", "nowhere"]],
    "dca": [
        ["--type", "x"],
        ["--hiddensize", "a"],
        ["--hiddensize", "8,0,8"],
        ["--hiddensize", "8,99,8"],
        ["--dropoutrate", "2"],
        ["--activation", "x"],
        ["--init", "x"],
    ],
}


@pytest.mark.parametrize(("command", "more"), [(c, more) for c, all_ in WRONG_WORDS.items() for more in all_])
def test_what_wrong_words_are_answered_with_can_be_done(command: str, more: list[str], place: Path) -> None:
    assert_good(command, [*words_of(command, "good", place), *more])

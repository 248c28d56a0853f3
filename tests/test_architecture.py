"""The house rules, kept by a machine: import direction, sizes, docstrings, style, types."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "anncoder"
FILES = sorted(PACKAGE.rglob("*.py"))

# which rooms a room may import from; what is not listed is the edge, which may import anything
ALLOWED = {
    "errors": set(),
    "types": set(),
    "config": {"errors"},
    "device": {"errors", "distributed"},
    "distributed": {"errors"},
    "kernels": {"kernels"},
    "likelihoods": {"likelihoods", "kernels", "types"},
    "nn": {"nn", "kernels", "likelihoods", "types", "config"},
    "models": {"models", "nn", "likelihoods", "types", "config", "errors"},
    "training": {"types", "config", "errors", "distributed", "optimizers", "divergence"},
    "divergence": {"types", "errors", "distributed"},
    "optimizers": {"config", "kernels"},
    "data": {"data", "distributed", "kernels", "types", "config", "errors"},
    "progress": {"training"},
}
# packages that must not be seen in a room
FORBIDDEN = {
    "models": {"anndata", "scanpy", "pandas", "h5py"},
    "nn": {"anndata", "scanpy", "pandas", "h5py"},
    "likelihoods": {"anndata", "scanpy", "pandas", "h5py", "scipy"},
    "kernels": {"anndata", "scanpy", "pandas", "h5py", "scipy"},
    "training": {"anndata", "scanpy", "pandas", "h5py", "scipy"},
    "optimizers": {"anndata", "scanpy", "pandas", "h5py", "scipy"},
    "divergence": {"anndata", "scanpy", "pandas", "h5py", "scipy"},
    "cli": {"anndata", "torch", "scanpy", "numpy", "pandas", "pydantic"},
    "cli_options": {"anndata", "torch", "scanpy", "numpy", "pandas", "pydantic"},
    "cli_dca": {"anndata", "torch", "scanpy", "numpy", "pandas", "pydantic"},
}


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    names = set(imported(path))
    rooms = {name.split(".")[1] for name in names if name.startswith("anncoder.")}
    if room(path) in ALLOWED:
        assert rooms <= ALLOWED[room(path)]
    outside = {name.split(".")[0] for name in names}
    assert not outside & FORBIDDEN.get(room(path), set())


@pytest.mark.parametrize("package", ["benchmark", "data"])
def test_a_package_that_says_what_its_modules_do_names_them_all(package: str) -> None:
    described = ast.get_docstring(ast.parse((PACKAGE / package / "__init__.py").read_text(encoding="utf-8")))
    modules = {path.stem for path in (PACKAGE / package).glob("*.py")} - {"__init__"}
    assert set(re.findall(r"``(\w+)``", described or "")) == modules


def functions(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            yield f"{path.name}:{node.name}", (node.end_lineno or 0) - body[0].lineno + 1 if body else 0


def test_files_and_functions_stay_small() -> None:
    assert not [(p.name, n) for p in FILES if (n := p.read_text(encoding="utf-8").count("\n")) > 350]
    lengths = [(n, name) for path in FILES for name, n in functions(path)]
    assert not [entry for entry in lengths if entry[0] > 60]
    ordered = sorted(n for n, _ in lengths)
    assert ordered[len(ordered) // 2] <= 10


def test_no_mixins() -> None:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert not isinstance(node, ast.ClassDef) or len(node.bases) <= 1, (path.name, node.name)


def test_the_road_from_fit_to_the_likelihood_is_short(counts, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """At most five frames of our own from ``fit`` to the likelihood."""
    import inspect

    from anncoder import CountAutoencoder
    from anncoder.models import count

    frames: list[list[str]] = []

    def spy(*arguments, **options):  # type: ignore[no-untyped-def]
        stack = [f.function for f in inspect.stack() if f"{PACKAGE}" in f.filename]
        frames.append(stack[: stack.index("fit") + 1])
        return original(*arguments, **options)

    original = count.nb_nll
    monkeypatch.setattr(count, "nb_nll", spy)
    CountAutoencoder(n_latent=2).fit(counts, max_epochs=1, progress=False)
    assert frames[0] == ["forward", "fit_epoch", "train", "fit"]  # and the likelihood itself is the fifth


def test_importing_the_package_is_quiet_and_cheap() -> None:
    code = (
        "import sys, logging, warnings; before = list(warnings.filters); import anncoder; "
        "assert not {'torch', 'anndata', 'scanpy', 'numpy'} & set(sys.modules); "
        "assert warnings.filters == before; assert not logging.getLogger().handlers; dir(anncoder)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    "command",
    [["ruff", "check", "--quiet", "."], ["ruff", "format", "--check", "--quiet", "."], ["mypy"]],
    ids=" ".join,
)
def test_style_and_types(command: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_error_code_is_explained() -> None:
    page = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "code" and isinstance(node.value, ast.Constant):
                assert f"`{node.value.value}`" in page or node.value.value == "diverged", (path.name, node.value.value)

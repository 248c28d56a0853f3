"""The house rules, kept by a machine: rooms and their imports, sizes, first lines, docstrings, style, types."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "anncoder"
FILES = sorted(PACKAGE.rglob("*.py"))

# the rooms, each with those that it may import from: a room knows only what stands before it
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "types": set(),
    "config": {"errors"},
    "device": {"errors"},
    "kernels": {"types"},
    "likelihoods": {"types", "kernels"},
    "nn": {"types", "config", "kernels", "likelihoods"},
    "data": {"errors", "types", "config", "device", "kernels"},
    "io": {"errors", "types", "config", "data"},
    "training": {"errors", "types", "config", "device", "kernels", "data", "io"},
}
ALLOWED["models"] = {*ALLOWED["training"], "likelihoods", "nn", "training"}
ALLOWED["datasets"] = {"errors", "config", "data", "io"}
ALLOWED["evaluation"] = {*ALLOWED["models"], "models"}
ALLOWED["dynamics"] = {"errors", "types", "config", "device", "data", "io", "training"}
ALLOWED["tl"] = {*ALLOWED["models"], "models", "dynamics"}
ALLOWED["pl"] = {"errors", "config", "data", "models", "evaluation", "dynamics", "tl"}
ALLOWED["reporting"] = {*ALLOWED["models"], "models", "evaluation", "tl", "pl"}
ALLOWED["cli"] = {*ALLOWED["models"], "models", "datasets", "evaluation", "dynamics", "tl", "pl", "reporting"}
ALLOWED["__main__"] = {"cli"}
ALLOWED["__init__"] = {
    "errors",
    "data",
    "models",
    "evaluation",
    "tl",
    "pl",
    "reporting",
    "datasets",
}  # public names, at first use

# packages that must not be seen in a room
USERS = {"anndata", "scanpy", "pandas", "h5py"}
FORBIDDEN = {
    "config": {*USERS, "torch"},
    "kernels": {*USERS, "scipy"},
    "likelihoods": {*USERS, "scipy"},
    "nn": USERS,
    "training": {*USERS, "scipy"},
    "cli/app.py": {*USERS, "torch", "numpy", "pydantic"},
    "cli/options.py": {*USERS, "torch", "numpy", "pydantic"},
    "models/__init__.py": {*USERS, "torch", "numpy", "pydantic"},
}
LONGEST, SHORTEST = 600, 40  # lines of a file
MOST_FILES, MOST_ENTRIES, MOST_FLOORS = 13, 18, 11
PRIVATE = re.compile(r"\bwhat (a|an|the|is|every|makes|passes)\b|\bwho\b|\bsomebody\b|\bwhose\b", re.IGNORECASE)


def room(path: Path, package: Path = PACKAGE) -> str:
    return path.relative_to(package).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    """Yield every module that a file imports, within functions and for types alone too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, (path, "relative import")
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def rooms_of(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imported(path) if name.startswith("anncoder.")}


def strangers(package: Path) -> list[str]:
    """Return every import that its room does not allow, and every file that is in no room."""
    found = []
    for path in sorted(package.rglob("*.py")):
        here, place = room(path, package), path.relative_to(package).as_posix()
        if here not in ALLOWED:
            found.append(f"{place} is in no room")
            continue
        found += [f"{place} imports {other}" for other in sorted(rooms_of(path) - ALLOWED[here] - {here})]
        outside = {name.split(".")[0] for name in imported(path)}
        found += [
            f"{place} imports {package}"
            for rule in (here, place)
            for package in sorted(outside & FORBIDDEN.get(rule, set()))
        ]
    return found


def modules(package: Path) -> dict[str, set[str]]:
    """Return the modules of the package, each with those that it imports."""
    names = {}
    for path in package.rglob("*.py"):
        name = ".".join(path.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__")
        names[name] = path
    return {name: ({*imported(path)} & names.keys()) - {name, "anncoder"} for name, path in names.items()}


def test_every_room_imports_from_the_rooms_before_it_alone() -> None:
    assert strangers(PACKAGE) == []


def test_no_module_imports_itself_on_the_way() -> None:
    try:
        TopologicalSorter(modules(PACKAGE)).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_the_house_is_not_higher_than_it_needs_to_be() -> None:
    order = TopologicalSorter({name: ALLOWED[name] & rooms for name, rooms in ALLOWED.items()})
    seen: dict[str, set[str]] = {name: set() for name in ALLOWED}
    for path in FILES:
        seen[room(path)] |= rooms_of(path) - {room(path)}
    floors: dict[str, int] = {}
    for name in order.static_order():
        floors[name] = 1 + max((floors[other] for other in seen[name]), default=0)
    assert max(floors.values()) <= MOST_FLOORS, floors


@pytest.mark.parametrize(
    ("place", "content", "said"),
    [
        ("loose.py", "", "loose.py is in no room"),
        ("helpers/paths.py", "", "helpers/paths.py is in no room"),
        ("nn/reader.py", "from anncoder.data.adata import open_data", "nn/reader.py imports data"),
        ("io/fit.py", "def f():\n    from anncoder.models import find", "io/fit.py imports models"),
        ("training/h5.py", "import h5py", "training/h5.py imports h5py"),
        ("types.py", "if TYPE_CHECKING:\n    from anncoder.errors import AnncoderError", "types.py imports errors"),
    ],
)
def test_a_file_that_is_put_where_it_does_not_belong_is_noticed(
    tmp_path: Path, place: str, content: str, said: str
) -> None:
    package = tmp_path / "anncoder"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / place).parent.mkdir(exist_ok=True)
    (package / place).write_text(content, encoding="utf-8")
    assert strangers(package) == [said]


def test_a_circle_is_noticed(tmp_path: Path) -> None:
    package = tmp_path / "anncoder"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "types.py").write_text("from anncoder.likelihoods import nb", encoding="utf-8")
    with pytest.raises(CycleError):
        TopologicalSorter(modules(package)).prepare()


def test_files_are_of_a_size_to_be_read_and_folders_of_one_to_be_looked_through() -> None:
    lines = {path.relative_to(PACKAGE).as_posix(): path.read_text(encoding="utf-8").count("\n") for path in FILES}
    assert not {place: n for place, n in lines.items() if n > LONGEST}
    assert not {place: n for place, n in lines.items() if n < SHORTEST and not place.split("/")[-1].startswith("__")}
    folders = {path.parent for path in FILES} - {PACKAGE}
    assert not [folder for folder in folders if len(list(folder.glob("*.py"))) > MOST_FILES]
    entries = {path.relative_to(PACKAGE).parts[0] for path in FILES} - {"__init__.py", "__main__.py"}
    assert len(entries) <= MOST_ENTRIES, entries


def test_the_first_line_says_what_a_module_is_in_words_to_search_for() -> None:
    for path in FILES:
        first, *_ = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n")
        assert first, path
        assert len(first) <= 90 or path.name == "__init__.py", (path.name, first)
        assert not PRIVATE.search(first), (path.name, first)


def functions(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            yield f"{path.name}:{node.name}", (node.end_lineno or 0) - body[0].lineno + 1 if body else 0


def test_functions_stay_small() -> None:
    lengths = [(n, name) for path in FILES for name, n in functions(path)]
    assert not [entry for entry in lengths if entry[0] > 60]
    ordered = sorted(n for n, _ in lengths)
    assert ordered[len(ordered) // 2] <= 10


def test_no_mixins() -> None:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert not isinstance(node, ast.ClassDef) or len(node.bases) <= 1, (path.name, node.name)


def test_the_road_from_fit_to_the_likelihood_is_short(counts, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """At most five frames of our own from ``fit`` to the likelihood, in the readable form and without a graph."""
    import inspect

    from anncoder import CountAutoencoder
    from anncoder.models import count

    frames: list[list[str]] = []

    def spied(name: str) -> None:
        original = getattr(count, name)

        def spy(*arguments, **options):  # type: ignore[no-untyped-def]
            stack = [f.function for f in inspect.stack(0) if f"{PACKAGE}" in f.filename]
            frames.append(stack[: stack.index("fit") + 1])
            return original(*arguments, **options)

        monkeypatch.setattr(count, name, spy)

    spied("nb_nll")
    spied("nb_spec")
    CountAutoencoder(n_latent=2).fit(counts, max_epochs=1, progress=False)
    CountAutoencoder(n_latent=2, dropout_rate=0.1).fit(counts, max_epochs=1, progress=False)
    roads = {tuple(road) for road in frames if "fit_epoch" in road}
    # and the likelihood itself is the fifth
    assert roads == {("gradients", "fit_epoch", "train", "fit"), ("forward", "fit_epoch", "train", "fit")}


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
    [
        ["ruff", "check", "--quiet", "."],
        ["ruff", "format", "--check", "--quiet", "."],
        pytest.param(["mypy"], marks=pytest.mark.slow),
    ],
    ids=" ".join,
)
def test_style_and_types(command: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def error_codes(path: Path) -> Iterator[str]:
    """Yield every code of an error that a file makes: ``code=``, or the first argument of one of our classes."""
    ours = {"AnncoderError", "ConfigError", "FileError", "InputError", "ResourceError"}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            codes = [keyword.value for keyword in node.keywords if keyword.arg == "code"]
            codes += node.args[:1] if isinstance(node.func, ast.Name) and node.func.id in ours else []
            yield from (code.value for code in codes if isinstance(code, ast.Constant) and isinstance(code.value, str))


def test_every_error_code_is_explained() -> None:
    page = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    codes = {code for path in FILES for code in error_codes(path)}
    assert len(codes) > 50  # or they were not found
    assert not sorted(code for code in codes if f"`{code}`" not in page)

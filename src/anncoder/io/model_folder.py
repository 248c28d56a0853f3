"""Model folders: JSON and safetensors with sha256 manifest, no pickle.

``config.json`` (what to build), ``weights.safetensors`` (the numbers), ``genes.txt`` (their names, one a line) and
``manifest.json`` (size and sha256 of the others, versions, schema). No pickle anywhere: opening a model runs no code.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import safetensors.torch
import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from anncoder.config import Settings
from anncoder.errors import ConfigError, FileError, InputError, listed
from anncoder.io.atomic import atomic_folder, others_in, path_given, refuse_occupied, writable_folder
from anncoder.types import Noise

SCHEMA = 1
CONFIG, WEIGHTS, GENES, MANIFEST = "config.json", "weights.safetensors", "genes.txt", "manifest.json"
FILES = (CONFIG, WEIGHTS, GENES, MANIFEST)
LARGEST = 256 * 2**20  # bytes of JSON or gene names that are read
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint64, torch.uint32, torch.uint16, torch.uint8)
DTYPES = (*FLOATS, *INTEGERS, torch.bool)  # that torch 2.6 and safetensors 0.5 both know


class ModelRecord(Settings):
    """A fitted model apart from its weights and genes: the content of ``config.json``."""

    model: str
    hyperparameters: dict[str, Any]
    training: dict[str, Any]
    layer: str | None
    batches: Annotated[list[str], Field(default_factory=list)]
    library_size: Annotated[float, Field(gt=0)]
    best_epoch: Annotated[int, Field(ge=-1)]
    stopped: Literal["early", "max_epochs", "interrupted", "diverged"]
    history: dict[str, list[int | Annotated[float, Field(allow_inf_nan=True)]]]
    valid_obs: list[str]
    valid_sizes: Annotated[list[float], Field(default_factory=list)]
    categorical: Annotated[dict[str, dict[str, float]], Field(default_factory=dict)]
    continuous: Annotated[dict[str, tuple[float, float]], Field(default_factory=dict)]
    labels: Annotated[list[str], Field(default_factory=list)]

    def model_post_init(self, context: Any, /) -> None:
        """Refuse a history whose columns are not equally long, or do not reach the best epoch."""
        lengths = {len(column) for column in self.history.values()}
        if len(lengths) != 1 or self.best_epoch >= min(lengths):
            raise ConfigError("bad-value", "the history is not a table of epochs", "history")


class StoredModel(NamedTuple):
    """A model folder but for its weights."""

    config: ModelRecord
    genes: list[str]
    manifest: dict[str, Any]


def refuse_target(folder: Path) -> None:
    """Raise the error that :func:`write_model` would raise for a folder; asked before hours of training, not after."""
    writable_folder(folder.parent)
    refuse_occupied(folder, against_model)


def against_model(folder: Path) -> str:
    """Return the reason why a folder is not to be replaced by a model; empty if it is a model, whole, and nothing else.

    A file with the name of one of ours is no sign of a model yet, and other files beside a model are the user's.
    """
    if why := others_in(folder, FILES):
        return why
    try:
        _refuse_changed(folder, _read_manifest(folder))
    except FileError as error:
        return error.what.partition(" cannot be used: ")[2]
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    return ""


def shapes_only(build: Callable[[Noise], nn.Module], seed: int = 0) -> nn.Module:
    """Return a network on the ``meta`` device, where nothing is allocated, as it is built when a model is loaded.

    ``seed`` is that of the random stream which the network keeps.
    """
    with torch.device("meta"):
        return build(Noise(seed))


def write_model(folder: str | Path, config: ModelRecord, genes: list[str], weights: dict[str, Tensor]) -> None:
    """Write a model folder, whole or not at all.

    Parameters
    ----------
    folder
        Its name; a model that is already there is replaced if it is whole, anything else is refused.
    config
        What the network can be built from again.
    genes
        Names of the genes, in the model's order.
    weights
        ``state_dict()`` of the network, which :func:`refuse_unsavable` has seen.

    Raises
    ------
    FileError
        The folder exists and is no model, or a damaged one, or holds something else as well.
    InputError
        A name cannot be written as text.
    ResourceError
        It cannot be written.
    """
    folder = path_given(folder)
    try:
        texts = {CONFIG: _dumps(config.model_dump(mode="json")), GENES: encode_names(genes)}
        contents = {name: text.encode("utf-8") for name, text in texts.items()}
    except UnicodeEncodeError as error:
        what = f"the name {error.object[max(0, error.start - 20) : error.end]!r} is not valid Unicode"
        raise InputError("bad-name", what, "var_names", "rename it") from error
    with atomic_folder(folder, against=against_model) as temporary:
        for name, content in contents.items():
            (temporary / name).write_bytes(content)
        on_cpu = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
        (temporary / WEIGHTS).write_bytes(safetensors.torch.save(on_cpu))  # `save_file` hides it from others
        files = {name: _fingerprint_of_file(temporary / name) for name in (CONFIG, GENES, WEIGHTS)}
        manifest = {"schema": SCHEMA, "versions": versions(), "files": files}
        (temporary / MANIFEST).write_bytes(_sealed(manifest))


def refuse_unsavable(weights: dict[str, Any], network: nn.Module) -> None:
    """Raise a FileError in saving for what loading would refuse; now the fitted model is still there.

    Parameters
    ----------
    weights
        ``state_dict()`` of the network to be saved.
    network
        The network that they will be read into, of :func:`shapes_only`.
    """
    names: dict[int, str] = {}
    for name, value in weights.items():
        if not isinstance(value, Tensor) or value.layout != torch.strided or value.dtype not in DTYPES:
            kind = f"{value.dtype} ({value.layout})" if isinstance(value, Tensor) else type(value).__name__
            known = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
            raise unsavable(f"{name} is of type {kind}", f"keep it as a dense tensor of one of {known}")
        if not finite(value):
            raise unsavable(f"{name} holds values that are not finite", "keep finite values in parameters and buffers")
        other = names.setdefault(value.data_ptr(), name) if value.numel() else name
        if other != name:
            raise unsavable(f"{other} and {name} are the same tensor", "register a tensor under one name")
    wrong = misfits(layout(weights), layout(network.state_dict()))
    if wrong:
        raise unsavable(
            f"built anew from its configuration it has other names, shapes or types: {wrong}",
            "register every parameter and buffer in __init__, with a shape that `config` and `shape` decide",
        )


def unsavable(why: str, remedy: str) -> FileError:
    """Return the error for a network that could not be loaded again."""
    return FileError("unsavable", f"the network cannot be saved: {why}", "state_dict", remedy)


def read_stored(folder: str | Path) -> StoredModel:
    """Read and verify everything but the weights' values.

    Raises
    ------
    FileError
        The folder is no model, is incomplete, was changed since it was written, or is of a newer schema.
    """
    folder = path_given(folder)
    if not (folder / MANIFEST).is_file():
        inner = folder / "model"  # where `anncoder train` puts it in the folder of a run
        remedy = "give the folder that save() wrote, or model/ in the one that `anncoder train` wrote"
        if (inner / MANIFEST).is_file():
            remedy = f"give the model in it: {str(inner)!r}"
        what = f"{str(folder)!r} is not a model folder: it has no {MANIFEST}"
        raise FileError("not-a-model", what, str(folder), remedy)
    manifest = _read_manifest(folder)
    _refuse_changed(folder, manifest)
    try:
        config = ModelRecord(**_json(folder / CONFIG))
        genes = decode_names(_read(folder / GENES).decode("utf-8"))
    except (ConfigError, TypeError, UnicodeDecodeError) as error:
        raise broken(folder, str(error).splitlines()[0]) from error
    if not genes or len(set(genes)) != len(genes):
        raise broken(folder, f"{GENES} names {'a gene twice' if genes else 'no gene'}")
    return StoredModel(config, genes, manifest)


def read_weights(folder: str | Path, network: nn.Module) -> None:
    """Read weights into a network that was built on the ``meta`` device.

    Names and shapes are compared with the file's header before any memory is taken.

    Raises
    ------
    FileError
        The weights do not belong to this network, or some are not finite.
    """
    folder, path, expected = Path(folder), Path(folder) / WEIGHTS, network.state_dict()
    try:
        with safe_open(path, framework="np") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        wrong = misfits(shapes, {name: tuple(value.shape) for name, value in expected.items()})
        # read, not mapped: a file that is cut while it is mapped ends the process
        weights = {} if wrong else safetensors.torch.load(path.read_bytes())
    except (OSError, SafetensorError, ValueError, KeyError) as error:  # the last of a type that torch has not
        raise broken(folder, f"{WEIGHTS} cannot be read: {error}") from None
    if wrong := wrong or misfits(layout(weights), layout(expected)):
        raise broken(folder, f"{WEIGHTS} does not fit {CONFIG}: {wrong}")
    for name, value in weights.items():
        if not finite(value):
            raise broken(folder, f"{name} in {WEIGHTS} holds values that are not finite")
    # copied into memory of torch's own: the last bit of a matrix product may depend on how its factors are aligned
    network.load_state_dict({name: value.clone() for name, value in weights.items()}, assign=True)


def finite(value: Tensor) -> bool:
    """Tell whether no value is infinite or NaN."""
    return not value.is_floating_point() or bool(torch.isfinite(value).all())


def layout(weights: dict[str, Tensor]) -> dict[str, object]:
    """Return type and shape of each tensor."""
    return {name: (value.dtype, tuple(value.shape)) for name, value in weights.items()}


def misfits(found: dict[str, Any], expected: dict[str, Any]) -> str:
    """Return the first names in which two layouts differ, as text; empty where they are the same."""
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    return listed(map(repr, wrong), 3)


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    packages = ("anncoder", "anndata", "numpy", "scipy", "torch")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def encode_names(names: list[str]) -> str:
    """Return names as text, one a line; in a name a line break is written as backslash-n, a backslash twice."""
    return "".join(name.replace("\\", "\\\\").replace("\n", "\\n") + "\n" for name in names)


def decode_names(text: str) -> list[str]:
    """Return the names of :func:`encode_names`."""
    return [re.sub(r"\\(.)", lambda m: "\n" if m[1] == "n" else m[1], line) for line in text.split("\n")[:-1]]


def broken(folder: Path, why: str, remedy: str = "remove it and save the model again, or copy it again") -> FileError:
    """Return the error for a model folder that must not be used."""
    return FileError("bad-model", f"the model in {str(folder)!r} cannot be used: {why}", str(folder), remedy)


def _refuse_changed(folder: Path, manifest: dict[str, Any]) -> None:
    for name in (CONFIG, GENES, WEIGHTS):
        if not (folder / name).is_file() or manifest["files"].get(name) != _fingerprint_of_file(folder / name):
            raise broken(folder, f"{name} is missing or was changed since the model was saved")


def _read_manifest(folder: Path) -> dict[str, Any]:
    manifest = _json(folder / MANIFEST)
    schema = manifest.get("schema")
    if type(schema) is not int or schema < 1:
        raise broken(folder, f"{MANIFEST} has no schema number")
    if schema > SCHEMA:
        raise broken(folder, f"its schema is {schema}, this version reads up to {SCHEMA}", "upgrade anncoder")
    manifest.pop("seal", None)
    if _read(folder / MANIFEST) != _sealed(manifest):
        raise broken(folder, f"{MANIFEST} was changed since the model was saved")
    if not isinstance(manifest.get("files"), dict):
        raise broken(folder, f"{MANIFEST} names no files")
    return manifest


def _sealed(manifest: dict[str, Any]) -> bytes:
    # the manifest vouches for the other files, its last line for itself
    seal = hashlib.sha256(_dumps(manifest).encode("utf-8")).hexdigest()
    return _dumps({**manifest, "seal": seal}).encode("utf-8")


def _dumps(values: dict[str, Any]) -> str:
    return json.dumps(values, indent=2) + "\n"


def _fingerprint_of_file(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > LARGEST:
            raise broken(path.parent, f"{path.name} is larger than {LARGEST:,} bytes")
        return path.read_bytes()
    except OSError as error:
        remedy = {"remedy": "check its permissions"} if isinstance(error, PermissionError) else {}
        raise broken(path.parent, f"{path.name} cannot be read: {error.strerror}", **remedy) from error


def _json(path: Path) -> dict[str, Any]:
    text = _read(path)
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise broken(path.parent, f"{path.name} is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise broken(path.parent, f"{path.name} is not a JSON object")
    return values

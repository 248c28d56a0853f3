"""Models on disk: a folder of plain files that can be opened from a stranger.

``config.json`` (what to build), ``weights.safetensors`` (the numbers), ``genes.txt`` (their names, one a line) and
``manifest.json`` (size and sha256 of the others, versions, schema). No pickle anywhere: opening a model runs no code.
"""

from __future__ import annotations

import hashlib
import json
import platform
import struct
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn

from anncoder.errors import FileError
from anncoder.files import atomic_folder

SCHEMA = 1
CONFIG, WEIGHTS, GENES, MANIFEST = "config.json", "weights.safetensors", "genes.txt", "manifest.json"
LARGEST_JSON = 64 * 2**20
DTYPES = {torch.float32: "F32", torch.float64: "F64", torch.int64: "I64"}


class Stored(NamedTuple):
    """What a model folder says before any weight is read."""

    config: dict[str, Any]
    genes: list[str]
    manifest: dict[str, Any]


def write_model(folder: str | Path, config: dict[str, Any], genes: list[str], weights: dict[str, Tensor]) -> None:
    """Write a model folder, whole or not at all.

    Parameters
    ----------
    folder
        Its name; a model that is already there is replaced, anything else is refused.
    config
        JSON values from which the network can be built again.
    genes
        Names of the genes, in the model's order.
    weights
        ``state_dict()`` of the network.

    Raises
    ------
    FileError
        The folder exists and is no model.
    ResourceError
        It cannot be written.
    """
    with atomic_folder(folder, mark=MANIFEST) as temporary:
        (temporary / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (temporary / GENES).write_text("".join(f"{name}\n" for name in genes), encoding="utf-8")
        on_cpu = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
        safetensors.torch.save_file(on_cpu, temporary / WEIGHTS)
        files = {name: _fingerprint(temporary / name) for name in (CONFIG, GENES, WEIGHTS)}
        manifest = {"schema": SCHEMA, "versions": versions(), "files": files}
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def read_stored(folder: str | Path) -> Stored:
    """Read and verify everything but the weights' values.

    Raises
    ------
    FileError
        The folder is no model, is incomplete, was changed since it was written, or is of a newer schema.
    """
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        raise FileError(
            f"{str(folder)!r} is not a model folder: it has no {MANIFEST}",
            code="not-a-model",
            where=str(folder),
            remedy="give the folder that save() or `anncoder train` wrote",
        )
    manifest = _json(folder / MANIFEST)
    schema = manifest.get("schema")
    if not isinstance(schema, int) or not 1 <= schema <= SCHEMA:
        raise _broken(folder, f"its schema is {schema!r}, this version reads up to {SCHEMA}", "upgrade anncoder")
    files = manifest.get("files")
    for name in (CONFIG, GENES, WEIGHTS):
        recorded = files.get(name) if isinstance(files, dict) else None
        if not (folder / name).is_file() or recorded != _fingerprint(folder / name):
            raise _broken(folder, f"{name} is missing or was changed since the model was saved")
    genes = (folder / GENES).read_text(encoding="utf-8").split("\n")[:-1]
    return Stored(_json(folder / CONFIG), genes, manifest)


def read_weights(folder: str | Path, network: nn.Module) -> None:
    """Read weights into a network that was built on the ``meta`` device.

    Names, shapes and dtypes are compared with the file's header before any memory is taken.

    Raises
    ------
    FileError
        The weights do not belong to this network, or some are not finite.
    """
    path = Path(folder) / WEIGHTS
    expected = {name: (DTYPES[value.dtype], list(value.shape)) for name, value in network.state_dict().items()}
    header = _header(path)
    found = {name: (entry.get("dtype"), entry.get("shape")) for name, entry in header.items()}
    if found != expected:
        wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        raise _broken(Path(folder), f"{WEIGHTS} does not fit {CONFIG}: {', '.join(wrong[:3])}")
    weights = safetensors.torch.load_file(path)
    for name, value in weights.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise _broken(Path(folder), f"{name} in {WEIGHTS} holds values that are not finite")
    network.load_state_dict(weights, assign=True)


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    packages = ("anncoder", "anndata", "numpy", "scipy", "torch")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise ValueError("it is too large")
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("it is not an object")
    except (OSError, ValueError, RecursionError) as error:
        raise _broken(path.parent, f"{path.name} cannot be read: {error}") from None
    return values


def _header(path: Path) -> dict[str, Any]:
    # the file begins with the length of a JSON header (8 bytes, little endian) that names every tensor
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(LARGEST_JSON, path.stat().st_size):
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
    except (OSError, ValueError, AttributeError, RecursionError, struct.error) as error:
        raise _broken(path.parent, f"{path.name} cannot be read: {error}") from None
    return dict(header)


def _broken(folder: Path, why: str, remedy: str = "save the model again, or copy the whole folder again") -> FileError:
    return FileError(
        f"the model in {str(folder)!r} cannot be used: {why}",
        code="bad-model",
        where=str(folder),
        remedy=remedy,
    )

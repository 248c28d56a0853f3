"""Errors of files that cannot be read: damage, missing decoders, other formats.

"Damaged" is said only where something shows it. What only needs a decoder, or another program, is not.
"""

from __future__ import annotations

import importlib
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import h5py

from anncoder.errors import FileError, listed

OWN = range(1, 7)  # filters that are part of HDF5
FILTERS = {
    4: "SZIP",
    307: "bzip2",
    32000: "LZF",
    32001: "Blosc",
    32004: "LZ4",
    32008: "bitshuffle",
    32013: "ZFP",
    32015: "Zstandard",
    32017: "SZ",
    32018: "FCIDECOMP",
    32024: "SZ3",
    32026: "Blosc2",
    32028: "SPERR",
}
"""Names of registered filters, by number."""


def first_line(error: Exception) -> str:
    """Return the first line of an error's text, or its kind."""
    lines = str(error).splitlines()
    return lines[0][:200] if lines else type(error).__name__


def damaged(path: Path, why: str) -> FileError:
    """Return the error for a file that cannot be read as AnnData."""
    remedy = "the file is damaged or incomplete; copy or download it again"
    return FileError("unreadable", f"cannot read {str(path)!r} as AnnData: {why}", str(path), remedy)


def unopenable(path: Path, error: OSError) -> FileError | None:
    """Return the error for a file that the system, or another program, does not let us open; None if it does."""
    if isinstance(error, BlockingIOError) or "unable to lock" in str(error):
        what, remedy = "another program has it open and may write to it", "close it there, or use a copy"
    elif isinstance(error, PermissionError):
        what, remedy = "Permission denied", "check the permissions"
    else:
        return None
    return FileError("unreadable", f"cannot open {str(path)!r}: {what}", str(path), remedy)


def other_format(path: Path, what: str, remedy: str) -> FileError:
    """Return the error for a file of another format: ``what`` it is, and how it is converted."""
    return FileError("other-format", f"{str(path)!r} is {what}", str(path), remedy)


class Filter(NamedTuple):
    """What the chunks of a dataset go through."""

    number: int
    name: str
    options: tuple[int, ...]


def filters_of(dataset: h5py.Dataset) -> list[Filter]:
    """Return the filters that the chunks of a dataset go through, in order."""
    plan = dataset.id.get_create_plist()
    found = [plan.get_filter(position) for position in range(plan.get_nfilters())]
    named = ((number, FILTERS.get(number) or name.decode("utf-8", "replace"), of) for number, _, of, name in found)
    return [Filter(number, name or "an unknown filter", tuple(options)) for number, name, options in named]


def is_known(number: int) -> bool:
    """Tell whether a filter is installed; hdf5plugin, where it is, brings many, and is imported for the first."""
    if not h5py.h5z.filter_avail(number):
        with suppress(ImportError):
            importlib.import_module("hdf5plugin")
    return bool(h5py.h5z.filter_avail(number))


def refuse_missing_filters(root: Any, path: Path) -> None:
    """Raise a FileError if something in an HDF5 file is compressed in a way that nothing installed can undo."""
    missing: dict[int, Filter] = {}
    places: list[str] = []

    def look(name: str, item: Any) -> None:
        for each in filters_of(item) if isinstance(item, h5py.Dataset) else ():
            if not is_known(each.number):
                missing[each.number] = each
                places.append(name)

    if isinstance(root, h5py.Group):
        root.visititems(look)
    if missing:
        names = listed(f"{each.name} (HDF5's filter {each.number})" for each in missing.values())
        what = f"{str(path)!r} is compressed with {names}, which is not installed"
        raise FileError("missing-filter", what, f"{path}: {listed(places)}", _how_to_get_filters())


def unknown_codec(path: Path, error: Exception) -> FileError | None:
    """Return the error for a zarr folder with a codec that zarr does not have here; None for any other failure."""
    if not path.is_dir() or "codec" not in str(error).lower():
        return None
    what = f"{str(path)!r} is compressed with something that is not installed: {first_line(error)}"
    return FileError("missing-filter", what, str(path), "pip install -U zarr numcodecs")


def _how_to_get_filters() -> str:
    try:
        importlib.import_module("hdf5plugin")
    except ImportError:
        return "pip install hdf5plugin"  # we import it ourselves
    anew = "adata.write_h5ad(new_path, compression='gzip')"
    return f"hdf5plugin does not have it: write the file anew where it can be read, {anew}"

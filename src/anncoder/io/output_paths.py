"""Output paths: names of result files, checked before any work is done for them."""

from __future__ import annotations

import errno
from pathlib import Path

from anncoder.data.opening import Paths, paths_of
from anncoder.errors import ConfigError, listed
from anncoder.io import model_folder
from anncoder.io.atomic import same_file, writable_folder

# a name with one of these endings is that of a file, unless it is a folder that is there
FILES = (".h5ad", ".zarr", ".h5", ".loom", ".csv", ".tsv", ".txt")


def refuse_output(output: Path, *, suffix: str = ".h5ad") -> None:
    """Refuse the name of an output before any work is done for it.

    Raises
    ------
    ConfigError
        It does not end as it should, is a folder, or a link to itself.
    ResourceError
        Its folder does not exist or cannot be written.
    """
    wrong = f"does not end in {suffix}" if output.suffix != suffix else "is a folder" if output.is_dir() else ""
    wrong = wrong or "is a link that leads back to itself" * _loops(output)
    if wrong:
        remedy = f"output='NAME{suffix}' (-o NAME{suffix})"
        raise ConfigError("bad-output", f"the output {str(output)!r} {wrong}", "output", remedy)
    writable_folder(output.resolve().parent)  # of a link, the folder that the file will be in


def _refuse_ours(output: Path) -> None:
    # a folder of results, in which data would be taken for what does not belong there
    is_model = all((output / name).is_file() for name in model_folder.FILES)
    what = "a model" if is_model else "a run folder" * (output.suffix == ".anncoder")
    if what:
        remedy = "name another folder, or a file: output='NAME.h5ad' (-o NAME.h5ad)"
        raise ConfigError("bad-output", f"the output {str(output)!r} is {what}", "output", remedy)


def _loops(path: Path) -> bool:
    try:
        path.stat()
    except OSError as error:
        return error.errno == errno.ELOOP
    return False


def refuse_input_as_output(data: Path, output: Path, *, in_place: bool) -> None:
    """Raise a ConfigError if the output would replace the input, without ``--in-place``."""
    if same_file(data, output) and not in_place:
        remedy = "choose another name, or say --in-place on the command line: the new file then replaces the old one "
        raise ConfigError("output-is-input", "the output is the input", str(output), f"{remedy}when it is complete")


def outputs_of(data: Paths, output: Path, *, in_place: bool) -> list[Path]:
    """Return the output of each input: the file named, or files of their names in the folder named.

    What the output is depends on its name, not on how many files a glob happens to match.

    Parameters
    ----------
    data
        A path, a glob, or several of them.
    output
        An ``.h5ad`` file of one input; else a folder, which may be made later.
    in_place
        Whether an output may replace its input.

    Raises
    ------
    ConfigError
        The name is not what it should be, two inputs have one name, or the output would replace an input.
    FileError
        An input does not exist.
    ResourceError
        The folder cannot be written.
    """
    _refuse_ours(output)
    single = isinstance(data, str | Path) or len(data) == 1
    ending = (output.suffix or output.name).lower()  # of ".h5ad", too, which has no suffix
    is_file = ending in FILES and not (output.is_dir() and ending != ".h5ad")
    if single and is_file:  # before the input is looked for
        refuse_output(output)
    paths = paths_of(data)
    if len(paths) == 1 and is_file:
        refuse_output(output)
        refuse_input_as_output(paths[0], output, in_place=in_place)
        return [output]
    names = [path.with_suffix(".h5ad").name for path in paths]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        what = f"{len(paths)} files have the name {listed(twice)}"
        raise ConfigError("bad-output", what, "output", "rename them, or take one at a time")
    if is_file or output.is_file() or (output.is_symlink() and not output.exists()):
        what = f"the output {str(output)!r} of {len(paths)} file{'s' * (len(paths) > 1)} is no folder"
        remedy = "output='FOLDER' (-o FOLDER): each file keeps its name there"
        remedy += ", or output='NAME.h5ad' (-o NAME.h5ad)" * (len(paths) == 1)
        raise ConfigError("bad-output", what, "output", remedy)
    outputs = [output / name for name in names]
    if not output.exists():
        writable_folder(output.parent)
        return outputs
    for path, target in zip(paths, outputs, strict=True):
        refuse_output(target)
        for other in paths:  # not over another input, either
            refuse_input_as_output(other, target, in_place=in_place and other == path)
    return outputs

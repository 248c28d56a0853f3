"""Where results go: names of outputs, refused before any work is done for them."""

from __future__ import annotations

from pathlib import Path

from anncoder.data.shards import Paths, paths_of
from anncoder.errors import ConfigError, some
from anncoder.files import same_file, writable_folder


def refuse_output(output: Path, *, suffix: str = ".h5ad") -> None:
    """Refuse the name of an output before any work is done for it.

    Raises
    ------
    ConfigError
        It does not end as it should, or is a folder.
    ResourceError
        Its folder does not exist or cannot be written.
    """
    wrong = f"does not end in {suffix}" if output.suffix != suffix else "is a folder" if output.is_dir() else ""
    if wrong:
        raise ConfigError(
            f"the output {str(output)!r} {wrong}",
            code="bad-output",
            where="--output",
            remedy=f"-o NAME{suffix}",
        )
    writable_folder(output.parent)


def refuse_input_as_output(data: Path, output: Path, *, in_place: bool) -> None:
    """Raise a ConfigError if the output would replace the input, without ``--in-place``."""
    if same_file(data, output) and not in_place:
        raise ConfigError(
            "the output is the input",
            code="output-is-input",
            where=str(output),
            remedy="choose another name, or say --in-place: the new file then replaces the old one when it is complete",
        )


def outputs_of(data: Paths, output: Path, *, in_place: bool) -> list[Path]:
    """Return the output of each input: the one named, or, of several, files of their names in the folder named.

    Parameters
    ----------
    data
        A path, a glob, or several of them.
    output
        An ``.h5ad`` file; of several inputs a folder, which may be made later.
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
    single = isinstance(data, str | Path) or len(data) == 1
    if single and output.suffix == ".h5ad":  # whatever is wrong with the output is said first
        refuse_output(output)
    paths = paths_of(data)
    if len(paths) == 1:
        refuse_output(output)
        refuse_input_as_output(paths[0], output, in_place=in_place)
        return [output]
    names = [path.with_suffix(".h5ad").name for path in paths]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or output.suffix == ".h5ad" or output.is_file():
        raise ConfigError(
            f"{len(paths)} files have the name {some(twice)}"
            if twice
            else f"the output {str(output)!r} of {len(paths)} files is no folder",
            code="bad-output",
            where="--output",
            remedy="rename them, or take one at a time" if twice else "-o FOLDER: each file keeps its name there",
        )
    if not output.exists():
        writable_folder(output.parent)
        return [output / name for name in names]
    outputs = [output / name for name in names]
    for path, target in zip(paths, outputs, strict=True):
        refuse_output(target)
        for other in paths:  # not over another input, either
            refuse_input_as_output(other, target, in_place=in_place and other == path)
    return outputs

"""Configuration files (YAML) and ``key=value`` settings of the command line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from anncoder.errors import ConfigError, FileError

EXAMPLE = "see: anncoder config --model count"


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Return the mapping in a YAML file; only plain values, no Python objects.

    Raises
    ------
    FileError
        The file cannot be read.
    ConfigError
        It is not YAML, not a mapping, or has a key twice.
    """
    try:
        values = yaml.load(Path(path).read_bytes(), Loader=_EachOnce)  # a safe one
    except OSError as error:
        what = f"cannot read the configuration {str(path)!r}: {error.strerror}"
        raise FileError("no-config", what, str(path), "check the path") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        what = f"not valid YAML: {' '.join(str(error).split())[:200]}"
        raise ConfigError("bad-yaml", what, str(path), f"write 'key: value' lines; {EXAMPLE}") from None
    if not isinstance(values, dict):
        raise ConfigError("bad-yaml", "a configuration must be a list of 'key: value' lines", str(path), EXAMPLE)
    return values


def parse_assignments(
    assignments: Sequence[str], option: str = "--set", example: str = "--set n_latent=32"
) -> dict[str, Any]:
    """Return the mapping of ``key=value`` words; values are read as YAML, so ``n_hidden=[64,32]`` is a list."""
    values = {}
    for word in assignments:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise ConfigError("bad-assignment", f"{word!r} is not of the form key=value", option, example)
        values[key.strip()] = _yaml_value(text)
    return values


@contextmanager
def set_in(sources: Mapping[str, Mapping[str, Any]]) -> Iterator[None]:
    """Let an error about a setting name the place where it was set: of several sources, the last that has it."""
    try:
        yield
    except ConfigError as error:
        owner, dot, key = error.where.partition(".")  # CountConfig.n_hidden.0, or the key alone
        key = key if dot else owner
        for source in [name for name, values in sources.items() if key.split(".")[0] in values][-1:]:
            error.where = f"{source}: {key}"
        raise


def one_or_several(names: Sequence[str] | None) -> Any:
    """Return the names of an option that may be given again as Python takes them: None, one, or several."""
    if not names:
        return None
    return names[0] if len(names) == 1 else tuple(names)


def _yaml_value(text: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text
    if isinstance(value, str):  # YAML 1.1 reads 1e-3 as text: it wants a dot before the exponent
        try:
            return float(value)
        except ValueError:
            return value
    return value


class _EachOnce(yaml.SafeLoader):
    """YAML whose mappings have each key once: of two values the later one would win, unnoticed."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return a mapping."""
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is there twice", key.start_mark
                )
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
        return super().construct_mapping(node, deep)

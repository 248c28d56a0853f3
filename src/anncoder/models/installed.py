"""Models of installed packages: the entry-point group ``anncoder.models``.

A package names its models there, and they are found by name wherever ours are: on the command line, in
``tl.autoencode``, by ``load``. Nothing is imported until a model is asked for by its name, and then that one alone: one
that is broken is an error of its own name.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any

from anncoder.errors import ConfigError

GROUP = "anncoder.models"


def installed() -> dict[str, EntryPoint]:
    """Return the entry points of all models of installed packages, by name; of several of a name the first."""
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=GROUP):
        found.setdefault(point.name, point)
    return dict(sorted(found.items()))


def installed_model(name: str, where: str) -> type[Any] | None:
    """Return the class of a model of an installed package; None if there is none of the name.

    Raises
    ------
    ConfigError
        It cannot be imported, or is no model of this name.
    """
    point = installed().get(name)
    if point is None:
        return None
    try:
        found: Any = point.load()
    except Exception as error:  # whatever it raises
        raise _broken(point, f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}", where) from error
    is_model = isinstance(found, type) and all(hasattr(found, part) for part in ("config_class", "network_class"))
    if not is_model:
        raise _broken(point, f"{point.value!r} is no class of a model", where)
    if found.name != name:
        raise _broken(point, f"{point.value!r} calls itself {found.name!r}", where)
    model: type[Any] = found
    return model


def _broken(point: EntryPoint, why: str, where: str) -> ConfigError:
    package = "an installed package" if point.dist is None else f"the package {point.dist.name!r}"
    what = f"the model {point.name!r} of {package} cannot be used: {why}"
    return ConfigError("broken-model", what, where, "install another version of that package, or another model")

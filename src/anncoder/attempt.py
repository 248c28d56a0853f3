"""A model object that a failed fit leaves as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from anncoder.errors import DivergenceError


@contextmanager
def attempt(model: object) -> Iterator[None]:
    """Give an object the attributes that it had before a block, if the block raises.

    But not after a :class:`DivergenceError`, whose best weights until then are kept. What an attribute is must not
    change in the block, only which one it is.
    """
    before = dict(vars(model))
    try:
        yield
    except DivergenceError:
        raise
    except BaseException:
        vars(model).clear()
        vars(model).update(before)
        raise

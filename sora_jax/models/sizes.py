"""Checks that the configurations of the models share, and what a network of a size consists of."""

import functools
from collections.abc import Callable
from typing import Any

import jax

LARGEST = 2**31 - 1  # that shapes are counted with


def check_positive(config: Any, *names: str) -> None:
    """Raises ValueError, naming the field, unless these are whole numbers from 1 to LARGEST."""
    for name in names:
        value = getattr(config, name)
        if type(value) is not int or not 1 <= value <= LARGEST:
            raise ValueError(
                f"{type(config).__name__}.{name} is {value!r}; it must be at least 1, a whole "
                f"number, and at most {LARGEST}"
            )


def is_counts(value: Any) -> bool:
    """Whether a value is a tuple of whole numbers, each at least 1."""
    return isinstance(value, tuple) and all(type(n) is int and n > 0 for n in value)


def abstract_params(init: Callable[[Any, jax.Array], Any], config: Any) -> Any:
    """What `init(config, key)` returns, with shapes in the place of numbers; a tree of its own."""
    return jax.tree.map(lambda x: x, _abstract_params(init, config))


@functools.cache  # a network is traced for it, which takes up to a second
def _abstract_params(init, config):
    return jax.eval_shape(lambda: init(config, jax.random.key(0)))

"""Checks that the configurations of the models share."""

from typing import Any


def check_positive(config: Any, *names: str) -> None:
    """Raises ValueError, with the field and its value, unless these fields are at least 1."""
    for name in names:
        value = getattr(config, name)
        if value < 1:
            raise ValueError(f"{type(config).__name__}.{name} is {value}; it must be at least 1")


def is_counts(value: Any) -> bool:
    """Whether a value is a tuple of whole numbers, each at least 1."""
    return isinstance(value, tuple) and all(type(n) is int and n > 0 for n in value)

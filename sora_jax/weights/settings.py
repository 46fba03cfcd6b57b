"""Mappings of a config or a model.json to the frozen dataclasses that the code takes."""

import dataclasses
from typing import Any


def as_tuple(value: Any) -> Any:
    """Lists to tuples, all the way down: what frozen dataclasses and hashing need."""
    return tuple(as_tuple(v) for v in value) if isinstance(value, (list, tuple)) else value


def from_settings(cls: type, settings: Any) -> Any:
    """A frozen dataclass from a mapping of its fields.

    Raises:
      ValueError: a field that the class does not have, or one that it needs is missing.
    """
    settings = {name: as_tuple(value) for name, value in dict(settings).items()}
    fields = {field.name: field for field in dataclasses.fields(cls)}
    unknown = sorted(set(settings) - set(fields))
    if unknown:
        raise ValueError(f"{cls.__name__} has no field {unknown[0]!r}; it has {sorted(fields)}")
    needed = {name for name, field in fields.items() if field.default is dataclasses.MISSING}
    missing = sorted(needed - set(settings))
    if missing:
        raise ValueError(f"{cls.__name__} needs {missing[0]!r}; add it")
    return cls(**settings)

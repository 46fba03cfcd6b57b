"""What diffusers or peft say of a file's adapters: ranks and alphas, some by patterns of names."""

import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from sora_jax.weights.tensor_files import parse_json, read_json

WRITTEN = "transformer."  # before every name that diffusers writes
INSTEAD = "only low-rank adapters of the transformer's matrices are read"
_METADATA = "lora_adapter_metadata"
_BESIDE = "adapter_config.json"  # where peft itself says what diffusers has in the metadata
# Ways in which patterns of a file may be tried, together, on one name of so many letters; and the
# longest of them.
_MOST_WAYS, _LETTERS, _LONGEST = 10**7, 50, 1000

Patterns = list[tuple[re.Pattern, float]]


class Said(NamedTuple):
    """Sizes of adapters, by peft's names of them.

    Attributes:
      r, lora_alpha: of adapters that fit none of the patterns.
      rank_pattern, alpha_pattern: of those that do, the first that fits.
      use_rslora: whether the product counts alpha over the root of the rank.
    """

    r: int
    lora_alpha: float
    rank_pattern: Patterns
    alpha_pattern: Patterns
    use_rslora: bool

    def rank(self, module: str) -> float:
        return _own(self.rank_pattern, module, self.r)

    def scale(self, module: str) -> float:
        """What the product of A and B counts."""
        rank, alpha = self.rank(module), _own(self.alpha_pattern, module, self.lora_alpha)
        return alpha / (rank**0.5 if self.use_rslora else rank)


def _own(patterns: Patterns, module: str, other: float) -> float:
    """What the first of the patterns that a module's name fits says, as in peft; else the other."""
    return next((value for pattern, value in patterns if pattern.match(module)), other)


def _count_ways(pattern: str) -> float:
    """In how many ways matching a name may try a pattern, at most; infinite where that is unknown.

    So it is of a group that repeats, whose ways multiply each time, of what is written `(?` but
    not `(?:`, and of what is too long.
    """
    if len(pattern) > _LONGEST or re.search(r"\)[*+?{]|\(\?(?!:)", pattern):
        return math.inf
    repeats = sum(pattern.replace("(?:", "(").count(sign) for sign in "*+?{")
    groups = 1 + pattern.count("(")
    branches = groups + pattern.count("|")
    # Each repeat may end at any letter, and branches give most ways where all groups have as many.
    return float(_LETTERS) ** min(1 + repeats, 9) * (branches / groups) ** groups


def _compile(patterns: Mapping[str, float]) -> Patterns:
    """Expressions for the ends of names, as in peft, of which whole names are a kind.

    Raises:
      ValueError: one is no expression, or might take for ever.
    """
    if sum(map(_count_ways, patterns)) > _MOST_WAYS:
        raise ValueError(
            f"{max(patterns, key=_count_ways)!r} may take too long to compare with a name: repeat "
            "no group, and write few of * + ? {, or whole names"
        )
    compiled = []
    for pattern, value in patterns.items():
        try:
            compiled.append((re.compile(rf"(.*\.)?({pattern})$"), value))
        except (re.error, OverflowError) as error:
            raise ValueError(f"{pattern!r} is no expression ({error})") from error
    return compiled


def _is_positive(value: Any, *kinds: type) -> bool:
    return type(value) in kinds and 0 < value < math.inf


def read_said(file: pathlib.Path, *, beside: bool) -> Said | None:
    """Reads what is said of the adapters in a file; None where nothing is.

    Args:
      file: of the adapters, whose metadata say it where diffusers wrote them.
      beside: whether peft itself did, which says it in a file beside.

    Raises:
      FileNotFoundError, ValueError: that file is missing, what is said is damaged, of adapters of
        another kind, or a pattern might take for ever to compare with a name.
    """
    if beside:
        where = file.parent / _BESIDE
        if not where.is_file():
            raise FileNotFoundError(f"{file} is of peft, and lacks {_BESIDE} beside it; copy that")
        said = read_json(where)
    else:
        try:
            with safe_open(file, framework="numpy") as tensors:
                text = (tensors.metadata() or {}).get(_METADATA)
        except SafetensorError as error:
            raise ValueError(f"{file} changed while it was read ({error}); try again") from error
        if text is None:
            return None
        where = f"{file}: {_METADATA}"
        said = parse_json(text, where, "save it again")
        said = {key.removeprefix(WRITTEN): value for key, value in said.items()}
    for name in ("use_dora", "lora_bias"):
        if said.get(name):
            raise ValueError(f"{where}: {name} is {said[name]!r}, and {INSTEAD}")
    result = {"use_rslora": bool(said.get("use_rslora"))}
    for name, kinds in (("r", (int,)), ("lora_alpha", (int, float))):
        result[name] = said.get(name)
        if not _is_positive(result[name], *kinds):
            raise ValueError(f"{where}: {name} is {said.get(name)!r}, and must be positive")
    for name in ("rank_pattern", "alpha_pattern"):
        patterns = said.get(name) or {}
        if not isinstance(patterns, dict) or not all(
            _is_positive(value, int, float) for value in patterns.values()
        ):
            raise ValueError(
                f"{where}: {name} {patterns!r} must be positive numbers by names of modules, or by "
                "expressions for them, such as {'blocks.0.attn1.to_q': 8}"
            )
        try:
            result[name] = _compile(patterns)
        except ValueError as error:
            raise ValueError(f"{where}: {name}: {error}") from error
    return Said(**result)

"""TPU chips and their slices: the numbers of each kind, and devices to compile for without any."""

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Sequence

import jax
from jax.experimental import topologies

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of chip.

    Attributes:
      peak: of bfloat16 products, TFLOP/s.
      clock: behind the compiler's cycles, GHz.
      hbm: GiB that the compiler gives to programs.
      links: ICI bandwidth as published, GB/s, both directions of all links together.
      slices: shapes of the slices that exist.
      options: of the topology, so that a chip is one device.
    """

    peak: float
    clock: float
    hbm: float
    links: float
    slices: tuple[tuple[int, ...], ...]
    options: tuple[tuple[str, str], ...] = ()


_CUBES = (
    *((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4), (4, 4, 4), (4, 4, 8), (4, 8, 8)),
    *((8, 8, 8), (8, 8, 16), (8, 16, 16), (16, 16, 16)),
)
_SQUARES = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))

CHIPS = {
    "v4": Chip(275.0, 1.05, 30.75, 300.0, _CUBES, (("chip_config_name", "megacore"),)),
    "v5p": Chip(459.0, 1.75, 95.73, 600.0, (*_CUBES, (16, 16, 24))),
    "v5e": Chip(197.0, 1.5, 15.75, 200.0, _SQUARES),
    "v6e": Chip(918.0, 1.75, 31.24, 448.0, _SQUARES),
}

# libtpu looks for the machine that it is on, asks for it over the network, and says what it misses.
_SILENCE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    # No device is opened, so several plans may be made at a time.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """Parts of pods: so many chips of a kind, in two or three dimensions.

    Attributes:
      kind: a key of CHIPS.
      shape: chips along each side.
      slices: that many of them, on a network between them.
    """

    kind: str
    shape: tuple[int, ...]
    slices: int = 1

    def __str__(self) -> str:
        count = f"{self.slices}x" if self.slices > 1 else ""
        return f"{count}{self.kind}:{'x'.join(map(str, self.shape))}"

    @property
    def chip(self) -> Chip:
        return CHIPS[self.kind]

    @property
    def chips(self) -> int:
        return self.slices * math.prod(self.shape)


def read_slice(name: str) -> Slice:
    """The slice of a name such as v5p:4x4x8, or several: 2xv5p:4x4x8.

    Raises:
      ValueError: there is none of that name.
    """
    found = re.fullmatch(r"(?:([1-9]\d*)x)?([a-z]\w*):(\d+(?:x\d+)*)", name)
    if not found:
        raise ValueError(
            f"--topology={name} is no topology; give KIND:SHAPE, such as v5p:4x4x8 or v6e:16x16, "
            f"or several slices, such as 2xv5p:4x4x8, with one of the chips {sorted(CHIPS)}"
        )
    slices, kind = int(found.group(1) or 1), found.group(2)
    shape = tuple(int(n) for n in found.group(3).split("x"))
    if kind not in CHIPS:
        raise ValueError(f"--topology={name}: the chip {kind!r} is not one of {sorted(CHIPS)}")
    known = CHIPS[kind].slices
    if shape not in known:
        nearest = min(known, key=lambda other: _distance(shape, other))
        raise ValueError(
            f"--topology={name} does not exist; the nearest is {Slice(kind, nearest)}, and there "
            f"are {', '.join('x'.join(map(str, one)) for one in known)}"
        )
    return Slice(kind, shape, slices)


def _distance(shape: tuple[int, ...], other: tuple[int, ...]) -> tuple[float, int]:
    chips = abs(math.log(max(math.prod(shape), 1) / math.prod(other)))
    return chips, sum(abs(a - b) for a, b in zip(sorted(shape), sorted(other)))


def devices(topology: Slice) -> Sequence[jax.Device]:
    """Its devices, one a chip, that programs can be compiled for but not run on.

    Raises:
      ValueError: the compiler is not installed.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError('the TPU compiler is missing: pip install "sora_jax[tpu]"')
    for name, value in {**_SILENCE, "TPU_ACCELERATOR_TYPE": f"{topology.kind}-8"}.items():
        os.environ.setdefault(name, value)
    # The machine's own TPU, if it has one, is none of the plan's business.
    jax.config.update("jax_platforms", "cpu")
    shape = "x".join(map(str, topology.shape))
    return topologies.get_topology_desc(
        platform="tpu",
        topology_name=f"{topology.kind}:{shape}",
        **dict(topology.chip.options),
        **({"num_slices": topology.slices} if topology.slices > 1 else {}),
        # Hosts have four chips, but for a slice of a single one.
        **({"chips_per_host_bounds": [1, 1, 1]} if math.prod(topology.shape) == 1 else {}),
    ).devices

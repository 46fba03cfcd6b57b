"""What models/make_golden.py stored: the weights of a PyTorch network, its inputs and outputs."""

import pathlib

import numpy as np


def load_golden(name: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """State dict in float32 by PyTorch names, and the arrays beside it."""
    folder = pathlib.Path(__file__).parent / "models" / "golden"
    with np.load(folder / f"{name}.npz") as file:
        stored = dict(file)
    weights = {k.removeprefix("weights/"): v for k, v in stored.items() if k.startswith("weights/")}
    arrays = {k: v for k, v in stored.items() if not k.startswith("weights/")}
    return {k: v.astype(np.float32) for k, v in weights.items()}, arrays

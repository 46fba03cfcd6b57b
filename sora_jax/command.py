"""Command lines: what is wrong ends the process with one line `error: ...` and status 1."""

import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from absl import app, flags


def fail(error: object) -> NoReturn:
    """Ends the process with the error on one line of stderr."""
    sys.exit("error: " + " ".join(str(error).split()))


def run(main: Callable[[list[str]], Any]) -> None:
    """Runs main(argv) as absl's app does, but without a page of usage where a flag is wrong."""
    app.run(main, flags_parser=_parse)


def _parse(argv: Sequence[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        fail(error)
    except AttributeError as error:  # what a locked ConfigDict makes of --config.KEY
        fail(f"--config.KEY=VALUE names a key that the config file does not have: {error}")

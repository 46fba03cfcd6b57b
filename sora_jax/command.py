"""Command lines: what is wrong ends the process with one line `error: ...` and status 1."""

import logging
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from absl import app, flags
from absl import logging as absl_logging

from sora_jax.host_memory import keep_freed_memory


def fail(error: object) -> NoReturn:
    """Ends the process with the error on one line of stderr."""
    sys.exit("error: " + " ".join(str(error).split()))


def show_log() -> logging.Handler:
    """Lets what the package logs appear on stderr, with the time; returns the handler."""
    logger = logging.getLogger("sora_jax")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    handler = logging.StreamHandler()
    handler.setFormatter(log_format("%(message)s"))
    logger.addHandler(handler)
    return handler


def log_format(message: str) -> logging.Formatter:
    """The time before a message."""
    return logging.Formatter(f"%(asctime)s {message}", "%H:%M:%S")


def run(main: Callable[[list[str]], Any]) -> None:
    """Runs main(argv) as absl's app does, but without a page of usage where a flag is wrong."""

    def quiet(argv: list[str]) -> Any:
        # The libraries below tell of each step they take; warnings are enough.
        absl_logging.set_verbosity(absl_logging.WARNING)
        absl_logging.get_absl_handler().addFilter(_without_traceback)
        return main(argv)

    keep_freed_memory()
    try:
        app.run(quiet, flags_parser=_parse)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def _without_traceback(record: logging.LogRecord) -> bool:
    """What a library logs of an error that it raises as well keeps the error's first line."""
    if record.exc_info and record.exc_info[1] is not None:
        said = str(record.exc_info[1]).strip().partition("\n")[0]
        record.msg, record.args = f"{record.getMessage()} {said}", ()
        record.exc_info = record.exc_text = None
    return True


def _parse(argv: Sequence[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        # A config file's own error comes with its traceback, whose last line is the error.
        flag, _, trace = str(error).partition("Error whilst parsing config file:")
        fail(flag + trace.strip().splitlines()[-1] if trace else error)
    except AttributeError as error:  # what a locked ConfigDict makes of --config.KEY
        fail(f"--config.KEY=VALUE names a key that the config file does not have: {error}")

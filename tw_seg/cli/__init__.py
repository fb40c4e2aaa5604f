"""The ``tw-seg`` command. It imports only the module of the command that is asked for, so help needs no torch."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import io
import logging
import signal
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from tw_seg.cli import short_help
from tw_seg.errors import DataError, InputError, TwSegError
from tw_seg.printable import make_printable
from tw_seg.version import __version__


class Command(NamedTuple):
    """A command of ``tw-seg``.

    Attributes:
        function: ``"module:function"``; it takes the arguments, the command's name first, and returns the exit status.
        summary: What the command does, in one line.
    """

    function: str
    summary: str


COMMANDS = {
    "fit": Command("tw_seg.cli.lightning:run_and_report", "train a model"),
    "validate": Command("tw_seg.cli.lightning:run_and_report", "log the metrics of the validation images"),
    "test": Command("tw_seg.cli.lightning:run_test", "score the test images, and write a report"),
    "predict": Command("tw_seg.cli.predict:run_predict", "write the masks of pictures, and a table"),
    "next": Command("tw_seg.cli.next:run_next", "choose the images to mask next"),
    "data": Command("tw_seg.cli.data:run_data", "check a data set, divide it, choose a label budget"),
    "export": Command("tw_seg.cli.export:run_export", "write a trained model for ONNX, torch.export or the Hub"),
    "app": Command("tw_seg.cli.app:run_app", "look at a model in the browser, and correct it"),
    "demo": Command("tw_seg.cli.demo:run_demo", "find objects in photographs, with nothing trained"),
    "sweep": Command("tw_seg.cli.sweep:run_sweep", "run all that a W&B sweep file describes, without a server"),
    "doctor": Command(
        "tw_seg.cli.doctor:run_doctor", "follow the relevance of a classifier call by call and say what is wrong"
    ),
    "explain": Command("tw_seg.cli.explain:run_explain", "which part of a picture a model needs for its masks"),
    "reliability": Command("tw_seg.cli.reliability:run_reliability", "rate masks by how far they can be trusted"),
    "completion": Command(
        "tw_seg.cli.completion:print_completion", "print a script with which a shell completes commands and options"
    ),
}


def main(args: Sequence[str] | None = None) -> int:
    """Entry point of ``tw-seg``.

    Args:
        args: The arguments; ``None``: those of the process.

    Returns:
        Exit status: 0, or 2 after an error of ours, whose message is printed without a traceback; 1 if ``doctor``
        found something wrong; 130 if Ctrl-C or SIGTERM ended the command.

    Raises:
        SystemExit: After ``--help``, ``--version`` and the like, and for options that do not parse.
    """
    arguments = sys.argv[1:] if args is None else list(args)
    try:
        with _terminated_like_interrupted(), _printable_warnings():
            return _dispatch(arguments)
    except TwSegError as error:
        lines = "" if isinstance(error, DataError) else "\n"  # a name of a file may hold one
        print(f"tw-seg: error: {make_printable(error_message(error), keep=lines)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"tw-seg: stopped; {stop}" if str(stop) else "tw-seg: stopped", file=sys.stderr)
        return 130


@contextlib.contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt, as Ctrl-C does; only the main thread may arrange it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


class _PrintableFormatter(logging.Formatter):
    """Logs with the control characters of names as escapes."""

    def format(self, record: logging.LogRecord) -> str:
        return make_printable(super().format(record), keep="\n\t")


@contextlib.contextmanager
def _printable_warnings() -> Iterator[None]:
    """Warnings likewise."""
    format_warning = warnings.formatwarning

    def format_printable(*args: Any, **kwargs: Any) -> str:
        return make_printable(format_warning(*args, **kwargs), keep="\n\t")

    warnings.formatwarning = format_printable
    try:
        yield
    finally:
        warnings.formatwarning = format_warning


def error_message(error: BaseException) -> str:
    """An error's message; of one that a data loader's worker raised, without the worker's traceback."""
    text = str(error)
    if "Original Traceback" in text:
        last = text.rstrip().splitlines()[-1]
        text = last.partition(": ")[2] or last
    return text


def suggest_name(mistyped: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """The known name closest to a mistyped one, as a question to put behind a message; empty if none is close.

    Args:
        mistyped: What was given.
        known: What there is.
        cutoff: How close a name must be, from 0 to 1 (the same).
    """
    close = difflib.get_close_matches(mistyped, list(known), n=1, cutoff=cutoff)
    return f"; did you mean {close[0]}?" if close else ""


def run_function(command: str, arguments: list[str]) -> int:
    """Import the function of a command and call it; returns its exit status."""
    module, _, name = COMMANDS[command].function.partition(":")
    function = getattr(importlib.import_module(module), name)
    handler = logging.StreamHandler()
    handler.setFormatter(_PrintableFormatter("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])  # after Lightning has set up its own
    status: int = function(arguments)
    return status


def format_help(command: str, *group: str) -> str:
    """The help of a command with all its options, or of a command of its group."""
    with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):
        run_function(command, [command, *group, "--help"])
    return text.getvalue()


def _dispatch(arguments: list[str]) -> int:
    first, rest = (arguments or ["--help"])[0], arguments[1:]
    if first in ("-h", "--help"):
        print(_describe_commands(), file=sys.stdout if arguments else sys.stderr)
        sys.exit(0 if arguments else 2)
    if first == "--version":
        print(f"tw-seg {__version__}")
        sys.exit(0)
    if first == "--help-all":
        print(_describe_commands(), *(f"\n==== tw-seg {name} ====\n\n{format_help(name)}" for name in COMMANDS))
        sys.exit(0)
    if first == "-c" or first.partition("=")[0] == "--config":  # a file for the command that comes after it
        return run_function("fit", arguments)
    if first not in COMMANDS:
        hint = suggest_name(first, [*COMMANDS, "--help", "--help-all", "--version"])
        raise InputError(f"unknown command {first!r}{hint} (commands: {', '.join(COMMANDS)})")
    if first in short_help.EXAMPLES and "--help-all" in rest:
        return run_function(first, [first, "--help"])
    if first in short_help.EXAMPLES and ("-h" in rest or "--help" in rest):
        print(short_help.describe_command(first, COMMANDS[first].summary))
        sys.exit(0)
    return run_function(first, arguments)


def _describe_commands() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: tw-seg COMMAND [OPTIONS]",
            "",
            "Train and use a segmentation model made from an image classifier.",
            "",
            "commands:",
            *lines,
            "",
            "tw-seg COMMAND --help lists the options that people use, with an example; tw-seg COMMAND --help-all lists",
            "every option, tw-seg --help-all those of all commands, and tw-seg --version says which version this is.",
        ]
    )

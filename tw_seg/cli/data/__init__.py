"""``tw-seg data``: look at a data set, divide it, and choose a label budget. Help imports no torch."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from tw_seg.cli import Command, suggest_name
from tw_seg.errors import InputError

SUBCOMMANDS = {
    "check": Command("tw_seg.cli.data.check:run_check", "say what is in a data set and what is wrong with it"),
    "split": Command("tw_seg.cli.data.split:run_split", "divide a data set into train, val and test"),
    "convert": Command("tw_seg.cli.data.convert:run_convert", "write masks as a file of COCO, CVAT or Label Studio"),
    "budget": Command("tw_seg.cli.data.budget:run_budget", "choose the training images whose masks may be used"),
}


def run_data(args: Sequence[str]) -> int:
    """Run a command of the group.

    Args:
        args: The arguments, ``data`` first, then the command.

    Returns:
        Exit status: that of the command.

    Raises:
        TwSegError: For an unknown command, and what the command raises.
        SystemExit: After ``--help``, and for arguments that do not parse.
    """
    first, rest = ([*args[1:]] or ["--help"])[0], list(args[2:])
    if first in ("-h", "--help"):
        print(_describe(), file=sys.stdout if args[1:] else sys.stderr)
        sys.exit(0 if args[1:] else 2)
    if first not in SUBCOMMANDS:
        hint = suggest_name(first, SUBCOMMANDS)
        raise InputError(f"unknown command 'data {first}'{hint} (commands: {', '.join(SUBCOMMANDS)})")
    module, _, name = SUBCOMMANDS[first].function.partition(":")
    status: int = getattr(importlib.import_module(module), name)(rest)
    return status


def _describe() -> str:
    width = max(map(len, SUBCOMMANDS))
    return "\n".join(
        [
            "usage: tw-seg data COMMAND PATH [OPTIONS]",
            "",
            "Look at a data set of your own before a model is trained on it.",
            "",
            "commands:",
            *(f"  {name:{width}}  {command.summary}" for name, command in SUBCOMMANDS.items()),
            "",
            "example:",
            "  tw-seg data check my_images --contact_sheet sheet.png",
            "",
            "tw-seg data COMMAND --help lists the options of a command.",
        ]
    )

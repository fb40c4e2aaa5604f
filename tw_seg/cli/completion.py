"""``tw-seg completion``: a script with which bash, zsh or tcsh completes the command's names and options.

The script is made once, with every option, so that completing itself takes no time.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence

import shtab

from tw_seg.cli import COMMANDS, format_help, short_help
from tw_seg.cli.data import SUBCOMMANDS

_DESCRIPTION = f"""tw-seg completion: {COMMANDS["completion"].summary}. Install it once. With bash:
tw-seg completion bash >> ~/.bash_completion. With zsh, in a folder of $fpath: tw-seg completion zsh > _tw-seg"""
# An option in a parser's help: its names, then its choices, if they are few enough to be listed.
_OPTION = re.compile(r"^  (?:-\w(?: \w+)?, )?(--[\w.]+\+?)(?: \{([^}]+)\})?", re.MULTILINE)
_FILES = (
    "--config",
    "--ckpt_path",
    "--extend",
    "--model.warm_start",
    "--data.budget_file",
    "--json",
    "--images",
    *("--contact_sheet", "--table"),
)
_FOLDERS = ("--run_dir", "--out")


def print_completion(args: Sequence[str]) -> int:
    """Run the command.

    Args:
        args: The arguments, ``completion`` first.

    Returns:
        Exit status: 0.

    Raises:
        SystemExit: After ``--help``, and for a shell that is not known.
    """
    parser = argparse.ArgumentParser("tw-seg completion", description=_DESCRIPTION)
    parser.add_argument("shell", choices=shtab.SUPPORTED_SHELLS)
    shell = parser.parse_args(args[1:]).shell
    print(shtab.complete(create_parser(), shell=shell))
    return 0


def create_parser() -> argparse.ArgumentParser:
    """A plain parser of all commands with the names of all options: all that a completion script is made from.

    jsonargparse makes one too, of 80 MB: with the arguments of every class that an option may name.
    """
    parser = argparse.ArgumentParser("tw-seg")
    commands = parser.add_subparsers()
    for option in ("--help-all", "--version"):
        parser.add_argument(option, action="store_true")
    for name, command in COMMANDS.items():
        subparser = commands.add_parser(name, help=command.summary, add_help=False)
        _add_options(subparser, format_help(name))
        if name == "data":
            group = subparser.add_subparsers()
            for inner, one in SUBCOMMANDS.items():
                inner_parser = group.add_parser(inner, help=one.summary, add_help=False)
                _add_options(inner_parser, format_help(name, inner))
                inner_parser.add_argument("path").complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        if name in short_help.EXAMPLES:
            subparser.add_argument("--help-all", action="store_true")
        if name == "completion":
            subparser.add_argument("shell", choices=shtab.SUPPORTED_SHELLS)
    return parser


def _add_options(parser: argparse.ArgumentParser, text: str) -> None:
    """Add the options that a help names."""
    for option, choices in dict(_OPTION.findall(text)).items():  # of predict in both forms
        action = parser.add_argument(option, choices=choices.split(",") if choices else None)
        if option in _FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        elif option in _FOLDERS:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]

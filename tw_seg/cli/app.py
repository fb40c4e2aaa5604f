"""``tw-seg app``: a page in the browser, on this computer, to look at a checkpoint and correct it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from tw_seg.cli import COMMANDS
from tw_seg.cli.config_code import add_trust_code
from tw_seg.cli.short_help import CHECKPOINT_HELP

_DESCRIPTION = f"""tw-seg app: {COMMANDS["app"].summary}. The page is served to this computer alone and asks no
other for anything. Drop a photograph: it shows classes, mask and heatmaps; draw where the model is wrong, and let a
copy of it learn from that. It needs gradio: pip install 'tw_seg[app]'. Example: tw-seg app runs/heatmap"""


def run_app(args: Sequence[str]) -> int:
    """Run the command, until it is interrupted.

    Args:
        args: The arguments, ``app`` first.

    Returns:
        Exit status: 0.

    Raises:
        TwSegError: gradio is missing, or for a wrong argument or file.
        SystemExit: After ``--help``, and for arguments that do not parse.
    """
    given = create_parser().parse_args(args[1:])
    from tw_seg.app.page import Page  # here, as the help needs no torch; before the checkpoint, which takes longer
    from tw_seg.app.session import Service

    trust = None if given.trust is None else Path(given.trust)
    checkpoint, out = Path(given.checkpoint), Path(given.out)
    page = Page(Service.load(checkpoint, out=out, trust=trust, trust_code=given.trust_code))
    url = page.launch(given.port, open_browser=given.open)
    print(f"open {url} in a browser on this computer; stop with Ctrl-C", flush=True)
    page.wait()
    return 0


def create_parser() -> argparse.ArgumentParser:
    """The parser of the command's arguments."""
    result = argparse.ArgumentParser("tw-seg app", description=_DESCRIPTION)
    add = result.add_argument
    add("checkpoint", metavar="CHECKPOINT", help=CHECKPOINT_HELP)
    add("--trust", metavar="FILE", help="what tw-seg reliability fit wrote: says how far each mask can be trusted")
    add(
        "--out",
        default="corrections",
        metavar="FOLDER",
        help="where corrections are saved (corrections, or the first of corrections-2, ... that is free)",
    )
    add_trust_code(result)
    add("--port", type=int, metavar="N", help="port of the page; by default the first free one from 7860 on")
    add("--open", action="store_true", help="open the page in the browser")
    return result

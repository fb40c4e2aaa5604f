"""Gives every reader of files from elsewhere inputs that are broken: real files, changed, and what Hypothesis makes.

    python -m experiments.fuzz                          # 100,000 inputs for all readers together
    python -m experiments.fuzz --inputs 1000 --only coco

A reader takes an input, or refuses it with an error of tw_seg that names the file. All else is listed, and the exit
status is 1: other exceptions, more than 10 seconds of CPU time or 3 GiB of memory for an input, the end of the process.
The same seed makes the same inputs; ``--keep`` copies those that failed into a folder.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from random import Random

from hypothesis import HealthCheck, Phase, given, seed, settings

from experiments.fuzz.changes import change
from experiments.fuzz.targets import TARGETS, Target
from tw_seg.errors import TwSegError

BATCH = 250
SECONDS = 10  # of CPU time for one input
MEMORY = 3 * 2**30
ROOT = "input <b>"  # a name that no message holds otherwise


def main(args: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("experiments.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=100_000, help="how many, of all readers together")
    parser.add_argument("--only", default="", metavar="TEXT", help="only readers with this in their name")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where inputs that failed are copied to")
    options = parser.parse_args(args)
    chosen = {name: target for name, target in TARGETS.items() if options.only in name}
    if not chosen:
        parser.error(f"no reader has {options.only!r} in its name; there are {', '.join(TARGETS)}")
    total, found, begin = 0, collections.Counter[str](), time.monotonic()
    refused = 0
    shares = sum(target.share for target in chosen.values())
    for name, target in chosen.items():
        count = -(-int(options.inputs * target.share) // max(1, int(shares)))
        tried, no, failures = fuzz(name, target, count, options.seed, options.keep)
        total, refused = total + tried, refused + no
        found.update(failures)
        print(f"{name}: {tried} inputs, {no} refused, {sum(failures.values())} failures", flush=True)
    for text, times in found.most_common():
        print(f"\n{times} x {text}")
    print(f"\n{total} inputs in {time.monotonic() - begin:.0f} s: {refused} refused, {sum(found.values())} failures")
    return int(bool(found))


def fuzz(
    name: str, target: Target, count: int, start: int, keep: Path | None
) -> tuple[int, int, collections.Counter[str]]:
    """Try so many inputs with one reader: how many were tried, how many it refused, and what went wrong, by message."""
    failures: collections.Counter[str] = collections.Counter()
    tried = refused = 0
    with tempfile.TemporaryDirectory(prefix="fuzz") as folder:
        home = Path(folder)
        (home / "valid").mkdir()
        target.write(home / "valid")
        _probe(target, home)
        while tried < count:
            size = min(BATCH, count - tried)
            (home / "log").write_text("")
            status = _run_child(target, size, f"{name}/{start}/{tried}", home, keep and keep / name)
            lines = [json.loads(line) for line in (home / "log").read_text().splitlines()]
            failures.update(f"{name}: {line}" for line in lines if line not in (None, "refused", "end"))
            refused += lines.count("refused")
            if status or "end" not in lines:
                why = "more than 10 s" if status == signal.SIGPROF else f"the process ended with {status}"
                failures[f"{name}: {why}"] += 1
                _keep(home / ROOT, keep and keep / name)
                size = min(size, len(lines) + 1)  # others come in the place of those behind it
            shutil.rmtree(home / ROOT, ignore_errors=True)
            tried += size
    return tried, refused, failures


def _probe(target: Target, home: Path) -> None:
    """What is valid is read: otherwise all that follows would test one error."""
    with warnings.catch_warnings(action="ignore"):
        target.read(shutil.copytree(home / "valid", home / "probe"))


def _run_child(target: Target, count: int, text: str, home: Path, keep: Path | None) -> int:
    """Try a batch in a process of its own; returns the signal that ended it, or its status."""
    child = os.fork()
    if child:
        status = os.waitpid(child, 0)[1]
        return os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    try:
        warnings.simplefilter("ignore")
        sys.stdout = sys.stderr = open(os.devnull, "w")
        os.dup2(sys.stderr.fileno(), 2)  # what libraries in C say of broken files
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        random = Random(text)
        made = 0 if target.make is None else count // 2 if target.changed else count
        with open(home / "log", "a", buffering=1) as log:

            def attempt(file: str, content: bytes) -> None:
                log.write(json.dumps(_attempt(target, home, file, content, keep)) + "\n")

            valid = sorted(path.relative_to(home / "valid") for path in (home / "valid").rglob("*") if path.is_file())
            for _ in range(count - made):
                file, other = random.choice(valid), random.choice(valid)
                content = [(home / "valid" / one).read_bytes() for one in (file, other)]
                attempt(str(file), change(*content, random))
            if made and target.make is not None:
                options = settings(
                    max_examples=made,
                    database=None,
                    deadline=None,
                    phases=[Phase.generate],
                    suppress_health_check=list(HealthCheck),
                )
                options(seed(text)(given(target.make)(lambda content: attempt(target.file, content))))()
            log.write('"end"\n')
        os._exit(0)
    except BaseException:
        with open(home / "log", "a") as log:
            log.write(json.dumps(f"the fuzzer itself: {traceback.format_exc()}") + "\n")
        os._exit(3)


def _attempt(target: Target, home: Path, file: str, content: bytes, keep: Path | None) -> str | None:
    """Try one input; returns what went wrong."""
    root = home / ROOT
    if not root.is_dir():
        shutil.copytree(home / "valid", root)
    (root / file).write_bytes(content)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)  # its default action ends the process
    try:
        target.read(root)
    except TwSegError as error:
        if not target.names_file or ROOT in str(error):
            return "refused"
        return f"an error that does not name the file: {str(error)[:150]}"
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in frames if "tw_seg/" in frame.filename] or frames
        _keep(root, keep)
        return f"{type(error).__name__} at {ours[-1].filename.rpartition('tw_seg/')[2]}:{ours[-1].lineno}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        if (home / "valid" / file).exists():
            shutil.copy(home / "valid" / file, root / file)
    return None


def _keep(root: Path, folder: Path | None) -> None:
    if folder is not None:
        number = len(list(folder.iterdir())) if folder.is_dir() else 0
        shutil.copytree(root, folder / str(number))


if __name__ == "__main__":
    sys.exit(main())

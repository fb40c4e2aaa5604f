"""What the choice of ``tw-seg next`` is worth: 20 -> 40 -> 80 masks of DigitScenes, chosen or drawn at random.

    python -m experiments.next.measure --run_dir runs/next --seeds 5

For each seed a classifier is trained on the image-level labels of all scenes, and a heatmap segmenter with 20 masks.
Then twice as many masks are used as before, the new ones chosen in one of these ways, and the segmenter is trained
anew:

``next``      by the segmenter that was trained with fewer masks, as ``tw-seg next`` chooses
``random``    drawn among all other images
``budget``    as a label budget goes on: stratified by class, without looking at an image

Data, encoder and recipe are those of the main job: a training takes a quarter of an hour on a CPU thread, 36 of them
want a GPU. What is done is not done again: a run that was stopped goes on. Written are ``results.csv``, a line for each
trained model with its test scores, and ``results.md``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from tw_seg.cli import lightning
from tw_seg.data.budget import LabelBudget, fingerprint_data, select_budget
from tw_seg.files import write_text
from tw_seg.training.restore import find_checkpoint, load_run
from tw_seg.training.survey import choose_next

CONFIGS = Path(__file__).parents[1] / "configs"
WAYS = ("next", "random", "budget")
COLUMNS = ("way", "masks", "seed", "miou", "dice")


def main(args: Sequence[str] | None = None) -> None:
    """Run what is not done yet, and write the table after each model."""
    options = _parse(args)
    torch.set_num_threads(1)
    run_dir = Path(options.run_dir)
    for seed in range(options.seeds):
        measure_seed(run_dir, seed, options)
    write_tables(run_dir)
    print((run_dir / "results.md").read_text(encoding="utf-8"))


def measure_seed(run_dir: Path, seed: int, options: argparse.Namespace) -> None:
    """Train the models of one seed that are not trained yet."""
    root = run_dir / f"seed{seed}"
    pretrain = root / "pretrain"
    steps = [f"--data.steps_per_epoch={options.pretrain_steps}", *options.set]
    if not (pretrain / "done").is_file():
        files = ["model/pretrain.yaml", "main_job/pretrain.yaml"]
        command(
            "fit",
            files,
            pretrain,
            [*steps, f"--seed_everything={seed}", f"--model.warmup_steps={options.pretrain_steps}"],
        )
        (pretrain / "done").touch()
    start = root / f"start-{options.masks[0]}"
    names = train(start, seed, None, options, pretrain=pretrain)
    write_tables(run_dir)
    for way in WAYS:
        before, used = start, names
        for masks in options.masks[1:]:
            folder = root / f"{way}-{masks}"
            if not (folder / "done").is_file():
                budget = folder.parent / f"{way}-{masks}.json"
                if not budget.is_file():
                    choose_masks(way, before, used, masks - len(used), seed).save(budget)
                train(folder, seed, budget, options, pretrain=pretrain)
                write_tables(run_dir)
            before, used = folder, LabelBudget.load(folder.parent / f"{way}-{masks}.json").names


def train(
    folder: Path, seed: int, budget: Path | None, options: argparse.Namespace, *, pretrain: Path
) -> tuple[str, ...]:
    """Train and test a segmenter with a budget of masks, if that is not done; returns the names of masked images."""
    files = ["model/heatmap.yaml", "main_job/train.yaml", "main_job/heatmap.yaml"]
    budgets = [f"--data.budget={options.masks[0]}", f"--data.split_seed={seed}"]
    if budget is not None:
        budgets = ["--data.budget=null", f"--data.budget_file={budget}"]
    extra = [
        *budgets,
        f"--seed_everything={seed}",
        f"--model.warm_start={pretrain / 'classifier.safetensors'}",
        f"--data.steps_per_epoch={options.steps}",
        f"--model.warmup_steps={4 * options.steps // 5}",
        *options.set,
    ]
    if not (folder / "done").is_file():
        command("fit", files, folder, extra)
        scores = command("test", files, folder, [*extra, "--ckpt_path=best"])
        numbers = {name: scores[name] for name in ("miou", "dice")}
        write_text(folder / "done", "\n".join(f"{name} {value}" for name, value in numbers.items()) + "\n")
    return LabelBudget.load(folder / "label_budget.json").names


def choose_masks(way: str, before: Path, used: Sequence[str], count: int, seed: int) -> LabelBudget:
    """The label budget with ``count`` more masks than a trained model has."""
    task, data = load_run(find_checkpoint(before))
    train_data, _, outside = data.divide_by_budget()
    names = train_data.names
    if way == "next":
        choices, survey = choose_next(task, data, count)
        new = [survey.names[choice.row] for choice in choices]
    elif way == "random":
        rng = np.random.default_rng([seed, len(used)])
        new = [names[row] for row in rng.choice(outside, count, replace=False)]
    else:
        whole = select_budget(train_data.labels, names, len(used) + count, split_seed=seed).names
        new = [name for name in whole if name not in set(used)][:count]
    fingerprint = fingerprint_data(train_data.labels, names)
    return LabelBudget((*used, *new), len(used) + len(new), None, seed, fingerprint, grouped_by=None)


def command(subcommand: str, files: Sequence[str], run_dir: Path, extra: Sequence[str]) -> dict[str, float]:
    """Run one `tw-seg` command; returns the metrics of ``test`` by name."""
    configs = [f"--config={CONFIGS / file}" for file in ("data/digits.yaml", "encoder/resnet10t.yaml", *files)]
    quiet = ["--examples.every_n_epochs=0", "--trainer.enable_progress_bar=false"]
    done = lightning.run_command([subcommand, *configs, *quiet, f"--run_dir={run_dir}", *extra])
    metrics = done.trainer.callback_metrics
    return {name.removeprefix("test/"): float(v) for name, v in metrics.items() if name.startswith("test/")}


def write_tables(run_dir: Path) -> None:
    """``results.csv``, a line for each model, and ``results.md``, means over the seeds that all ways have."""
    rows: list[tuple[str, int, int, float, float]] = []
    for done in sorted(run_dir.glob("seed*/*-*/done")):
        way, _, masks = done.parent.name.partition("-")
        seed = int(done.parent.parent.name.removeprefix("seed"))
        scores = dict(line.split() for line in done.read_text(encoding="utf-8").splitlines())
        rows.append((way, int(masks), seed, float(scores["miou"]), float(scores["dice"])))
    rows.sort()
    lines = [",".join(COLUMNS), *(",".join(map(str, row)) for row in rows)]
    write_text(run_dir / "results.csv", "\n".join(lines) + "\n")
    write_text(run_dir / "results.md", summarise(rows))


def summarise(rows: Sequence[tuple[str, int, int, float, float]]) -> str:
    """Mean IoU on test of each way and number of masks, and of ``next`` minus ``random``, seed by seed."""
    scores = {(way, masks, seed): miou for way, masks, seed, miou, _ in rows}
    lines = ["| masks | " + " | ".join(("start", *WAYS)) + " | next - random |", "|---" * (len(WAYS) + 3) + "|"]
    for masks in sorted({masks for _, masks, _ in scores}):
        cells = []
        for way in ("start", *WAYS):
            found = [score for (a, b, _), score in scores.items() if (a, b) == (way, masks)]
            cells.append(f"{np.mean(found):.3f} ({len(found)} seeds)" if found else "")
        both = [
            score - scores["random", masks, seed]
            for (way, number, seed), score in scores.items()
            if (way, number) == ("next", masks) and ("random", masks, seed) in scores
        ]
        error = np.std(both, ddof=1) / len(both) ** 0.5 if len(both) > 1 else float("nan")
        cells.append(f"{np.mean(both):+.3f} ± {error:.3f}" if both else "")
        lines.append(f"| {masks} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _parse(args: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run_dir", default="runs/next", help="folder for all that is written")
    parser.add_argument("--seeds", type=int, default=5, help="how many seeds")
    parser.add_argument("--masks", type=int, nargs="+", default=[20, 40, 80], help="numbers of masks in turn")
    parser.add_argument(
        "--pretrain_steps", type=int, default=300, help="steps of each of five epochs of the classifier"
    )
    parser.add_argument("--steps", type=int, default=100, help="of each of a segmenter's four epochs")
    parser.add_argument("--set", action="append", default=[], metavar="--KEY=VALUE", help="passed on to every command")
    return parser.parse_args(args)


if __name__ == "__main__":
    main()

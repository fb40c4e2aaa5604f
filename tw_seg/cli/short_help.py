"""The short ``--help`` of the commands that Lightning runs: the options that people use, by group, without torch.

A test compares names and defaults with those of the parser.
"""

from __future__ import annotations

import textwrap
from typing import NamedTuple

CHECKPOINT_HELP = "a checkpoint of tw-seg fit, or its run directory: the best of it"


class Option(NamedTuple):
    """An option: its name, what stands for its value, its default as it is typed (``""`` for none), its meaning."""

    name: str
    value: str
    default: str
    meaning: str


RUN = (
    Option("--config", "FILE", "", "options from a YAML file; may be given again, later ones win"),
    Option("--run_dir", "FOLDER", "", "folder for all that is written; without it a new one under runs/"),
    Option("--ckpt_path", "FILE", "", "checkpoint to go on from, or best or last of the run directory"),
    Option("--seed_everything", "N", "0", "seed of weights, batches and augmentations"),
    Option("--print_config", "", "", "print the whole configuration and stop"),
)
MODEL = (
    Option(
        "--model.model",
        "NAME",
        "heatmap",
        "also unet, multitask_unet, deeplabv3plus, classifier, cam, gradcam, input_x_gradient, lrp_mask",
    ),
    Option("--model.model_kwargs", "YAML", "", "the model's own arguments, such as '{compress: 2}'"),
    Option("--model.encoder_name", "NAME", "auto", "a torchvision name, or a timm one as timm/resnet10t"),
    Option("--model.encoder_weights", "NAME", "auto", "its pretrained weights, a file or bundled; null: random ones"),
    Option("--model.warm_start", "FILE", "", "classifier.safetensors of an earlier run to begin with"),
)
DATA = (
    Option(
        "--data.dataset", "NAME", "digits", "also folder, voc, coco, cvat, cvat_masks, label_studio, labelme, triangles"
    ),
    Option("--data.dataset_kwargs", "YAML", "", "arguments of the data set, such as '{root: my_images}'"),
    Option("--data.size", "PIXELS", "64", "height and width of the images that the model sees"),
    Option("--data.budget", "N", "", "number of training images whose mask is used, or all"),
    Option("--data.budget_share", "SHARE", "", "or which share of those that have one, 1 for all"),
    Option("--data.num_workers", "N", "0", "processes that load images"),
)
TRAINING = (
    Option("--trainer.max_epochs", "N", "", "epochs to train"),
    Option("--data.batch_size", "N", "32", "images in a training batch"),
    Option("--data.labelled_per_batch", "N", "8", "how many of them come with their mask; 0 trains a classifier"),
    Option("--test_after_fit", "BOOL", "False", "True: test the best checkpoint at the end"),
    Option("--model.lr", "RATE", "0.001", "peak learning rate of AdamW"),
    Option("--trainer.accelerator", "NAME", "auto", "cpu, gpu, ..."),
)
INFERENCE = (
    Option("--data.eval_batch_size", "N", "64", "images in a batch"),
    Option("--gate.tolerance", "X", "", "decode only likely classes; the mIoU may change by this, as 0.001"),
    Option("--trainer.accelerator", "NAME", "auto", "cpu, gpu, ..."),
)

REPORT = (
    Option("--report.resamples", "N", "1000", "bootstrap samples of the intervals; 0 for none"),
    Option("--report.groups", "FILE", "", "table with a column image, such as image_labels.csv"),
    Option("--report.group_column", "NAME", "group", "its column that says which images are drawn together"),
    Option("--report.show", "N", "6", "images in each row of pictures"),
)
PICTURES = (
    Option("CHECKPOINT", "", "", CHECKPOINT_HELP),
    Option("PICTURES", "", "", "pictures, folders, patterns such as 'photos/*.jpg', or .txt files that list pictures"),
    Option("--out", "FOLDER", "", "folder for all that is written"),
    Option("--outputs", "NAME ...", "masks overlays", "also heatmaps, probabilities"),
    Option("--view", "NAME", "resize", "what the model sees of a picture; also letterbox, tiles"),
    Option("--tile", "PIXELS", "", "side of a tile in the picture; without it the model's size"),
    Option("--overlap", "SHARE", "0.25", "share of a tile that it shares with the next one"),
    Option("--flip", "", "", "average over the pictures and their mirror images"),
    Option("--scales", "X ...", "1.0", "average over sizes, such as 0.75 1 1.25"),
    Option("--gate_tolerance", "X", "", "decode only likely classes; the mIoU may change by this, as 0.001"),
    Option("--trust", "FILE", "", "rate each mask by what tw-seg reliability fit wrote"),
    Option("--batch_size", "N", "", "images in a batch; without it as in the run"),
    Option("--num_workers", "N", "0", "processes that read pictures"),
    Option("--accelerator", "NAME", "auto", "cpu, gpu, ..."),
    Option("--trust_code", "", "", "import code that the checkpoint names: if it is yours or you know it"),
    Option("--overwrite", "", "", "begin anew: remove an earlier prediction from the folder"),
)

EXAMPLES = {
    "fit": "tw-seg fit --data.budget 20 --model.encoder_name timm/resnet10t --trainer.max_epochs 3 --run_dir runs/one",
    "validate": "tw-seg validate --config runs/one/config.yaml --ckpt_path best",
    "test": "tw-seg test runs/one",
    "predict": "tw-seg predict runs/one my_pictures --out masks_out",
}
"""The commands with a short help, and one example of each."""

USAGES = {
    "test": "RUN_DIR [OPTIONS]\n   or: tw-seg test [OPTIONS OF A RUN]",
    "predict": "CHECKPOINT PICTURES ... --out FOLDER [OPTIONS]\n"
    "   or: tw-seg predict [OPTIONS OF A RUN], which are those of tw-seg test,\n"
    "       predicts the images of a data set into the run directory",
}
"""What comes behind a command's name, where it is not options alone."""


def list_options(command: str) -> dict[str, tuple[Option, ...]]:
    """The options in a command's short help, by the title of their group."""
    if command == "predict":
        return {"pictures": PICTURES}
    last: dict[str, tuple[Option, ...]] = {"training": TRAINING} if command == "fit" else {"inference": INFERENCE}
    if command == "test":
        last["report"] = REPORT
    return {"run": RUN, "model": MODEL, "data": DATA, **last}


def describe_command(command: str, summary: str) -> str:
    """The short help of a command of `EXAMPLES`."""
    groups = list_options(command)
    width = max(len(f"{option.name} {option.value}") for group in groups.values() for option in group)
    lines = [f"usage: tw-seg {command} {USAGES.get(command, '[OPTIONS]')}", "", f"{summary[0].upper()}{summary[1:]}."]
    for title, group in groups.items():
        lines += ["", f"{title}:"]
        for option in group:
            default = f" (default: {option.default})" if option.default else ""
            first, *rest = textwrap.wrap(option.meaning + default, 116 - width)
            lines.append(f"  {f'{option.name} {option.value}':{width}}  {first}")
            lines += [f"{'':{width}}    {line}" for line in rest]
    lines += ["", "example:", f"  {EXAMPLES[command]}", "", f"tw-seg {command} --help-all lists every option."]
    return "\n".join(lines)

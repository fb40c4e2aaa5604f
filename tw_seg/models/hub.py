"""Share a model: ``save_pretrained``, ``from_pretrained`` and ``push_to_hub`` of huggingface_hub, for every model.

A shared model is three files: ``model.safetensors``, which cannot run code; ``config.json``, the model's arguments and
what else its user needs, all names and numbers; ``README.md``, the model card.
"""

from __future__ import annotations

import html
import inspect
import json
import re
from pathlib import Path
from typing import Any, Self, TypedDict

from huggingface_hub import ModelCard, ModelCardData, ModelHubMixin, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError
from safetensors.torch import save_file
from torch import nn

from tw_seg.errors import InputError
from tw_seg.files import write_text, write_whole
from tw_seg.hyper_parameters import make_plain
from tw_seg.models.by_name import check_code
from tw_seg.models.published import CHOSEN_BY_WEIGHTS
from tw_seg.models.weights import load_strict, read_weights
from tw_seg.plain_files import read_json
from tw_seg.printable import make_printable
from tw_seg.version import __version__

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"


class ModelInfo(TypedDict, total=False):
    """What a user of a model needs beside its weights, all names and numbers.

    Attributes:
        class_names: Names of the K classes, the background first.
        mean: How its images are normalised, per channel, of values in [0, 1].
        std: Likewise.
        value_range: The values of a pixel that became 0 and 1, where images are not of 8 bits.
        size: Height and width of the images it was trained on.
        gate: Image-level probability from which on a class may be in a mask.
        metrics: Scores by name, such as ``{"test/miou": 0.54}``.
        data: What it was trained on, in words.
        license: Its licence, an identifier of the Hub such as ``"mit"``.
    """

    class_names: list[str]
    mean: list[float]
    std: list[float]
    value_range: list[float]
    size: list[int]
    gate: float
    metrics: dict[str, float]
    data: str
    license: str


class HubModel(nn.Module, ModelHubMixin):
    """Base of all models: remembers the arguments it was made with, and writes and reads shared files.

    Attributes:
        info: What is shared beside the weights; see `ModelInfo`.
    """

    info: ModelInfo
    _arguments: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        instance: Self = super().__new__(cls)
        bound = inspect.signature(cls.__init__).bind_partial(instance, *args, **kwargs).arguments
        instance.__dict__["_arguments"] = dict(list(bound.items())[1:])  # without self
        instance.__dict__["info"] = {}
        return instance

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """The model card: what it is, its classes, scores, data and licence, and how it is used."""
        return ModelCard(format_card(self))

    def _save_pretrained(self, save_directory: Path) -> None:
        config = describe_model(self)
        state = {name: value.detach().cpu().clone().contiguous() for name, value in self.state_dict().items()}
        write_whole(save_directory / WEIGHTS, lambda draft: save_file(state, draft, {"format": "pt"}))
        write_text(save_directory / CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        trust_code: bool = False,
        **unknown: Any,
    ) -> Self:
        if unknown:
            raise InputError(
                f"from_pretrained takes no {', '.join(unknown)}: a model has the arguments it was saved with"
            )
        download = {
            "revision": revision,
            "cache_dir": cache_dir,
            "force_download": force_download,
            "local_files_only": local_files_only,
            "token": token,
        }
        config = read_config(find_file(model_id, CONFIG, **download), source=model_id)
        if config["class"] != cls.__name__:
            raise InputError(
                f"{model_id} holds a {config['class']}, not a {cls.__name__}: use tw_seg.load_model, which takes any"
            )
        arguments = {**config["arguments"], "encoder_weights": None}  # nothing is read or fetched for a stranger
        check_code(arguments, source=f"{model_id}: {CONFIG}", trust_code=trust_code)
        try:
            model = cls(**arguments)
        except Exception as error:  # what a constructor of any library says of arguments that it does not expect
            reason = " ".join(str(error).split())[:300]
            raise InputError(f"{model_id}: {CONFIG} makes no {cls.__name__} ({reason}); save the model anew") from error
        load_strict(model, read_weights(find_file(model_id, WEIGHTS, **download)), source=model_id)
        model.info = config["info"]
        return model.eval()


def describe_model(model: HubModel) -> dict[str, Any]:
    """The content of ``config.json``.

    Raises:
        InputError: An argument is more than names and numbers, or the number of class names is another one.
    """
    arguments = make_plain({**model._arguments, "encoder_weights": None}, "the model's arguments")
    # What torchvision's constructors choose by the weights must be said, as no weights are named any more.
    path = getattr(model, "classifier_path", None)
    if path is not None and model._arguments.get("encoder_weights") is not None:
        classifier = model.get_submodule(path)
        own = inspect.signature(type(classifier).__init__).parameters
        chosen = {key: getattr(classifier, key) for key in CHOSEN_BY_WEIGHTS if key in own and hasattr(classifier, key)}
        if chosen:
            arguments["encoder_kwargs"] = {**chosen, **(arguments.get("encoder_kwargs") or {})}
    info = make_plain(dict(model.info), "the model's info")
    if unknown := sorted(info.keys() - ModelInfo.__annotations__.keys()):
        raise InputError(f"a model's info knows {', '.join(ModelInfo.__annotations__)}, not {', '.join(unknown)}")
    names, classes = info.get("class_names"), arguments["classes"]
    if names is not None and len(names) != classes:
        raise InputError(f"a model's info must name its {classes} classes in class_names, got {len(names)} names")
    return {"class": type(model).__name__, "tw_seg": __version__, "arguments": arguments, "info": info}


def find_file(model_id: str, name: str, **download: Any) -> Path:
    """A file of a shared model: in a local folder, or fetched from the Hub.

    Raises:
        InputError: It is not there.
    """
    if Path(model_id).is_dir():
        path = Path(model_id) / name
        if path.is_file():
            return path
        raise InputError(f"{model_id} has no {name}: it is no folder that save_pretrained of this package wrote")
    try:
        return Path(hf_hub_download(model_id, name, **download))
    except (HfHubHTTPError, EntryNotFoundError, LocalEntryNotFoundError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"{model_id} is no local folder, and {name} could not be fetched from the Hub ({reason})"
        ) from error


def read_config(path: Path, *, source: str) -> dict[str, Any]:
    """Read ``config.json``.

    Raises:
        InputError: It is not one of this package.
    """
    try:
        config = read_json(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{source}: {CONFIG} cannot be read ({error})") from error
    wanted = {"class": str, "arguments": dict, "info": dict}
    if not isinstance(config, dict) or not all(isinstance(config.get(key), kind) for key, kind in wanted.items()):
        raise InputError(f"{source}: {CONFIG} is not one of tw_seg, which holds {', '.join(wanted)}")
    return config


def format_card(model: HubModel) -> str:
    """The model card as Markdown."""
    info, arguments = model.info, model._arguments
    data = ModelCardData(
        license=info.get("license"), library_name="tw-seg", tags=["image-segmentation", "tw-seg"], model_name=None
    )
    names = info.get("class_names")
    lines = ["---", data.to_yaml(), "---", "", f"# {type(model).__name__} on {arguments['encoder_name']}", ""]
    lines += ["A semantic segmentation model of tw_seg: masks and image-level scores from one classifier.", ""]
    facts = {
        "Classes": None if names is None else ", ".join(map(_escape, names)),
        "Images": _describe_images(info),
        "Gate": None
        if "gate" not in info
        else f"classes below the image-level probability {info['gate']:g} are in no mask",
        "Data": info.get("data", "not stated"),
        "Licence": info.get("license", "not stated"),
    }
    lines += [f"- **{name}**: {value}" for name, value in facts.items() if value is not None]
    if metrics := info.get("metrics"):
        lines += [
            "",
            "| score | value |",
            "|---|---|",
            *(f"| {name} | {value:.4g} |" for name, value in metrics.items()),
        ]
    use = ["import tw_seg", "", 'model = tw_seg.load_model("this folder, or USER/NAME on the Hub")']
    lines += ["", "```python", *use, "output = model(images)  # normalised, (N, C, H, W)", "```", ""]
    return "\n".join(lines)


def _escape(name: str) -> str:
    """A name that neither Markdown nor HTML takes for its own."""
    return re.sub(r"([\\`*_\[\]|#~])", r"\\\1", html.escape(make_printable(name), quote=False))


def _describe_images(info: ModelInfo) -> str | None:
    parts = []
    if "size" in info:
        parts.append("{} x {} pixels (height x width)".format(*info["size"]))
    if "mean" in info and "std" in info:
        if "value_range" in info:
            parts.append("values from {} to {} become 0 to 1".format(*info["value_range"]))
        parts.append(f"values in [0, 1], minus {info['mean']}, divided by {info['std']}")
    return "; ".join(parts) or None

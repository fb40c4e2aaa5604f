"""``tw-seg doctor``: its exit status, what it prints and what it writes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.training.tiny import ENCODER
from tw_seg.cli import main
from tw_seg.lrp.conservation.diagnose import report
from tw_seg.models.backbones import create_classifier

HERE = "tests.cli.test_doctor"
SMALL = ["--image_size", "8", "--num_classes", "4"]
TINY = [ENCODER["encoder_name"], "--encoder_kwargs", json.dumps(ENCODER["encoder_kwargs"]), "--image_size", "32"]


class Curve(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.erf(x)


def net(in_channels: int, num_classes: int, nan: bool = False) -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(in_channels, 4, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, num_classes),
    )
    if nan:
        with torch.no_grad():
            model[0].weight[0, 0, 0, 0] = torch.nan
    return model


def curved(in_channels: int, num_classes: int) -> nn.Module:
    model = net(in_channels, num_classes)
    model[1] = Curve()
    return model


def no_logits(in_channels: int, num_classes: int) -> nn.Module:
    return nn.Conv2d(in_channels, num_classes, 3)


def right(c, inputs, output, module):
    return c * torch.erf(inputs[0])


def losing(c, inputs, output, module):
    return 0.5 * right(c, inputs, output, module)


RIGHT, LOSING, NOT_RULES = {Curve: right}, {Curve: losing}, [right]


def doctor(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit status, output, errors."""
    try:
        status = main(["doctor", *arguments])
    except SystemExit as stopped:
        status = stopped.code
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_a_sound_model(capsys, tmp_path: Path) -> None:
    file = tmp_path / "new" / "doctor.json"
    status, out, err = doctor(capsys, f"{HERE}:net", *SMALL, "--json", str(file), "--classes", "0,3")
    assert (status, err) == (0, "")
    assert out.splitlines()[-1] == "No violations."
    found = json.loads(file.read_text())
    assert found["classes"] == [0, 3] and found["violations"] == [] and found["images"] == [2, 3, 8, 8]
    assert [row["kind"] for row in found["rows"]] == ["linear", "reshape", "adaptive_avg_pool", "relu", "conv"]
    assert [path.name for path in file.parent.iterdir()] == ["doctor.json"]
    for row in found["rows"]:
        assert any(line.startswith(row["path"] + " ") and row["rule"] in line for line in out.splitlines())


def test_it_is_the_report_of_that_decoder(capsys) -> None:
    arguments = ("--composite", "epsilon_box", "--composite_kwargs", "{low: -3, high: 3, epsilon: 0.1}")
    places = ("--read_out", "layer3", "0.25", "--classes", "1", "--num_classes", "4")
    status, out, _ = doctor(capsys, *TINY, *arguments, *places, "--double", "--batch", "1")
    assert status in (0, 1) and "images 1 x 3 x 32 x 32, float64, classes 1" in out
    totals = [line.split()[:2] for line in out.partition("Completeness")[2].splitlines()[3:5]]
    assert totals == [["layer3", "1"], ["0.25", "1"]]
    assert "Epsilon(epsilon=0.1)" in out


def test_weights_from_a_file_and_pictures(capsys, tmp_path: Path) -> None:
    torch.manual_seed(3)
    classifier = create_classifier(**ENCODER, classes=4).eval()
    save_file(classifier.state_dict(), tmp_path / "weights.safetensors")
    for name in "ab":
        Image.new("RGB", (40, 30), (200, 10, 90)).save(tmp_path / f"{name}.png")
    files = [str(tmp_path / f"{name}.png") for name in "ab"]
    arguments = ["--weights", str(tmp_path / "weights.safetensors"), "--images", *files, "--num_classes", "4"]
    _, out, _ = doctor(capsys, *TINY, *arguments)
    colour = torch.tensor([200, 10, 90]) / 255
    colour = (colour - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    images = colour[:, None, None].expand(2, 3, 32, 32)
    with torch.no_grad():
        likeliest = sorted(set(classifier(images).argmax(1).tolist()))
    expected = report(classifier, images, likeliest, image_size=(32, 32))
    (line,) = [line for line in out.splitlines() if line.startswith("input ")]
    assert line.split()[1] == str(likeliest[0])
    assert float(line.split()[2]) == pytest.approx(expected.totals[0].logit, rel=1e-3)


def test_the_same_every_time(capsys) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = doctor(capsys, f"{HERE}:net", *SMALL)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert doctor(capsys, f"{HERE}:net", *SMALL) == first


def test_two_numbers_are_height_and_width(capsys) -> None:
    assert "images 2 x 1 x 8 x 12" in doctor(capsys, f"{HERE}:net", "--in_channels", "1", "--image_size", "8", "12")[1]


@pytest.mark.parametrize(("rules", "status"), [("RIGHT", 0), ("LOSING", 1)])
def test_custom_rules(capsys, tmp_path: Path, rules: str, status: int) -> None:
    file = tmp_path / "doctor.json"
    found = doctor(capsys, f"{HERE}:curved", *SMALL, "--custom_rules", f"{HERE}:{rules}", "--json", str(file))
    assert found[0] == status
    violations = json.loads(file.read_text())["violations"]
    assert len(violations) == status
    assert all(text.startswith("1 (custom '_1', losing) does not conserve") and text in found[1] for text in violations)


def test_weights_that_are_not_finite(capsys) -> None:
    status, out, _ = doctor(capsys, f"{HERE}:net", *SMALL, "--encoder_kwargs", "{nan: true}")
    assert status == 1 and "1 violation:" in out and "so are 1 of 108 values of 0.weight" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((f"{HERE}:curved", *SMALL), "1 call(s) without a relevance rule:\n  1: erf"),
        (("resnet1",), "Close names: resnet18"),
        (("resnet18", "--weights", "none.pth"), "none.pth does not exist"),
        ((f"{HERE}:net", "--composite", "epsilonplus"), "unknown composite 'epsilonplus'"),
        ((f"{HERE}:net", "--composite_kwargs", "{alpha: 1}"), "does not take 'alpha'"),
        ((f"{HERE}:net", *SMALL, "--read_out", "layer9"), "'layer9'"),
        ((f"{HERE}:net", *SMALL, "--read_out", "1.5"), "fraction from 0 to 1"),
        ((f"{HERE}:net", *SMALL, "--classes", "0,9"), "9"),
        ((f"{HERE}:net", *SMALL, "--classes", "cat"), "--classes must be numbers such as 0,3, got 'cat'"),
        ((f"{HERE}:net", "--image_size", "0"), "--image_size must be one or two positive numbers"),
        ((f"{HERE}:net", "--image_size", "1", "2", "3"), "got [1, 2, 3]"),
        ((f"{HERE}:net", "--batch", "0"), "--batch and --in_channels must be at least 1, got 0 and 3"),
        ((f"{HERE}:net", "--images", "no.png"), "no.png"),
        ((f"{HERE}:net", "--images", "no.png", "--in_channels", "1"), "read in 3 colours, the model takes 1"),
        ((f"{HERE}:net", "--custom_rules", f"{HERE}:NONE"), "'package.module:NAME'"),
        ((f"{HERE}:net", "--custom_rules", f"{HERE}:NOT_RULES"), "must be a mapping"),
        ((f"{HERE}:no_logits", *SMALL), "must return logits of shape (N, K), it returned (2, 4, 6, 6)"),
        ((f"{HERE}:no_logits", "--image_size", "2"), "cannot classify images of shape (2, 3, 2, 2)"),
        ((f"{HERE}:net", *SMALL, "--json", "/dev/null/doctor.json"), "--json /dev/null/doctor.json cannot be written"),
    ],
)
def test_wrong_arguments(capsys, arguments: tuple[str, ...], message: str) -> None:
    status, _, err = doctor(capsys, *arguments)
    assert status == 2
    assert err.startswith("tw-seg: error: ") and message in err and "Traceback" not in err


@pytest.mark.parametrize(
    "arguments", [(), ("resnet18", "--no_such_option"), ("resnet18", "--batch", "two"), ("resnet18", "resnet50")]
)
def test_arguments_that_do_not_parse(capsys, arguments: tuple[str, ...]) -> None:
    status, out, err = doctor(capsys, *arguments)
    assert (status, out) == (2, "") and "usage: tw-seg doctor" in err


def test_help(capsys: Any) -> None:
    status, out, _ = doctor(capsys, "--help")
    text = " ".join(out.split())
    assert status == 0 and "The exit status is 0 if all is well, 1 after a violation" in text
    assert "epsilon_plus" in text and "--custom_rules" in text


@pytest.mark.slow
def test_as_a_process() -> None:
    command = [sys.executable, "-W", "ignore", "-m", "tw_seg", "doctor", f"{HERE}:curved", *SMALL]
    ended = subprocess.run([*command, "--custom_rules", f"{HERE}:LOSING"], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1 and "1 violation:" in ended.stdout

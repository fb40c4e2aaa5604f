"""Exported models: the same masks in torch.export's file, onnxruntime and OpenVINO, and as `predict` makes them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
import torch
from skimage import data
from torch import nn
from torch.nn import functional as F

from tests.training.tiny import ENCODER
from tw_seg.data.layouts.pixels import PixelFormat
from tw_seg.data.loading.transforms import EvalTransform
from tw_seg.errors import InputError
from tw_seg.export import onnx_file
from tw_seg.export.deployed import Deployed, make_resize_matrix
from tw_seg.export.onnx_file import DECOMPOSITIONS, convert_to_onnx, run_onnx, write_onnx
from tw_seg.export.parity import measure_parity
from tw_seg.export.program import METADATA, export_program, write_program
from tw_seg.metrics import predict_masks
from tw_seg.models.base import SegModel
from tw_seg.models.bundled import BUNDLED_ENCODER
from tw_seg.models.factory import create_model
from tw_seg.models.gated import GatedSegmenter
from tw_seg.types import IMAGENET, SYMMETRIC, Normalization

ROOT = Path(__file__).resolve().parents[2]
FACTS = {"class_names": ["background", "cat", "dog"], "size": [32, 48], "gate": 0.4}
MODELS = {
    "heatmap": {"decoder_kwargs": {"read_out": ["layer1", "layer3"], "tie_weights": False}, "compress": 2.0},
    "unet": {"decoder_channels": (8, 8, 8, 4, 4)},
    "classifier": {},
}


def make_model(name: str) -> SegModel:
    torch.manual_seed(0)
    model = create_model(name, **ENCODER, classes=3, **MODELS[name])
    with torch.no_grad():
        for key, value in model.named_buffers():
            if "running" in key:
                value.copy_(0.5 + torch.rand(value.shape))
    return model


def make_pictures(*sizes: tuple[int, int]) -> list[np.ndarray]:
    """Smooth pictures, on which neighbouring classes differ by more than rounding."""
    random = np.random.default_rng(0)
    return [cv2.resize(random.integers(0, 256, (7, 9, 3), dtype=np.uint8), (w, h)) for h, w in sizes]


@pytest.fixture(params=MODELS)
def deployed(request: pytest.FixtureRequest) -> Deployed:
    return Deployed(make_model(request.param), (32, 48), normalization=SYMMETRIC, gate=0.4)


@pytest.mark.parametrize(("old", "new"), [(64, 16), (50, 32), (48, 48), (33, 32), (7, 20), (1, 5), (32, 33)])
def test_an_axis_is_resized_as_opencv_does(old, new):
    values = np.random.default_rng(0).random((old, 1)).astype(np.float64)
    wanted = cv2.resize(values, (1, new), interpolation=cv2.INTER_AREA if new < old else cv2.INTER_LINEAR)
    found = make_resize_matrix(old, new, like=torch.zeros(1, dtype=torch.float64)) @ torch.from_numpy(values)
    torch.testing.assert_close(found[:, 0], torch.from_numpy(wanted[:, 0]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("size", [(64, 96), (32, 48), (101, 77), (20, 30)])
def test_masks_are_those_of_predict(size):
    model, picture = make_model("heatmap"), make_pictures(size)[0]
    deployed = Deployed(model, (32, 48), normalization=IMAGENET)
    images = EvalTransform((32, 48))(picture, None)[0][None]
    with torch.no_grad():
        output = model.eval()(images)
        masks, probabilities, _ = deployed(torch.from_numpy(picture[None]))
    assert (masks[0] == predict_masks(output.mask_logits, [size])[0]).float().mean() > 0.99
    torch.testing.assert_close(probabilities, output.logits.sigmoid(), rtol=0, atol=0.02)


def test_the_gate_is_that_of_gated_inference():
    model, picture = make_model("heatmap"), torch.from_numpy(make_pictures((32, 48))[0][None])
    with torch.no_grad():
        free = Deployed(model, (32, 48), normalization=SYMMETRIC)
        gate = float(free(picture)[1][0, 1:].mean())  # one of the two objects is below it
        masks, _, maps = Deployed(model, (32, 48), normalization=SYMMETRIC, gate=gate)(picture)
        wanted = GatedSegmenter(model, gate)(free.prepare(picture)).mask_logits
    torch.testing.assert_close(maps, wanted)
    rejected = (maps.amax((2, 3)) < -1e30)[0]
    assert rejected.sum() == 1 and not (masks == rejected.int().argmax()).any()


def test_files_compute_what_the_model_computes(deployed, tmp_path):
    """Other numbers and sizes of pictures than any example, the model's own size among them."""
    pictures = make_pictures((32, 48), (64, 50), (9, 200))
    program = export_program(deployed)
    write_program(program, tmp_path / "model.pt2", FACTS)
    extra = {METADATA: ""}
    module = torch.export.load(tmp_path / "model.pt2", extra_files=extra).module()
    assert json.loads(extra[METADATA]) == FACTS

    def run(images: np.ndarray) -> list[np.ndarray]:
        with torch.no_grad():
            return [one.numpy() for one in module(torch.from_numpy(images))]

    parity = measure_parity(deployed, run, pictures)
    assert parity.logit_difference <= 1e-5 * max(parity.logit_scale, 1) and parity.equal_pixels == 1

    converted = convert_to_onnx(program, makes_masks=deployed.model.makes_masks, facts=FACTS)
    write_onnx(converted, tmp_path / "model.onnx")
    parity = measure_parity(deployed, lambda images: run_onnx(tmp_path / "model.onnx", images), pictures)
    assert parity.logit_difference <= 1e-4 * max(parity.logit_scale, 1) and parity.equal_pixels > 0.995
    batch = np.stack(make_pictures((33, 41)) * 4)
    outputs = 3 if deployed.model.makes_masks else 1
    assert [len(one) for one in run_onnx(tmp_path / "model.onnx", batch)] == [4] * outputs


def test_four_channels_of_16_bits(tmp_path):
    """What a file of a TIFF's values returns is what the model returns for the image as training reads it."""
    stored = np.random.default_rng(0).integers(0, 5000, (40, 50, 4), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "image.tif", stored, planarconfig="contig")
    pixels = PixelFormat(4, (100, 4000))
    normalization = Normalization((0.1, 0.2, 0.3, 0.4), (0.5, 0.6, 0.7, 0.8))
    transform = EvalTransform((32, 48), **normalization._asdict(), floating=True)
    images = transform(pixels.read(tmp_path / "image.tif"), None)[0][None]
    torch.manual_seed(0)
    model = create_model("unet", **ENCODER, classes=3, in_channels=4, **MODELS["unet"])
    deployed = Deployed(model, (32, 48), normalization=normalization, value_range=pixels.value_range)
    picture = stored[None].astype(np.float32)
    torch.testing.assert_close(deployed.prepare(torch.from_numpy(picture)), images, rtol=0, atol=1e-5)
    converted = convert_to_onnx(export_program(deployed), makes_masks=True, facts=FACTS)
    masks, _, maps = run_onnx(converted.model_proto.SerializeToString(), picture)
    with torch.no_grad():
        wanted = model.eval()(images).mask_logits
    np.testing.assert_allclose(maps, wanted, rtol=0, atol=1e-4 * float(wanted.abs().max()))
    assert (masks[0] == predict_masks(wanted, [(40, 50)])[0].numpy()).mean() > 0.995


def test_a_net_whose_forward_branches_on_sizes():
    """The encoder of the bundled weights pads by the size of its images."""
    options = {"decoder_kwargs": {"composite": "epsilon_plus", "read_out": ["blocks.1", "blocks.4"]}, "compress": 2.0}
    model = create_model("heatmap", encoder_name=BUNDLED_ENCODER, encoder_weights="bundled", classes=3, **options)
    deployed = Deployed(model, (64, 96), normalization=SYMMETRIC)
    converted = convert_to_onnx(export_program(deployed), makes_masks=True, facts=FACTS)
    content = converted.model_proto.SerializeToString()
    parity = measure_parity(deployed, lambda images: run_onnx(content, images), [data.cat(), data.coffee()])
    assert parity.logit_difference <= 1e-3 * max(parity.logit_scale, 1) and parity.equal_pixels > 0.995


def test_openvino_and_a_consumer_of_numpy_alone_read_the_file(tmp_path):
    import openvino

    deployed = Deployed(make_model("heatmap"), (32, 48), normalization=SYMMETRIC)
    converted = convert_to_onnx(export_program(deployed), makes_masks=True, facts=FACTS)
    write_onnx(converted, tmp_path / "model.onnx")
    compiled = openvino.Core().compile_model(tmp_path / "model.onnx", "CPU")

    def run(images: np.ndarray) -> list[np.ndarray]:
        found = compiled(images)
        return [found[k] for k in range(3)]

    pictures = make_pictures((40, 64), (32, 48))
    parity = measure_parity(deployed, run, pictures)
    assert parity.logit_difference <= 1e-3 * max(parity.logit_scale, 1) and parity.equal_pixels > 0.99

    np.save(tmp_path / "pictures.npy", pictures[0][None])
    script = "import runpy, sys; sys.modules['torch'] = None; runpy.run_path(sys.argv.pop(1), run_name='__main__')"
    files = [str(tmp_path / name) for name in ("model.onnx", "pictures.npy", "masks.npy")]
    command = [sys.executable, "-c", script, str(ROOT / "examples" / "onnx_consumer.py"), *files]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    assert printed.count("\n") == 3 and "picture 0: cat " in printed
    expected = deployed(torch.from_numpy(pictures[0][None]))[0].numpy()
    assert (np.load(tmp_path / "masks.npy") == expected).mean() > 0.995


@pytest.mark.parametrize(
    "layer",
    [
        nn.AvgPool2d(2),
        nn.AvgPool2d(3, 2, 1),
        nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False),
        nn.AvgPool2d((2, 3), (1, 2), divisor_override=5),
        nn.Upsample(scale_factor=2),
        nn.Upsample(size=(11, 19)),
        nn.Upsample(scale_factor=1.7, mode="nearest-exact"),
    ],
    ids=str,
)
def test_adjoints_as_matrices_are_those_of_autograd(layer):
    """What torch computes in its backward pass, by the decomposition that ONNX gets instead."""
    x = torch.randn(2, 3, 7, 10, dtype=torch.float64, requires_grad=True)
    y = layer(x)
    c = torch.randn_like(y)
    wanted = torch.autograd.grad(y, x, c)[0]
    ops = torch.ops.aten
    if isinstance(layer, nn.AvgPool2d):
        pair = [[value] * 2 if isinstance(value, int) else list(value) for value in (layer.kernel_size, layer.stride)]
        rest = ([layer.padding] * 2, layer.ceil_mode, layer.count_include_pad, layer.divisor_override)
        found = DECOMPOSITIONS[ops.avg_pool2d_backward.default](c, x.detach(), *pair, *rest)
    else:
        op = ops.upsample_nearest2d_backward if layer.mode == "nearest" else ops._upsample_nearest_exact2d_backward
        factors = (layer.scale_factor,) * 2 if layer.scale_factor else (None, None)
        found = DECOMPOSITIONS[op.default](c, list(y.shape[2:]), list(x.shape), *factors)
    torch.testing.assert_close(found, wanted)


class Looks(nn.Module):
    """A classifier that branches on values, which no graph can follow."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(in_channels, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pooled = F.adaptive_avg_pool2d(images, 1).flatten(1)
        return self.head(pooled * 2 if float(pooled.sum()) > 0 else pooled)


def test_what_cannot_be_exported_says_why(monkeypatch):
    with pytest.raises(InputError, match=r"GradCAM decodes only what passes a gate .* `tw-seg predict`"):
        Deployed(create_model("gradcam", **ENCODER, classes=3), 32, normalization=SYMMETRIC)
    with pytest.raises(InputError, match="the model takes 1 channels, the normalisation is of 3"):
        Deployed(create_model("unet", **ENCODER, classes=3, in_channels=1), 32, normalization=SYMMETRIC)
    with pytest.raises(InputError, match=r"probability in \[0, 1\], got 2"):
        Deployed(make_model("unet"), 32, normalization=SYMMETRIC, gate=2)
    looks = create_model("classifier", encoder_name=f"{__name__}:Looks", classes=3)
    with pytest.raises(InputError, match="torch.export cannot follow ImageClassifier .* nothing was written"):
        export_program(Deployed(looks, 32, normalization=SYMMETRIC))
    program = export_program(Deployed(make_model("heatmap"), 32, normalization=SYMMETRIC))
    monkeypatch.setattr(onnx_file, "DECOMPOSITIONS", {})
    with pytest.raises(InputError, match="torch.onnx cannot translate .*avg_pool2d_backward.*nothing was written"):
        convert_to_onnx(program, makes_masks=True, facts=FACTS)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(InputError, match=r"ONNX files need onnxscript: pip install 'tw-seg\[export\]'"):
        convert_to_onnx(program, makes_masks=True, facts=FACTS)

"""Heatmaps of all classes at inference, for each contender: evaluation mode, no graph beyond what it needs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from captum.attr import LRP, InputXGradient
from torch import Tensor, nn

from experiments.benchmarks.case import Case, classifier_state, random_data
from experiments.benchmarks.contenders import Build, Contender, autocast, compiled, place, plain_classifier
from experiments.benchmarks.published import published_model
from experiments.support_table import DecoderOutputs
from tw_seg import HeatmapDecoder
from tw_seg.errors import InputError
from tw_seg.export.onnx_file import INPUT, OUTPUTS, convert_to_onnx

PRESENT = 1.5
"""Classes beside the background that an image shows on average: Pascal VOC's number."""

EPSILON = 1e-6
"""zennit's smallest usual stabiliser: at 0 it would divide by 0."""


def _contender(model: nn.Module, heatmaps: Callable[[], Tensor], case: Case) -> Contender:
    """Time the heatmaps themselves."""

    def run() -> Tensor:
        with autocast(case):
            return heatmaps().detach()

    return Contender(model, run, run)


def decoder(case: Case) -> HeatmapDecoder:
    """Our decoder: LRP-epsilon with epsilon 0, read at the input."""
    net = HeatmapDecoder(plain_classifier(case), "epsilon", composite_kwargs={"epsilon": 0.0})
    return net.requires_grad_(False).eval()


def ours(case: Case, published: Path | None) -> Contender:
    """Every class of every image."""
    data, model = random_data(case), decoder(case)
    forward = compiled(model, case)

    @torch.no_grad()
    def heatmaps() -> Tensor:
        maps: Tensor = forward(data.images).heatmaps
        return maps

    return _contender(model, heatmaps, case)


def gated(case: Case, published: Path | None) -> Contender:
    """The background and as many other classes, chosen at random, as a gate lets pass on Pascal VOC on average."""
    data, model = random_data(case), decoder(case)
    samples, classes = present_pairs(case)

    @torch.no_grad()
    def heatmaps() -> Tensor:
        return model.decode_pairs(model.record(data.images), samples, classes).heatmaps

    return Contender(model, _contender(model, heatmaps, case).run)


def present_pairs(case: Case) -> tuple[Tensor, Tensor]:
    """(sample, class) pairs: the background of each image and 1, 2, 1, 2, ... further classes, two int64 (P,)."""
    generator = torch.Generator().manual_seed(0)
    samples, classes = [], []
    for image in range(case.batch):
        present = min(int(PRESENT * (image + 1)) - int(PRESENT * image), case.classes - 1)
        others = 1 + torch.randperm(case.classes - 1, generator=generator)[:present]
        samples += [image] * (1 + present)
        classes += [0, *others.tolist()]
    return torch.tensor(samples, device=case.device), torch.tensor(classes, device=case.device)


def classifier(case: Case, published: Path | None) -> Contender:
    """The classifier's own forward pass."""
    data, model = random_data(case), plain_classifier(case)
    forward = compiled(model, case)

    @torch.no_grad()
    def logits() -> Tensor:
        found: Tensor = forward(data.images)
        return found

    return Contender(model, _contender(model, logits, case).run)


def zennit(case: Case, published: Path | None) -> Contender:
    """zennit, one class after the other; its hooks stay registered in between."""
    # Here, so that without zennit (a development dependency) only this row is missing.
    from zennit.attribution import Gradient
    from zennit.composites import LayerMapComposite
    from zennit.layer import Sum
    from zennit.rules import Epsilon, Norm, Pass
    from zennit.torchvision import ResNetCanonizer, VGGCanonizer
    from zennit.types import Activation, AvgPool, Convolution, Linear

    data, model = random_data(case), plain_classifier(case).requires_grad_(False)
    canonizer = VGGCanonizer() if case.encoder.startswith("vgg") else ResNetCanonizer()
    rules = [
        (Activation, Pass()),
        (Sum, Norm()),
        (AvgPool, Norm()),
        (Convolution, Epsilon(EPSILON)),
        (Linear, Epsilon(EPSILON)),
    ]
    attribution = Gradient(model=model, composite=LayerMapComposite(rules, canonizers=[canonizer]))
    attribution.__enter__()  # for the life of the process

    def heatmaps() -> Tensor:
        maps = []
        for k in range(case.classes):
            seed = torch.zeros(case.classes, device=case.device)
            seed[k] = 1
            relevance = attribution(data.images.clone(), lambda output, seed=seed: output * seed)[1]
            maps.append(relevance.sum(1))
        return torch.stack(maps, 1)

    return _contender(model, heatmaps, case)


def captum_lrp(case: Case, published: Path | None) -> Contender:
    """LRP of captum with its default, the epsilon rule, one class after the other.

    In-place ReLUs it refuses. On a ResNet, which uses ReLU modules twice, it runs, but its relevance is not LRP's:
    see the cosine.
    """
    net = copy.deepcopy(plain_classifier(case))
    for module in net.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    return _captum(LRP(net), net, case)


def captum_input_x_gradient(case: Case, published: Path | None) -> Contender:
    """Input x gradient of captum, one class after the other."""
    net = plain_classifier(case).requires_grad_(False)
    return _captum(InputXGradient(net), net, case)


def _captum(method: Any, net: nn.Module, case: Case) -> Contender:
    data = random_data(case)

    def heatmaps() -> Tensor:
        images = data.images.clone().requires_grad_()
        return torch.stack([method.attribute(images, target=k).detach().sum(1) for k in range(case.classes)], 1)

    return _contender(net, heatmaps, case)


def exported_program(case: Case, published: Path | None) -> Contender:
    """What ``torch.export`` recorded of ours."""
    data, module = random_data(case), DecoderOutputs(decoder(case))
    recorded = export(module, data.images).module()

    @torch.no_grad()
    def heatmaps() -> Tensor:
        maps: Tensor = recorded(data.images)[2]
        return maps

    return _contender(module, heatmaps, case)


def onnx_file(case: Case, published: Path | None) -> Contender:
    """The ONNX file of ours in onnxruntime, with as many threads; on a CPU."""
    if case.device != "cpu":
        raise InputError("the ONNX file is measured on a CPU only")
    data, module = random_data(case), DecoderOutputs(decoder(case))
    converted = convert_to_onnx(export(module, data.images), makes_masks=True, facts={})
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(
        converted.model_proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    images = {INPUT: data.images.numpy()}
    return _contender(module, lambda: torch.from_numpy(session.run(OUTPUTS[2:], images)[0]), case)


def export(module: nn.Module, images: Tensor) -> torch.export.ExportedProgram:
    """A module recorded for images of this number and size."""
    with torch.no_grad():
        return torch.export.export(module.eval(), (images,), strict=False)


def published_inference(case: Case, published: Path | None) -> Contender:
    """The published code as its test loop runs it."""
    data = random_data(case)
    model: Any = place(published_model(published, case, classifier_state(case)), case)

    @torch.no_grad()
    def heatmaps() -> Tensor:
        maps: Tensor = model(data.images)[1]
        return maps

    return _contender(model, heatmaps, case)


INFERENCE: Mapping[str, Build] = {
    "ours": ours,
    "ours, gated": gated,
    "zennit, per class": zennit,
    "captum LRP, per class": captum_lrp,
    "captum input x gradient, per class": captum_input_x_gradient,
    "ours, exported (.pt2)": exported_program,
    "ours, ONNX": onnx_file,
    "published": published_inference,
    "classifier": classifier,
}
"""Contenders of inference by name; each is built in a process of its own."""

"""HeatmapDecoder: an image classifier unrolled into a differentiable heatmap decoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tw_seg.errors import InputError
from tw_seg.lrp.composite import create_composite
from tw_seg.lrp.graph import Graph, follow_modes, trace
from tw_seg.lrp.propagate import Pass, accumulate, before_norm, input_relevance, step
from tw_seg.lrp.seeds import class_indices, logit_seed
from tw_seg.lrp.tape import Tape, attribute

_WEIGHTED = ("conv", "linear", "batch_norm")


class Decoded(NamedTuple):
    """What a decode returns.

    Attributes:
        logits: Image-level class scores of all images, shape (N, K).
        heatmaps: Relevance at the first read-out, summed over its channels, signed, shape (S, K', h, w).
        readouts: The heatmaps of every read-out, in the order asked for; ``readouts[0] is heatmaps``.
    """

    logits: Tensor
    heatmaps: Tensor
    readouts: tuple[Tensor, ...]


class HeatmapDecoder(nn.Module):
    """Decodes a classifier's logits into one heatmap per class by layer-wise relevance propagation.

    The backward pass of LRP is written as forward operations on the classifier's own weights, so heatmaps can
    be trained with any loss, exported and compiled. With ``composite="epsilon"``, ``epsilon=0`` and ReLU
    activations the heatmap at the input is exactly input x gradient, and its parameter gradients are exactly
    those of double backpropagation.

    Args:
        classifier: Any module that maps (N, C, H, W) to (N, K) and that torch.fx can trace. It is used as it
            is: its training flags, buffers and random state change as in its own forward, and not more.
        composite: Name of a preset in ``tw_seg.lrp.composite.COMPOSITES``.
        tie_weights: True: the decoder reads the classifier's parameters. False: it has weights of its own,
            initialised from them, in ``own_weights``.
        composite_kwargs: Numbers for the preset, for example ``{"epsilon": 1e-6}``.
        read_out: Where heatmaps are read: ``"input"``, the path of a module (its last call's output), the
            name of a call, or several of them.
        chunk_size: Classes decoded at once; ``None`` for all. Changes memory, not results.
        recompute: Recompute each chunk in the backward pass instead of keeping its activations.

    Shapes:
        images (N, C, H, W) -> logits (N, K), heatmaps (S, K', h, w) in units of the logit: a heatmap sums to
        its logit less what biases (and the stabiliser) absorb.

    Raises:
        TraceError: If the classifier cannot be traced.
        UnsupportedOpError: If it holds calls without a relevance rule, all of them listed.
        InputError: For an unknown composite or read-out.

    Reference:
        Bach et al. 2015 (LRP); Yu et al. 2024, arXiv 2407.03009 (unrolled LRP).

    Example:
        >>> import torch, torchvision
        >>> decoder = HeatmapDecoder(torchvision.models.resnet18(num_classes=5)).eval()
        >>> decoder(torch.rand(2, 3, 64, 64), classes=[0, 3]).heatmaps.shape
        torch.Size([2, 2, 64, 64])
    """

    def __init__(
        self,
        classifier: nn.Module,
        composite: str = "epsilon",
        *,
        tie_weights: bool = True,
        composite_kwargs: dict[str, Any] | None = None,
        read_out: str | Sequence[str] = "input",
        chunk_size: int | None = None,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        if chunk_size is not None and chunk_size < 1:
            raise InputError(f"chunk_size must be at least 1 class or None for all, got {chunk_size}")
        self.classifier = classifier
        self.composite = create_composite(composite, composite_kwargs)
        self.tie_weights = tie_weights
        self.chunk_size = chunk_size
        self.recompute = recompute
        # A classifier may take another path in training: one trace for each mode.
        evaluation, training = follow_modes(trace(classifier, False), trace(classifier, True))
        self._graphs = {False: evaluation, True: training}
        self._calls = {mode: {c.name: c for c in graph.calls} for mode, graph in self._graphs.items()}
        names = (read_out,) if isinstance(read_out, str) else tuple(read_out)
        self._readouts = {mode: _resolve(graph, names) for mode, graph in self._graphs.items()}
        self._wanted = {mode: graph.downstream(self._readouts[mode]) for mode, graph in self._graphs.items()}
        self.read_out = names
        self.own_weights = nn.ParameterDict() if tie_weights else self._copy_weights()

    def forward(
        self,
        images: Tensor,
        classes: Sequence[int] | Tensor | None = None,
        samples: Tensor | None = None,
    ) -> Decoded:
        """Classify all images and decode some of them.

        Args:
            images: Shape (N, C, H, W), floating point.
            classes: The K' classes to decode, by index; ``None`` for all.
            samples: Rows of ``images`` to decode, int64 (S,); ``None`` for all. May be empty.

        Returns:
            Logits (N, K) and heatmaps (S, K', h, w), raw relevance.

        Raises:
            InputError: For images, classes or samples of the wrong type or shape.
        """
        _check(images, samples)
        mode = self.classifier.training
        tape = Tape(self.classifier, self._graphs[mode], images)
        logits = tape.logits
        if logits.ndim != 2:
            raise InputError(f"the classifier must return logits of shape (N, K), it returned {tuple(logits.shape)}")
        chosen = class_indices(classes, logits.shape[1])
        run = self.prepare(tape, samples)
        if len(chosen) == 0 or (samples is not None and samples.shape[0] == 0):
            readouts = tuple(_empty(run.value(name), len(chosen)) for name in self._readouts[mode])
            return Decoded(logits, readouts[0], readouts)
        size = self.chunk_size or len(chosen)
        parts = [self._chunk(run, mode, chosen[start : start + size]) for start in range(0, len(chosen), size)]
        readouts = tuple(torch.cat(maps, 1) if len(parts) > 1 else maps[0] for maps in zip(*parts, strict=True))
        return Decoded(logits, readouts[0], readouts)

    def reset_own_weights(self) -> None:
        """Set an untied decoder's weights to the classifier's present ones; a tied decoder has none."""
        with torch.no_grad():
            for name, weight in self._weights().items():
                weight.copy_(attribute(self.classifier, name))

    def coefficients(
        self, images: Tensor, classes: Sequence[int] | Tensor | None = None
    ) -> tuple[Tape, dict[str, Tensor]]:
        """The tape and the coefficient (N, K', ...) at every call's output: what ``checks`` looks at."""
        _check(images, None)
        mode = self.classifier.training
        tape = Tape(self.classifier, self._graphs[mode], images)
        run = self.prepare(tape)
        kept: dict[str, Tensor] = {}
        self._propagate(run, mode, logit_seed(tape.logits, class_indices(classes, tape.logits.shape[1])), kept)
        return tape, kept

    def prepare(self, tape: Tape, samples: Tensor | None = None) -> Pass:
        """What a backward pass over a tape works with."""
        mode = self.classifier.training
        return Pass(tape, self.composite, samples, self._weights(), self._wanted[mode])

    def graph(self) -> Graph:
        """The calls of the classifier in its present mode."""
        return self._graphs[self.classifier.training]

    def _weights(self) -> Mapping[str, Tensor]:
        return {name.replace("/", "."): weight for name, weight in self.own_weights.items()}

    def _chunk(self, run: Pass, mode: bool, classes: tuple[int, ...] | Tensor) -> tuple[Tensor, ...]:
        seed = logit_seed(run.value(self._graphs[mode].output), classes)
        if self.recompute and torch.is_grad_enabled():
            result: tuple[Tensor, ...] = checkpoint(
                self._propagate, run, mode, seed, use_reentrant=False, preserve_rng_state=False
            )
            return result
        return self._propagate(run, mode, seed)

    def _propagate(
        self, run: Pass, mode: bool, seed: Tensor, kept: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, ...]:
        graph, calls, readouts = self._graphs[mode], self._calls[mode], self._readouts[mode]
        coefficients = {graph.output: seed}
        heatmaps: dict[str, Tensor] = {}
        for call in reversed(graph.calls):
            c = coefficients.pop(call.name, None)
            if c is None:
                continue
            if kept is not None:
                kept[call.name] = c
            if call.name in readouts:
                heatmaps[call.name] = _heatmap(run.value(call.name).unsqueeze(1) * before_norm(run, call, c, calls))
            if not any(name in run.wanted for name in call.inputs):
                continue
            at_input = input_relevance(run, call, c, calls)
            if at_input is not None:
                accumulate(heatmaps, graph.input, _heatmap(at_input))
                continue
            for name, part in step(run, call, c, calls).items():
                if name in run.wanted:
                    accumulate(coefficients, name, part)
        c = coefficients.pop(graph.input, None)
        if c is not None:
            if kept is not None:
                kept[graph.input] = c
            accumulate(heatmaps, graph.input, _heatmap(run.value(graph.input).unsqueeze(1) * c))
        return tuple(heatmaps[name] for name in readouts)

    def _copy_weights(self) -> nn.ParameterDict:
        """Own copies of the weights that the decode reads. No coefficient needs a bias: there is none."""
        own: dict[str, nn.Parameter] = {}
        shared: dict[Tensor, nn.Parameter] = {}
        for mode, graph in self._graphs.items():
            for call in graph.calls:
                if call.kind not in _WEIGHTED or not any(name in self._wanted[mode] for name in call.inputs):
                    continue
                if call.weight is None:
                    if call.op == "call_function" and call.options.get("weight") is not None:
                        raise InputError(
                            "tie_weights=False needs weights that are parameters; that of "
                            f"{call.name!r} in {call.path or '(root)'} is computed in its forward. "
                            "Use tie_weights=True, or torch.nn.utils.parametrize"
                        )
                    continue
                weight = attribute(self.classifier, call.weight)
                if weight.requires_grad or isinstance(weight, nn.Parameter):
                    copy = shared.setdefault(weight, nn.Parameter(weight.detach().clone()))
                    own.setdefault(call.weight.replace(".", "/"), copy)
        return nn.ParameterDict(own)


def _resolve(graph: Graph, names: tuple[str, ...]) -> tuple[str, ...]:
    try:
        found = tuple(graph.readout(name) for name in names)
    except KeyError as error:
        paths = sorted({c.path.split(".")[0] for c in graph.calls if c.kind != "constant" and c.path})
        raise InputError(
            f"read_out {error.args[0]!r} is neither 'input', a module nor a call of the classifier; "
            f"its top-level modules are {', '.join(paths)}"
        ) from None
    if not found or len(set(found)) != len(found):
        raise InputError(f"read_out must name at least one place and each only once, got {names}")
    return found


def _heatmap(relevance: Tensor) -> Tensor:
    """Sum over channels, in float32 for half precision; a pooled activation (N, C) is a map of one cell."""
    if relevance.ndim == 3:
        relevance = relevance[..., None, None]
    if relevance.ndim != 5:
        shape = (relevance.shape[0], *relevance.shape[2:])
        raise InputError(f"a heatmap needs an activation (N, C, H, W) or (N, C), not {shape}: read elsewhere")
    half = relevance.dtype in (torch.float16, torch.bfloat16)
    return relevance.sum(2, dtype=torch.float32 if half else None)


def _empty(activation: Tensor, num_classes: int) -> Tensor:
    return _heatmap(activation.new_zeros((activation.shape[0], num_classes, *activation.shape[1:])))


def _check(images: Tensor, samples: Tensor | None) -> None:
    if not isinstance(images, Tensor) or not images.is_floating_point() or images.ndim != 4:
        raise InputError(
            f"images must be a floating-point tensor (N, C, H, W), got {_describe(images)}; convert with .float() / 255"
        )
    if samples is None:
        return
    if not isinstance(samples, Tensor) or samples.ndim != 1 or samples.dtype != torch.int64:
        raise InputError(f"samples must be an int64 tensor (S,), got {_describe(samples)}")


def _describe(value: object) -> str:
    return f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__

"""HeatmapDecoder: an image classifier unrolled into a differentiable heatmap decoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tw_seg.errors import InputError
from tw_seg.lrp.composite import create_composite
from tw_seg.lrp.graph import Call, Graph, trace
from tw_seg.lrp.propagate import Pass, linear_map, step
from tw_seg.lrp.seeds import class_indices, logit_seed
from tw_seg.lrp.tape import Tape

_TIED_KINDS = ("conv", "linear", "batch_norm")


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

    The backward pass of LRP is written as forward operations on the classifier's own weights, so heatmaps can be
    trained with any loss, exported and compiled. With ``composite="epsilon"``, ``epsilon=0`` and ReLU activations
    the heatmap at the input is exactly input x gradient, and its parameter gradients are exactly those of double
    backpropagation.

    Args:
        classifier: Any module that maps (N, C, H, W) to (N, K) and that torch.fx can trace. It is used as it is:
            its training flags, buffers and random state change as in its own forward, and not more.
        composite: Name of a preset in ``tw_seg.lrp.composite.COMPOSITES``.
        tie_weights: True: the decoder reads the classifier's parameters. False: it has weights of its own,
            initialised from them, in ``own_weights``.
        composite_kwargs: Numbers for the preset, for example ``{"epsilon": 1e-6}``.
        read_out: Where heatmaps are read: ``"input"``, the path of a module (its last call's output), or several.
        chunk_size: Classes decoded at once; ``None`` for all. Changes memory, not results.
        recompute: Recompute each chunk in the backward pass instead of keeping its activations.

    Shapes:
        images (N, C, H, W) -> logits (N, K), heatmaps (S, K', h, w) in units of the logit: a heatmap sums to its
        logit less what biases (and the stabiliser) absorb.

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
        # Functional dropout burns the training flag into the trace: one trace for each mode.
        self._graphs = {mode: trace(classifier, mode) for mode in (False, True)}
        self._calls = {mode: {c.name: c for c in graph.calls} for mode, graph in self._graphs.items()}
        names = (read_out,) if isinstance(read_out, str) else tuple(read_out)
        self._readouts = {mode: _resolve(graph, names) for mode, graph in self._graphs.items()}
        self._wanted = {mode: graph.downstream(self._readouts[mode]) for mode, graph in self._graphs.items()}
        self.read_out = names
        self.own_weights = nn.ParameterDict() if tie_weights else _copy_weights(classifier, self._graphs[False])

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
        run = Pass(tape, self.composite, samples, self._weights(), self._wanted[mode])
        if len(chosen) == 0 or (samples is not None and samples.shape[0] == 0):
            readouts = tuple(_empty(run.value(name), len(chosen)) for name in self._readouts[mode])
            return Decoded(logits, readouts[0], readouts)
        size = self.chunk_size or len(chosen)
        parts = [self._chunk(run, mode, chosen[start : start + size]) for start in range(0, len(chosen), size)]
        readouts = tuple(torch.cat(maps, 1) if len(parts) > 1 else maps[0] for maps in zip(*parts, strict=True))
        return Decoded(logits, readouts[0], readouts)

    def coefficients(self, images: Tensor, classes: Sequence[int] | Tensor | None = None) -> tuple[Tape, dict[str, Tensor]]:
        """The tape and the coefficient (N, K', ...) at every call's output: what ``checks`` looks at."""
        _check(images, None)
        mode = self.classifier.training
        tape = Tape(self.classifier, self._graphs[mode], images)
        run = Pass(tape, self.composite, None, self._weights(), self._wanted[mode])
        kept: dict[str, Tensor] = {}
        self._propagate(run, mode, logit_seed(tape.logits, class_indices(classes, tape.logits.shape[1])), kept)
        return tape, kept

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
                heatmaps[call.name] = _heatmap(run.value(call.name).unsqueeze(1) * c)
            if not any(name in run.wanted for name in call.inputs):
                continue
            relevance = self._input_relevance(run, call, c, calls)
            if relevance is not None:
                heatmaps[graph.input] = heatmaps[graph.input] + relevance if graph.input in heatmaps else relevance
                continue
            for name, part in step(run, call, c, calls).items():
                if name in run.wanted:
                    coefficients[name] = coefficients[name] + part if name in coefficients else part
        c = coefficients.pop(graph.input, None)
        if c is not None:
            if kept is not None:
                kept[graph.input] = c
            part = _heatmap(run.value(graph.input).unsqueeze(1) * c)
            heatmaps[graph.input] = heatmaps[graph.input] + part if graph.input in heatmaps else part
        return tuple(heatmaps[name] for name in readouts)

    def _input_relevance(self, run: Pass, call: Call, c: Tensor, calls: Mapping[str, Call]) -> Tensor | None:
        """Heatmap of a linear call that reads the images, where the composite has a rule of its own for it."""
        rule = self.composite.input
        if rule is None or call.inputs != (self._graphs[False].input,) or call.kind not in ("conv", "linear"):
            return None
        assert not hasattr(rule, "coefficient")
        images = run.value(call.inputs[0])
        return _heatmap(rule.relevance(c, images, run.value(call.norm or call.name), linear_map(run, call, calls)))


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


def _copy_weights(classifier: nn.Module, graph: Graph) -> nn.ParameterDict:
    """Own copies of the weights that the backward pass reads. Biases are not among them: no coefficient needs one."""
    parameters = dict(classifier.named_parameters())
    names = [f"{c.path}.weight" for c in graph.calls if c.kind in _TIED_KINDS and c.op == "call_module"]
    return nn.ParameterDict(
        {n.replace(".", "/"): nn.Parameter(parameters[n].detach().clone()) for n in dict.fromkeys(names) if n in parameters}
    )


def _heatmap(relevance: Tensor) -> Tensor:
    """Sum over channels; half precision is summed in float32."""
    if relevance.ndim < 4:
        raise InputError(f"a heatmap needs an activation (N, C, H, W); this read-out has shape {tuple(relevance.shape)}")
    half = relevance.dtype in (torch.float16, torch.bfloat16)
    return relevance.sum(2, dtype=torch.float32 if half else None)


def _empty(activation: Tensor, num_classes: int) -> Tensor:
    return activation.new_zeros((activation.shape[0], num_classes, *activation.shape[2:]))


def _check(images: Tensor, samples: Tensor | None) -> None:
    if not isinstance(images, Tensor) or not images.is_floating_point() or images.ndim != 4:
        found = f"{images.dtype} of shape {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise InputError(f"images must be a floating-point tensor (N, C, H, W), got {found}; convert with .float() / 255")
    if samples is not None and (samples.ndim != 1 or samples.dtype != torch.int64):
        raise InputError(f"samples must be an int64 tensor (S,), got {samples.dtype} of shape {tuple(samples.shape)}")

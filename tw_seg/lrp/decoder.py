"""HeatmapDecoder: an image classifier unrolled into a differentiable heatmap decoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tw_seg.errors import InputError
from tw_seg.lrp.adjoints import accumulate, times
from tw_seg.lrp.backward import Pass, parameter_of
from tw_seg.lrp.build import OwnRules, follow_modes, trace
from tw_seg.lrp.choices import check_samples, check_signals, class_indices
from tw_seg.lrp.composite import Assign, create_composite
from tw_seg.lrp.graph import Call, Graph, Ref, refs
from tw_seg.lrp.ops import OPS
from tw_seg.lrp.ops.linear import before_norm, input_relevance
from tw_seg.lrp.readout import heatmap
from tw_seg.lrp.seeds import HEAD_RULES, create_seed
from tw_seg.lrp.tape import Tape, attribute
from tw_seg.lrp.tracer import default_image_shape

_WEIGHTED = (
    "conv", "conv_transpose", "linear", "batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm", "prelu",
)  # fmt: skip
_FACTORS: dict[str, tuple[str, ...]] = {
    "mul": ("input", "other"),
    "div": ("other",),
    "matmul": ("input", "other"),
    "einsum": (),
    "addcmul": ("tensor1", "tensor2"),
}
"""Kind -> the arguments that a coefficient is multiplied with; none: all of them."""


@dataclass(frozen=True)
class Plan:
    """How to decode in one mode.

    Attributes:
        graph: The calls.
        calls: The same by name.
        readouts: Names of the calls that are read.
        wanted: The calls from which a read-out can be reached: those whose coefficient is needed.
    """

    graph: Graph
    calls: Mapping[str, Call]
    readouts: tuple[str, ...]
    wanted: frozenset[str]


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
            name of a call, a fraction of the depth (0.0 the input, 1.0 the last convolution), or several of them.
        seed: Name of a seed in ``tw_seg.lrp.seeds.SEEDS``.
        chunk_size: Classes decoded at once; ``None`` for all. Changes memory, not results.
        recompute: Recompute each chunk in the backward pass instead of keeping its activations.
        image_size: (H, W) at which a forward that branches on sizes is first traced; ``None``: the classifier's
            usual one. At another size it is traced again.
        own_rules: Rules of your own for module classes, functions or methods, see ``docs/own_rule.md``.

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
        read_out: str | float | Sequence[str | float] = "input",
        seed: str = "logit",
        chunk_size: int | None = None,
        recompute: bool = False,
        image_size: tuple[int, int] | None = None,
        own_rules: OwnRules | None = None,
    ) -> None:
        super().__init__()
        if chunk_size is not None and chunk_size < 1:
            raise InputError(f"chunk_size must be at least 1 class or None for all, got {chunk_size}")
        self.classifier = classifier
        self.seed = create_seed(seed)
        self.composite = create_composite(composite, composite_kwargs)
        if seed in HEAD_RULES:
            head = Assign(HEAD_RULES[seed], ("convolution", "dense"), depth=(1.0, 1.0))
            self.composite = replace(self.composite, overrides=(head, *self.composite.overrides))
        self.tie_weights = tie_weights
        self.chunk_size = chunk_size
        self.recompute = recompute
        self.own_rules = own_rules
        self.read_out: tuple[str | float, ...] = (
            (read_out,) if isinstance(read_out, (str, int, float)) else tuple(read_out)
        )
        shape = default_image_shape(classifier)
        if image_size is not None:
            shape = (shape[0], *image_size)
        # One plan for each mode, and for each image shape where the classifier's forward branches on sizes.
        self._plans: dict[tuple[bool, tuple[int, ...] | None], Plan] = {}
        plans = self._add_plans(shape)
        if missing := self.composite.unmatched([c for plan in plans for c in plan.graph.calls]):
            raise InputError(f"composite {composite!r}: these overrides match no call of the classifier: {missing}")
        self._image_axes = _image_axes(plans[0].graph)
        self.own_weights = nn.ParameterDict() if tie_weights else self._copy_weights(plans)

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
        check_signals(images, self._image_axes)
        check_samples(samples)
        plan = self._plan(images)
        tape = Tape(self.classifier, plan.graph, images)
        logits = tape.logits
        if logits.ndim != 2:
            raise InputError(f"the classifier must return logits of shape (N, K), it returned {tuple(logits.shape)}")
        chosen = class_indices(classes, logits.shape[1])
        run = self.prepare(tape, samples)
        if len(chosen) == 0 or (images if samples is None else samples).shape[0] == 0:
            readouts = tuple(self._empty(run, name, len(chosen)) for name in plan.readouts)
            return Decoded(logits, readouts[0], readouts)
        size = self.chunk_size or len(chosen)
        parts = [self._chunk(run, plan, chosen[start : start + size]) for start in range(0, len(chosen), size)]
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
        """The tape and the coefficient (K'*N, ...) at every call's output: what ``checks`` looks at."""
        check_signals(images, self._image_axes)
        plan = self._plan(images)
        tape = Tape(self.classifier, plan.graph, images)
        run = self.prepare(tape)
        kept: dict[str, Any] = {}
        self._propagate(run, plan, self.seed(tape.logits, class_indices(classes, tape.logits.shape[1])), kept)
        return tape, kept

    def prepare(self, tape: Tape, samples: Tensor | None = None) -> Pass:
        """What a backward pass over a tape works with."""
        plan = self._plan(tape.images)
        return Pass(tape, plan.calls, self.composite, samples, self._weights(), plan.wanted, plan.readouts)

    def graph(self, images: Tensor) -> Graph:
        """The calls of the classifier in its present mode on such images."""
        return self._plan(images).graph

    def _add_plans(self, shape: tuple[int, ...]) -> tuple[Plan, Plan]:
        """Trace both modes: a classifier may take another path in training."""
        assert len(shape) == 3
        graphs = [trace(self.classifier, mode, image_shape=shape, own_rules=self.own_rules) for mode in (False, True)]
        plans = []
        for mode, graph in enumerate(follow_modes(*graphs)):
            readouts = _resolve(graph, self.read_out)
            calls = {call.name: call for call in graph.calls}
            plan = Plan(graph, calls, readouts, graph.downstream(readouts))
            self._plans[bool(mode), shape if graph.specialised else None] = plan
            plans.append(plan)
        return plans[0], plans[1]

    def _plan(self, images: Tensor) -> Plan:
        mode, shape = self.classifier.training, tuple(images.shape[1:])
        for key in ((mode, None), (mode, shape)):
            if key in self._plans:
                return self._plans[key]
        if torch.compiler.is_compiling():
            raise InputError(
                f"the classifier's forward branches on sizes and was not traced for images {shape} yet: run the "
                "decoder once on such images, or give image_size, before you compile or export it"
            )
        plans = self._add_plans(shape)
        if not self.tie_weights and (missing := set(self._read_weights(plans)) - self._weights().keys()):
            for plan_mode in (False, True):
                del self._plans[plan_mode, shape]
            raise InputError(
                f"for images {shape} the classifier's forward uses {', '.join(sorted(missing))}, of which the untied "
                "decoder has no copies: it used none of them at the image_size at which the decoder was made"
            )
        return plans[int(mode)]

    def _weights(self) -> Mapping[str, Tensor]:
        return {name.replace("/", "."): weight for name, weight in self.own_weights.items()}

    def _chunk(self, run: Pass, plan: Plan, classes: tuple[int, ...] | Tensor) -> tuple[Tensor, ...]:
        seed = self.seed(run.value(plan.graph.output), classes)
        if self.recompute and torch.is_grad_enabled():
            result: tuple[Tensor, ...] = checkpoint(
                self._recomputed, run, plan, seed, use_reentrant=False, preserve_rng_state=False
            )
            return result
        return self._propagate(run, plan, seed)

    def _recomputed(self, run: Pass, plan: Plan, seed: Tensor) -> tuple[Tensor, ...]:
        # Rows that one run has chosen must not be found by the next: both must compute the same.
        return self._propagate(replace(run, chosen={}), plan, seed)

    def _propagate(self, run: Pass, plan: Plan, seed: Tensor, kept: dict[str, Any] | None = None) -> tuple[Tensor, ...]:
        graph, readouts = plan.graph, plan.readouts
        coefficients: dict[str, Any] = {graph.output: seed}
        heatmaps: dict[str, Tensor] = {}
        for call in reversed(graph.calls):
            c = coefficients.pop(call.name, None)
            if c is None:
                continue
            if kept is not None:
                kept[call.name] = c
            if call.name in readouts:
                heatmaps[call.name] = self._heatmap(run, call.name, before_norm(run, call, c))
            if not any(name in run.wanted for name in call.inputs):
                continue
            at_input = input_relevance(run, call, c)
            if at_input is not None:
                accumulate(heatmaps, graph.input, heatmap(run, graph.input, at_input))
                continue
            for name, part in OPS[call.kind].adjoint(run, call, c).items():
                if name in run.wanted:
                    accumulate(coefficients, name, part)
        c = coefficients.pop(graph.input, None)
        if c is not None:
            if kept is not None:
                kept[graph.input] = c
            accumulate(heatmaps, graph.input, self._heatmap(run, graph.input, c))
        return tuple(heatmaps[name] for name in readouts)

    def _heatmap(self, run: Pass, name: str, c: Tensor) -> Tensor:
        if self.composite.heatmap == "coefficient":
            return heatmap(run, name, c)
        return heatmap(run, name, times(c, run.value(name), run.axis(name)))

    def _empty(self, run: Pass, name: str, classes: int) -> Tensor:
        """Heatmaps of no samples or of no classes."""
        one = heatmap(run, name, torch.zeros_like(run.value(name)))
        return one.new_zeros((one.shape[0], classes, *one.shape[2:]))

    def _copy_weights(self, plans: Sequence[Plan]) -> nn.ParameterDict:
        """Own copies of the weights that the decode reads. No coefficient needs a bias: there is none."""
        own: dict[str, nn.Parameter] = {}
        shared: dict[Tensor, nn.Parameter] = {}
        for path in self._read_weights(plans):
            weight = attribute(self.classifier, path)
            copy = shared.setdefault(weight, nn.Parameter(weight.detach().clone()))
            own.setdefault(path.replace(".", "/"), copy)
        return nn.ParameterDict(own)

    def _read_weights(self, plans: Sequence[Plan]) -> list[str]:
        """Dotted names of the parameters that a decode by these plans multiplies with."""
        paths = [
            path
            for plan in plans
            for call in plan.graph.calls
            if any(name in plan.wanted for name in call.inputs)
            for path in _weights_of(call, plan.calls)
        ]
        weights = {path: attribute(self.classifier, path) for path in paths}
        return [path for path, w in weights.items() if w.requires_grad or isinstance(w, nn.Parameter)]


def _weights_of(call: Call, calls: Mapping[str, Call]) -> list[str]:
    """Dotted names of the parameters that a call's adjoint multiplies with."""
    if call.kind in _FACTORS:
        names = _FACTORS[call.kind]
        factors = [call.options.get(name) for name in names] if names else map(Ref, refs((call.args, call.kwargs)))
        return [path for factor in factors if (path := parameter_of(calls, factor)) is not None]
    if call.kind not in _WEIGHTED:
        return []
    if call.weight is None and call.op == "call_function" and call.options.get("weight") is not None:
        raise InputError(
            f"tie_weights=False needs weights that are parameters; that of {call.name!r} in {call.path or '(root)'} is "
            "computed in its forward. Use tie_weights=True, or torch.nn.utils.parametrize"
        )
    return [] if call.weight is None else [call.weight]


def _resolve(graph: Graph, places: tuple[str | float, ...]) -> tuple[str, ...]:
    try:
        found = tuple(graph.readout(place) for place in places)
    except KeyError as error:
        paths = sorted({c.path.split(".")[0] for c in graph.calls if c.kind != "constant" and c.path})
        raise InputError(
            f"read_out {error.args[0]!r} is neither 'input', a module, a call nor a fraction from 0 to 1 of the "
            f"classifier; its top-level modules are {', '.join(paths)}"
        ) from None
    if not found or len(set(found)) != len(found):
        raise InputError(f"read_out must name at least one place and each only once, got {places}")
    return found


def _image_axes(graph: Graph) -> int | None:
    """Number of axes of the images, where a convolution layer reads them; ``None``: it is not known."""
    convolutions = [c for c in graph.calls if c.kind in ("conv", "conv_transpose") and c.op == "call_module"]
    sizes = [c.options["kernel_size"] for c in convolutions if graph.input in c.inputs]
    return 2 + len(sizes[0]) if sizes else None

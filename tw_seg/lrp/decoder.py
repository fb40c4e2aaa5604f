"""HeatmapDecoder: an image classifier unrolled into a differentiable heatmap decoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tw_seg.arguments import check_counts, check_pairs, check_samples, check_signals, class_indices, class_tensor
from tw_seg.errors import InputError
from tw_seg.lrp.composite import Assign, create_composite
from tw_seg.lrp.core.backward import Backward
from tw_seg.lrp.core.graph import Graph
from tw_seg.lrp.core.tape import Tape, attribute
from tw_seg.lrp.decode.options import check_mappings, check_names, check_size, list_places
from tw_seg.lrp.decode.pieces import decode_as_scheduled
from tw_seg.lrp.decode.plan import Mode, Plan, Plans, check_logits, count_image_axes, order_towards_images
from tw_seg.lrp.decode.propagate import propagate
from tw_seg.lrp.decode.readout import Decoded, Projected, find_channel_axis
from tw_seg.lrp.decode.schedule import GraphMemory, Schedule, create_schedule
from tw_seg.lrp.decode.weights import check_copies, copy_weights, name_weights
from tw_seg.lrp.seeds import HEAD_RULES, create_seed
from tw_seg.lrp.trace.accept import check_classifier, warn_of_backward_hooks, warn_of_probabilities
from tw_seg.lrp.trace.build import CustomRules
from tw_seg.lrp.trace.examples import default_image_shape
from tw_seg.lrp.trace.trial import Trial


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
            initialised from them, in ``decoder_weights``.
        composite_kwargs: Numbers for the preset, for example ``{"epsilon": 1e-6}``.
        read_out: Where heatmaps are read: ``"input"``, the path of a module (its last call's output), the
            name of a call, a fraction of the depth (0.0 the input, 1.0 the last convolution), or several of them.
        seed: Name of a seed in ``tw_seg.lrp.seeds.SEEDS``.
        schedule: What a decode may take in memory and time, see `tw_seg.lrp.Schedule`: as such, or by its
            names and numbers, for example ``{"memory_budget": 0.5}``.
        image_size: (H, W) at which a forward that branches on sizes is first traced; ``None``: the classifier's
            usual one. At another size it is traced again.
        custom_rules: Rules for module classes, functions or methods, see ``docs/custom_rule.md``; they come first.
        projections: Number M of weighted sums over the channels of relevance that `project` reads beside each
            heatmap, which is their plain sum. Their weights, ``decoder.projections``, are random at first, trained, and
            the same for all classes: an input for a network that looks at the parts which a heatmap adds up.

    Attributes:
        towards_images: Indices of the read-outs in the order in which relevance reaches them.

    Shapes:
        images (N, C, H, W) -> logits (N, K), heatmaps (S, K', h, w) in units of the logit: a heatmap sums to
        its logit less what biases (and the stabiliser) absorb.

    Raises:
        TraceError: If the classifier cannot be traced.
        UnsupportedOpError: If it holds calls without a relevance rule, all of them listed.
        InputError: For an argument of another type, or an unknown composite, seed or read-out.

    Reference:
        Bach et al. 2015 (LRP); Yu et al. 2024, arXiv 2407.03009 (unrolled LRP).

    Examples:
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
        schedule: Schedule | Mapping[str, Any] | None = None,
        image_size: Sequence[int] | None = None,
        custom_rules: CustomRules | None = None,
        projections: int = 0,
    ) -> None:
        super().__init__()
        check_counts(0, projections=projections)
        check_names(composite=composite, seed=seed)
        check_mappings(composite_kwargs=composite_kwargs, custom_rules=custom_rules)
        if not isinstance(tie_weights, bool):  # a string would count as true
            raise InputError(f"tie_weights must be true or false, got {tie_weights!r}")
        check_classifier(classifier, custom_rules or ())
        if decoders := [path for path, m in classifier.named_modules() if isinstance(m, HeatmapDecoder)]:
            place = ".".join(["classifier", *filter(None, decoders[:1])])
            raise InputError(
                f"this {type(classifier).__name__} decodes already: pass the classifier that it decodes, "
                f"{place}.classifier"
            )
        self.classifier = classifier
        self.seed = create_seed(seed)
        rules = create_composite(composite, composite_kwargs)
        if seed in HEAD_RULES:
            head = Assign(HEAD_RULES[seed], ("convolution", "dense"), depth=(1.0, 1.0))
            rules = replace(rules, overrides=(head, *rules.overrides))
        self.tie_weights = tie_weights
        self.schedule = create_schedule(schedule)
        self._memory = GraphMemory()
        places = list_places(read_out)
        shape = default_image_shape(classifier)
        if image_size is not None:
            shape = (shape[0], *check_size(image_size))
        self._plans = Plans(rules, places, custom_rules)
        plans = self._plans.make(classifier, shape, before_images=True)
        self._plans.add(shape, dict(zip((False, True), plans, strict=True)))
        if missing := rules.unmatched([c for plan in plans for c in plan.graph.calls]):
            raise InputError(f"composite {composite!r}: these overrides match no call of the classifier: {missing}")
        warn_of_probabilities(plans[0].graph, logarithms=self._plans.are_log_probabilities)
        warn_of_backward_hooks(classifier)
        self._image_axes = count_image_axes(plans[0].graph)
        self.decoder_weights = nn.ParameterDict() if tie_weights else copy_weights(classifier, plans)
        self.towards_images = order_towards_images(plans[0])
        self.projections = nn.ParameterList()
        if projections:
            widths = self._measure_channels(plans[0], shape)
            self.projections.extend(nn.Parameter(torch.randn(projections, width) / width**0.5) for width in widths)

    @property
    def read_out(self) -> tuple[str | float, ...]:
        """The places that are read, as they were given."""
        return self._plans.read_out

    @property
    def classes(self) -> int | None:
        """Number K of the classifier's logits; ``None`` where it could not be run when the decoder was made."""
        return self._plans.classes

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
        check_samples(samples, images.shape[0])  # before the classifier runs
        return self.decode(self.record(images), classes, samples)

    def record(self, images: Tensor) -> Tape:
        """Run the classifier once and record what a decode needs; the tape's ``logits`` are (N, K).

        Args:
            images: Shape (N, C, H, W), floating point.

        Raises:
            InputError: For images of the wrong type or shape.
        """
        check_signals(images, self._image_axes)
        plan = self._plan(images)
        tape = Tape(self.classifier, plan.graph, images, plan.wanted, plan.last_uses)
        check_logits(tape.logits)
        return tape

    def decode(
        self, tape: Tape, classes: Sequence[int] | Tensor | None = None, samples: Tensor | None = None
    ) -> Decoded:
        """Decode every chosen class for every chosen sample of a recorded run.

        Args:
            tape: What `record` returned.
            classes: The K' classes to decode, by index; ``None`` for all.
            samples: Rows of the images to decode, int64 (S,); ``None`` for all. May be empty.

        Returns:
            Logits (N, K) and heatmaps (S, K', h, w), raw relevance.

        Raises:
            InputError: For classes or samples of the wrong type or shape.
        """
        return self._decode(*self._choose(tape, classes, samples))

    def decode_pairs(self, tape: Tape, samples: Tensor, classes: Tensor) -> Decoded:
        """Decode chosen (sample, class) pairs of a recorded run: as many classes for each image as it needs.

        Args:
            tape: What `record` returned.
            samples: The row of each pair's image, int64 (P,). P may be 0.
            classes: Its class, int64 (P,).

        Returns:
            Logits (N, K) and heatmaps (P, 1, h, w), raw relevance.

        Raises:
            InputError: For samples or classes that are no int64 vectors of the same length.

        Examples:
            >>> import torch, torchvision
            >>> decoder = HeatmapDecoder(torchvision.models.resnet18(num_classes=5)).eval()
            >>> tape = decoder.record(torch.rand(2, 3, 64, 64))
            >>> decoder.decode_pairs(tape, torch.tensor([0, 0, 1]), torch.tensor([1, 4, 4])).heatmaps.shape
            torch.Size([3, 1, 64, 64])
        """
        return self._decode(*self._choose_pairs(tape, samples, classes))

    def project(
        self, tape: Tape, classes: Sequence[int] | Tensor | None = None, samples: Tensor | None = None
    ) -> Projected:
        """Decode as `decode` does, and read the projections too.

        Args:
            tape: What `record` returned.
            classes: As there.
            samples: As there.

        Raises:
            InputError: For classes or samples of the wrong type or shape, or a decoder without projections.

        Examples:
            >>> import torch, torchvision
            >>> net = torchvision.models.resnet18(num_classes=5)
            >>> decoder = HeatmapDecoder(net, read_out=["layer2", "layer4"], projections=8).eval()
            >>> found = decoder.project(decoder.record(torch.rand(2, 3, 64, 64)), classes=[0, 3])
            >>> [tuple(maps.shape) for maps in found.projections]
            [(2, 2, 8, 8, 8), (2, 2, 8, 2, 2)]
        """
        return self._project(*self._choose(tape, classes, samples))

    def project_pairs(self, tape: Tape, samples: Tensor, classes: Tensor) -> Projected:
        """Decode pairs as `decode_pairs` does, and read the projections (P, 1, M, h, w) too.

        Args:
            tape: What `record` returned.
            samples: As there.
            classes: As there.

        Raises:
            InputError: For samples or classes that are no int64 vectors of the same length, or a decoder without
                projections.
        """
        return self._project(*self._choose_pairs(tape, samples, classes))

    def _choose(
        self, tape: Tape, classes: Sequence[int] | Tensor | None, samples: Tensor | None
    ) -> tuple[Backward, Tensor]:
        check_samples(samples, tape.images.shape[0])
        chosen = class_tensor(class_indices(classes, tape.logits.shape[1]), tape.logits.device)
        return self.prepare(tape, samples), chosen

    def _choose_pairs(self, tape: Tape, samples: Tensor, classes: Tensor) -> tuple[Backward, Tensor]:
        check_pairs(samples, classes, count=tape.images.shape[0], num_classes=tape.logits.shape[1])
        return self.prepare(tape).for_samples(samples), classes.unsqueeze(0)

    def _project(self, backward: Backward, classes: Tensor) -> Projected:
        if not self.projections:
            raise InputError("this decoder has no projections to read: make it with projections=8 or so")
        backward = replace(backward, projections=dict(zip(backward.readouts, self.projections, strict=True)))
        maps = decode_as_scheduled(self.seed, backward, classes, self.schedule, self._memory)
        depths = len(backward.readouts)
        return Projected(backward.tape.logits, maps[:depths], maps[depths:])

    def _decode(self, backward: Backward, classes: Tensor) -> Decoded:
        """Decode ``classes``, (K',) for every sample of the pass or (K', S)."""
        readouts = decode_as_scheduled(self.seed, backward, classes, self.schedule, self._memory)
        return Decoded(backward.tape.logits, readouts[0], readouts)

    def reset_decoder_weights(self) -> None:
        """Set an untied decoder's weights to the classifier's present ones; a tied decoder has none."""
        with torch.no_grad():
            for name, weight in name_weights(self.decoder_weights).items():
                weight.copy_(attribute(self.classifier, name))

    def coefficients(
        self, images: Tensor, classes: Sequence[int] | Tensor | None = None
    ) -> tuple[Tape, dict[str, Tensor]]:
        """The tape and the coefficient (K'*N, ...) at every call's output: what ``lrp.conservation`` looks at."""
        check_signals(images, self._image_axes)
        tape = Tape(self.classifier, self._plan(images).graph, images)
        backward = self.prepare(tape)
        coefficients: dict[str, Any] = {}
        propagate(backward, self.seed(tape.logits, class_indices(classes, tape.logits.shape[1])), coefficients)
        return tape, coefficients

    def prepare(self, tape: Tape, samples: Tensor | None = None) -> Backward:
        """What a backward pass over a tape works with.

        Raises:
            InputError: For a tape of another decoder.
        """
        plan = self._plans.find_graph(tape.graph)
        return Backward(
            tape,
            tape.calls,
            plan.rules,
            samples,
            name_weights(self.decoder_weights),
            plan.wanted,
            plan.readouts,
            input_rule=plan.input_rule,
            heatmap=plan.heatmap,
        )

    def graph(self, images: Tensor) -> Graph:
        """The calls of the classifier in its present mode on such images."""
        return self._plan(images).graph

    def _measure_channels(self, plan: Plan, shape: tuple[int, ...]) -> list[int]:
        """Number of channels at each read-out for images of a shape (C, H, W); nothing of the classifier changes."""
        trial = Trial(self.classifier, training=False)
        images = next(trial.make_images(shape, specialised=True))
        tape, _ = trial.run(lambda: Tape(self.classifier, plan.graph, images, plan.wanted, plan.last_uses))
        backward = self.prepare(tape)
        return [tape.values[name].shape[find_channel_axis(backward, name)] for name in plan.readouts]

    def _plan(self, images: Tensor) -> Plan:
        """The plan for such images in the classifier's present mode, made now if it is not there yet."""
        mode, shape = self._plans.find_mode(self.classifier), tuple(images.shape[1:])
        if (known := self._plans.find(mode, shape)) is not None:
            self._plans.compare_late(self.classifier, known, shape)
            return known
        if isinstance(mode, bool):
            plans: dict[Mode, Plan] = dict(zip((False, True), self._plans.make(self.classifier, shape), strict=True))
        else:
            plans = {mode: self._plans.make_for_own_modes(self.classifier, shape)}
        if not self.tie_weights:
            check_copies(self.classifier, tuple(plans.values()), self.decoder_weights, shape)
        self._plans.add(shape, plans)
        return plans[mode]

"""HeatmapDecoder: an image classifier unrolled into a differentiable heatmap decoder."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tw_seg.arguments import check_pairs, check_samples, check_signals, class_indices, class_tensor
from tw_seg.errors import InputError
from tw_seg.lrp.composite import Assign, create_composite
from tw_seg.lrp.core.backward import Backward
from tw_seg.lrp.core.graph import Graph
from tw_seg.lrp.core.tape import Tape, attribute
from tw_seg.lrp.decode.plan import Plan, Plans
from tw_seg.lrp.decode.propagate import no_heatmaps, propagate
from tw_seg.lrp.decode.recompute import Decode, recomputed
from tw_seg.lrp.decode.schedule import Piece, cut, where_recomputed, within, without_fresh_pages
from tw_seg.lrp.decode.two_phase import two_phase
from tw_seg.lrp.decode.weights import copy_weights, find_weights, name_weights
from tw_seg.lrp.ops.linear import fuse_weights
from tw_seg.lrp.seeds import HEAD_RULES, create_seed
from tw_seg.lrp.trace.build import CustomRules
from tw_seg.lrp.trace.tracer import default_image_shape


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
            initialised from them, in ``decoder_weights``.
        composite_kwargs: Numbers for the preset, for example ``{"epsilon": 1e-6}``.
        read_out: Where heatmaps are read: ``"input"``, the path of a module (its last call's output), the
            name of a call, a fraction of the depth (0.0 the input, 1.0 the last convolution), or several of them.
        seed: Name of a seed in ``tw_seg.lrp.seeds.SEEDS``.
        chunk_size: Classes decoded at once; ``None``: as many as ``memory_budget`` allows and, on a CPU, as keep
            within reusable memory; fewer where they are recomputed. Changes memory and time, not results.
        recompute: Recompute each chunk in the backward pass instead of keeping its activations: memory does not
            grow with the number of classes, at the cost of one more decode. Heatmaps that are recomputed cannot be
            differentiated twice.
        memory_budget: Memory in GiB that a decode may take besides the classifier's own activations, ``None`` for
            any. It sets the chunk size, and recomputes the chunks whose activations do not fit. An aim, not a limit:
            one pair at least is decoded at once. Not together with ``chunk_size``.
        skip: Train in two phases: decode without a graph, and in the backward pass decode again only the (sample,
            class) pairs whose largest absolute loss gradient exceeds ``skip`` times the largest of all. 0.0 is
            exact; :func:`tw_seg.lrp.conservation.diagnose.skipping` reports the error of others. Cannot be
            differentiated twice, and not together with ``recompute``.
        image_size: (H, W) at which a forward that branches on sizes is first traced; ``None``: the classifier's
            usual one. At another size it is traced again.
        custom_rules: Rules of your own for module classes, functions or methods, see ``docs/custom_rule.md``.

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
        memory_budget: float | None = None,
        skip: float | None = None,
        image_size: tuple[int, int] | None = None,
        custom_rules: CustomRules | None = None,
    ) -> None:
        super().__init__()
        if chunk_size is not None and chunk_size < 1:
            raise InputError(f"chunk_size must be at least 1 class, or None to have it chosen, got {chunk_size}")
        if memory_budget is not None and (chunk_size is not None or not 0 < memory_budget < math.inf):
            raise InputError(
                f"memory_budget must be a number of GiB > 0, and chunk_size be left out, got {memory_budget!r} and "
                f"chunk_size={chunk_size!r}"
            )
        if skip is not None and (recompute or not 0 <= skip < 1):
            raise InputError(
                f"skip must be within 0..1, and recompute be left out as it recomputes anyway, got {skip!r} and "
                f"recompute={recompute!r}"
            )
        self.classifier = classifier
        self.seed = create_seed(seed)
        self.composite = create_composite(composite, composite_kwargs)
        if seed in HEAD_RULES:
            head = Assign(HEAD_RULES[seed], ("convolution", "dense"), depth=(1.0, 1.0))
            self.composite = replace(self.composite, overrides=(head, *self.composite.overrides))
        self.tie_weights = tie_weights
        self.chunk_size = chunk_size
        self.recompute = recompute
        self.memory_budget = memory_budget
        self.skip = skip
        self._graph_rows: dict[tuple[Any, ...], float] = {}
        places = (read_out,) if isinstance(read_out, (str, int, float)) else tuple(read_out)
        shape = default_image_shape(classifier)
        if image_size is not None:
            shape = (shape[0], *image_size)
        self._plans = Plans(places, custom_rules)
        plans = self._plans.add(classifier, self.composite, shape)
        if missing := self.composite.unmatched([c for plan in plans for c in plan.graph.calls]):
            raise InputError(f"composite {composite!r}: these overrides match no call of the classifier: {missing}")
        self._image_axes = _image_axes(plans[0].graph)
        self.decoder_weights = nn.ParameterDict() if tie_weights else copy_weights(classifier, plans)

    @property
    def read_out(self) -> tuple[str | float, ...]:
        """The places that are read, as they were given."""
        return self._plans.read_out

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
        check_samples(samples)
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
        if tape.logits.ndim != 2:
            raise InputError(
                f"the classifier must return logits of shape (N, K), it returned {tuple(tape.logits.shape)}"
            )
        return tape

    def decode(
        self, tape: Tape, classes: Sequence[int] | Tensor | None = None, samples: Tensor | None = None
    ) -> Decoded:
        """Decode every chosen class for every chosen sample of a recorded run.

        Args:
            tape: What :meth:`record` returned.
            classes: The K' classes to decode, by index; ``None`` for all.
            samples: Rows of the images to decode, int64 (S,); ``None`` for all. May be empty.

        Returns:
            Logits (N, K) and heatmaps (S, K', h, w), raw relevance.

        Raises:
            InputError: For classes or samples of the wrong type or shape.
        """
        check_samples(samples)
        chosen = class_tensor(class_indices(classes, tape.logits.shape[1]), tape.logits.device)
        return self._decode(self.prepare(tape, samples), chosen)

    def decode_pairs(self, tape: Tape, samples: Tensor, classes: Tensor) -> Decoded:
        """Decode chosen (sample, class) pairs of a recorded run: as many classes for each image as it needs.

        Args:
            tape: What :meth:`record` returned.
            samples: The row of each pair's image, int64 (P,). P may be 0.
            classes: Its class, int64 (P,).

        Returns:
            Logits (N, K) and heatmaps (P, 1, h, w), raw relevance.

        Raises:
            InputError: For samples or classes that are no int64 vectors of the same length.

        Example:
            >>> import torch, torchvision
            >>> decoder = HeatmapDecoder(torchvision.models.resnet18(num_classes=5)).eval()
            >>> tape = decoder.record(torch.rand(2, 3, 64, 64))
            >>> decoder.decode_pairs(tape, torch.tensor([0, 0, 1]), torch.tensor([1, 4, 4])).heatmaps.shape
            torch.Size([3, 1, 64, 64])
        """
        check_pairs(samples, classes, tape.logits.shape[1])
        return self._decode(self.prepare(tape).of(samples), classes.unsqueeze(0))

    def _decode(self, backward: Backward, classes: Tensor) -> Decoded:
        """Decode ``classes``, (K',) for every sample of the pass or (K', S)."""
        logits = backward.tape.logits
        if len(classes) == 0 or backward.size == 0:
            readouts = no_heatmaps(backward, len(classes))
        elif torch.compiler.is_compiling() and self.chunk_size is None:
            # The compiler plans memory itself, and a loop over pieces would be written out.
            readouts = self._piece(backward, classes, checkpointed=self.recompute)
        elif self.skip is not None and torch.is_grad_enabled():
            rows = self._rows(backward, classes)[0]
            backward = replace(backward, fused=fuse_weights(backward, rows))
            index = classes if classes.ndim == 2 else classes.unsqueeze(1).expand(-1, backward.size)
            readouts = two_phase(
                self._pieces,
                backward,
                index,
                rows=rows,
                skip=self.skip,
            )
        else:
            readouts = self._pieces(backward, classes)
        return Decoded(logits, readouts[0], readouts)

    def _pieces(self, backward: Backward, classes: Tensor) -> tuple[Tensor, ...]:
        """Decode a piece at a time."""
        rows, kept = self._rows(backward, classes)
        every = backward.size * len(classes)
        if not backward.fused and rows < every:
            # Of a piece that is recomputed nothing stays, so a factor on its coefficients costs no memory.
            backward = replace(
                backward, fused=fuse_weights(backward, every if kept == math.inf else max(rows, int(kept)))
            )
        pieces = cut(backward.size, len(classes), rows, kept)
        # A compiler recomputes by itself; it does not know functions with a backward pass of their own.
        eager = torch.is_grad_enabled() and not torch.compiler.is_compiling()
        later = [piece for piece in pieces if piece.recompute and eager]
        groups: dict[int, Backward] = {}  # the classes of the same samples share their rows
        maps = []
        for piece in pieces[: len(pieces) - len(later)]:
            first = piece.samples.start
            if first not in groups:
                groups[first] = _of_samples(backward, piece.samples)
            maps.append(self._piece(groups[first], _of_classes(classes, piece), checkpointed=piece.recompute))

        def alone(piece: Piece) -> Decode:
            return lambda backward: self._piece(_of_samples(backward, piece.samples), _of_classes(classes, piece))

        maps += recomputed([alone(piece) for piece in later], backward)
        joined: dict[int, list[tuple[Tensor, ...]]] = {}
        for piece, found in zip(pieces, maps, strict=True):
            joined.setdefault(piece.samples.start, []).append(found)
        return _join([_join(of_some, 1) for of_some in joined.values()], 0)

    def _piece(self, backward: Backward, classes: Tensor, *, checkpointed: bool = False) -> tuple[Tensor, ...]:
        seed = self.seed(backward.value(backward.tape.graph.output), classes)
        if checkpointed and torch.is_grad_enabled():
            # Rows that one run has chosen must not be found by the next: both must compute the same.
            result: tuple[Tensor, ...] = checkpoint(
                lambda c: propagate(backward.renew(), c),
                seed,
                use_reentrant=False,
                preserve_rng_state=False,
            )
            return result
        return propagate(backward, seed)

    def _rows(self, backward: Backward, classes: Tensor) -> tuple[int, float]:
        """(sample, class) pairs decoded at once, and pairs that need not be recomputed."""
        every = backward.size * len(classes)
        kept = 0.0 if self.recompute else math.inf
        if self.chunk_size is not None:
            of_each = backward.size if len(classes) > 1 else backward.tape.images.shape[0]
            return self.chunk_size * of_each, kept
        if self.memory_budget is None:
            again = self.recompute or self.skip is not None
            return int(min(where_recomputed(backward) if again else without_fresh_pages(backward), every)), kept
        rows, kept = within(
            self.memory_budget * 2**30, self._graph_row(backward) if torch.is_grad_enabled() else 0.0, backward
        )
        return rows, min(kept, every)

    def _graph_row(self, backward: Backward) -> float:
        """Bytes that the decode of one pair keeps for its backward pass: what one more class takes, measured once."""
        trained = sum(p.requires_grad for p in self.parameters())
        key = (id(backward.tape.graph), *backward.tape.images.shape[1:], backward.tape.logits.dtype, trained)
        if key not in self._graph_rows:
            first = torch.zeros(2, dtype=torch.int64, device=backward.tape.images.device)
            alone = backward.of(first[:1] if backward.samples is None else backward.samples[:1])
            one, two = (self._graph_bytes(alone, first[:n]) for n in (1, 2))
            self._graph_rows[key] = max(two - one, 1)
        return self._graph_rows[key]

    def _graph_bytes(self, backward: Backward, classes: Tensor) -> int:
        sizes: dict[int, int] = {}

        def pack(x: Tensor) -> Tensor:
            storage = x.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
            held.append(x)
            return x

        held: list[Tensor] = []  # so that no two storages have the same address
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            result = self._piece(backward.renew(), classes)
        del result
        return sum(sizes.values())

    def reset_decoder_weights(self) -> None:
        """Set an untied decoder's weights to the classifier's present ones; a tied decoder has none."""
        with torch.no_grad():
            for name, weight in self._weights().items():
                weight.copy_(attribute(self.classifier, name))

    def coefficients(
        self, images: Tensor, classes: Sequence[int] | Tensor | None = None
    ) -> tuple[Tape, dict[str, Tensor]]:
        """The tape and the coefficient (K'*N, ...) at every call's output: what ``checks`` looks at."""
        check_signals(images, self._image_axes)
        tape = Tape(self.classifier, self._plan(images).graph, images)
        backward = self.prepare(tape)
        kept: dict[str, Any] = {}
        propagate(backward, self.seed(tape.logits, class_indices(classes, tape.logits.shape[1])), kept)
        return tape, kept

    def prepare(self, tape: Tape, samples: Tensor | None = None) -> Backward:
        """What a backward pass over a tape works with.

        Raises:
            InputError: For a tape of another decoder.
        """
        plan = self._plans.find_graph(tape.graph)
        return Backward(tape, plan.calls, self.composite, samples, self._weights(), plan.wanted, plan.readouts)

    def graph(self, images: Tensor) -> Graph:
        """The calls of the classifier in its present mode on such images."""
        return self._plan(images).graph

    def _plan(self, images: Tensor) -> Plan:
        mode, shape = self.classifier.training, tuple(images.shape[1:])
        if (known := self._plans.find(mode, shape)) is not None:
            return known
        plans = self._plans.add(self.classifier, self.composite, shape)
        if not self.tie_weights and (missing := set(find_weights(self.classifier, plans)) - self._weights().keys()):
            self._plans.remove(shape)
            raise InputError(
                f"for images {shape} the classifier's forward uses {', '.join(sorted(missing))}, of which the untied "
                "decoder has no copies: it used none of them at the image_size at which the decoder was made"
            )
        return plans[int(mode)]

    def _weights(self) -> Mapping[str, Tensor]:
        return name_weights(self.decoder_weights)


def _image_axes(graph: Graph) -> int | None:
    """Number of axes of the images, where a convolution layer reads them; ``None``: it is not known."""
    convolutions = [c for c in graph.calls if c.kind in ("conv", "conv_transpose") and c.op == "call_module"]
    sizes = [c.options["kernel_size"] for c in convolutions if graph.input in c.inputs]
    return 2 + len(sizes[0]) if sizes else None


def _of_samples(backward: Backward, samples: slice) -> Backward:
    """The pass over some of its samples."""
    if samples.stop - samples.start == backward.size:
        return backward
    images = (
        torch.arange(backward.size, device=backward.tape.images.device)
        if backward.samples is None
        else backward.samples
    )
    return backward.of(images[samples])


def _of_classes(classes: Tensor, piece: Piece) -> Tensor:
    """The classes of a piece: (K',) for every sample or (K', S)."""
    chosen = classes[piece.classes]
    return chosen if chosen.ndim == 1 else chosen[:, piece.samples]


def _join(parts: Sequence[tuple[Tensor, ...]], dim: int) -> tuple[Tensor, ...]:
    """The maps of each read-out side by side."""
    return tuple(torch.cat(maps, dim) if len(maps) > 1 else maps[0] for maps in zip(*parts, strict=True))

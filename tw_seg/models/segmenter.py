"""HeatmapSegmenter: a classifier and its heatmap decoder as one segmentation model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tw_seg.arguments import check_pairs, class_indices, class_tensor, is_number
from tw_seg.errors import InputError
from tw_seg.lrp import Decoded, HeatmapDecoder, Projected, Schedule
from tw_seg.lrp.core.tape import Tape
from tw_seg.lrp.trace.build import CustomRules
from tw_seg.models.base import CLASSIFIER_STATE, SegModel
from tw_seg.models.by_name import import_object
from tw_seg.models.refine import PROJECTIONS, RefiningNet
from tw_seg.models.weights import find_head, remove_prefix
from tw_seg.resize import resize_maps
from tw_seg.types import BACKGROUND, SegOutput


class DecoderKwargs(TypedDict, total=False):
    """Arguments of the decoder that hyper-parameters hold, all by names and numbers.

    Attributes:
        composite: Preset of relevance rules, see `tw_seg.lrp.HeatmapDecoder`, as for all.
        composite_kwargs: Its numbers.
        tie_weights: Whether the decoder reads the classifier's own weights, or copies that are trained separately.
        read_out: Where heatmaps are read, one place or several: paths of modules or fractions of the depth.
        seed: Coefficients at the logits.
        custom_rules: Rules for operations that the package lacks, see ``docs/custom_rule.md``, or where such a mapping
            is: ``"package.module:NAME"``.
        schedule: What a decode may take in memory and time, such as ``{"memory_budget": 0.5}``, see
            `tw_seg.lrp.Schedule`.
        image_size: (H, W) at which a forward that branches on sizes is first traced.
    """

    composite: str
    composite_kwargs: dict[str, Any] | None
    tie_weights: bool
    read_out: str | float | Sequence[str | float]
    seed: str
    custom_rules: str | CustomRules | None
    schedule: Schedule | Mapping[str, Any] | None
    image_size: Sequence[int] | None


class HeatmapSegmenter(SegModel):
    """Segments with the classifier's own relevance: mask logits are scaled heatmaps.

    The heatmap of read-out d has ``H_d * W_d`` cells that sum to about the logit, so it is multiplied by
    ``H_d * W_d`` (its *mean* is then the logit, less what biases absorb), by a learned scale per read-out, brought to
    the size of the images and summed over the read-outs; a learned offset is added, of each class or one that all
    objects share::

        mask_logits[k] = sum_d scale[d] * resize(f(H_d * W_d * heatmap_d[k])) + offset[k]

    ``f`` is the identity, or with ``compress=g`` the function ``asinh(g * x)``: relevance has heavy tails (a few
    cells hold most of it), and cross-entropy on raw heatmaps spends itself on them. It is odd, so signs stay.

    With ``refine`` a small net that all classes share adds a correction, which starts at 0. It sees the heatmaps and
    weighted sums over the channels of relevance, see `tw_seg.models.refine.RefiningNet`.

    Args:
        encoder_name: Classifier by name, see `tw_seg.models.backbones.create_classifier`.
        encoder_weights: Its pretrained weights by name or file; ``None`` for random ones.
        in_channels: Channels of the images.
        classes: Number of classes K, background included.
        encoder_kwargs: Further arguments of the classifier.
        decoder_kwargs: Arguments of the decoder by name, see `DecoderKwargs`.
        background: ``"class"``: the background is a class of the classifier, with a heatmap of its own.
            ``"constant"``: the classifier knows the K - 1 object classes only, the background's mask logit is its
            learned offset and its image-level logit is 0.
        scale: Initial scale of each read-out.
        compress: Gain g of the compression, ``None`` for none.
        learn_scale: Whether scale and offset are trained.
        share_offset: Whether all object classes have one offset, so that a class that never had a mask has it too.
        refine: Channels of the refining net, ``None`` for none.
        class_prior: See `tw_seg.models.base.SegModel`.

    Attributes:
        classifier: The image classifier; its state dict loads into any other model's classifier.
        decoder: The heatmap decoder on it.
        log_scale: Logarithm of the scale, shape (D,).
        offset: Offset of each class, shape (K,), or of the background and the objects, shape (2,).
        refine: The refining net, in a list that is empty without one.
    """

    can_gate = True
    classifier_path = "decoder.classifier"
    decoder_paths = ("decoder.decoder_weights", "decoder.projections", "refine")
    scale_names = ("log_scale", "offset")

    def __init__(
        self,
        encoder_name: str,
        encoder_weights: str | None = None,
        *,
        in_channels: int = 3,
        classes: int,
        encoder_kwargs: Mapping[str, Any] | None = None,
        decoder_kwargs: DecoderKwargs | Mapping[str, Any] | None = None,
        background: str = "class",
        scale: float = 1.0,
        compress: float | None = None,
        learn_scale: bool = True,
        share_offset: bool = False,
        refine: int | None = None,
        class_prior: float = 0.0,
    ) -> None:
        super().__init__(
            encoder_name,
            encoder_weights,
            in_channels=in_channels,
            classes=classes,
            encoder_kwargs=encoder_kwargs,
            class_prior=class_prior,
        )
        if background not in ("class", "constant"):
            raise InputError(f"background must be 'class' or 'constant', got {background!r}")
        if not is_number(scale) or not scale > 0:
            raise InputError(f"scale must be positive, got {scale!r}")
        if not isinstance(share_offset, bool):
            raise InputError(f"share_offset must be true or false, got {share_offset!r}")
        if compress is not None and not (is_number(compress) and compress > 0):
            raise InputError(f"compress must be positive, or None for no compression, got {compress!r}")
        self.background = background
        self.compress = compress
        outputs = classes - (background == "constant")
        classifier = self.create_classifier(encoder_weights, classes=outputs)
        projections = 0 if refine is None else PROJECTIONS
        self._decoder_kwargs = read_decoder_kwargs(decoder_kwargs)
        self.decoder = HeatmapDecoder(classifier, **self._decoder_kwargs, projections=projections)
        if self.decoder.classes not in (None, outputs):
            raise InputError(
                f"the classifier {encoder_name!r} returns {self.decoder.classes} logits, classes={classes} with "
                f"background={background!r} needs {outputs}: let its factory use "
                "num_classes, and return the logits first"
            )
        depths = len(self.decoder.read_out)
        self.log_scale = nn.Parameter(torch.full((depths,), scale).log(), requires_grad=learn_scale)
        self.offset = nn.Parameter(torch.zeros(2 if share_offset else classes), requires_grad=learn_scale)
        self.refine = nn.ModuleList([] if refine is None else [RefiningNet(depths, in_channels, refine)])

    @property
    def classifier(self) -> nn.Module:
        """The image classifier."""
        return self.decoder.classifier

    def segment(self, images: Tensor, classes: tuple[int, ...] | Tensor, samples: Tensor | None) -> SegOutput:
        tape, decode = self.decoder.record(images), self.decoder.project if self.refine else self.decoder.decode
        decoded = decode(tape, self._find_columns(classes), samples)
        chosen = images if samples is None else images.index_select(0, samples)
        maps = [self._insert_background(one, classes) for one in self._make_maps(decoded, chosen)]
        return self._add_offset(decoded.logits, maps, self._find_offset(classes))

    def read_relevance(self, output: SegOutput) -> Tensor:
        return self.find_heatmaps(output, torch.arange(len(output.logits), device=output.logits.device))

    def record(self, images: Tensor) -> tuple[Tape, Tensor]:
        self.check_images(images)
        tape = self.decoder.record(images)
        return tape, self._insert_logit(tape.logits)

    def decode_pairs(self, tape: Tape, samples: Tensor, classes: Tensor) -> SegOutput:
        check_pairs(samples, classes, count=tape.images.shape[0], num_classes=self.num_classes)
        offset = self._find_offset(classes)[:, None]
        if self.class_prior:
            prior = self.compute_prior(self._insert_logit(tape.logits)[samples, classes], classes)
            offset = offset + prior[:, None, None, None]
        if self.background == "class":
            return self._add_offset(tape.logits, self._decode_maps(tape, samples, classes), offset)
        objects = (classes != BACKGROUND).nonzero().flatten()
        maps = [
            one.new_zeros((len(classes), *one.shape[1:])).index_copy(0, objects, one)
            for one in self._decode_maps(tape, samples[objects], classes[objects] - 1)
        ]
        return self._add_offset(tape.logits, maps, offset)

    def find_heatmaps(self, output: SegOutput, samples: Tensor) -> Tensor:
        """The scaled heatmaps of an output, see `SegModel.find_heatmaps`: without the offset of each class."""
        return super().find_heatmaps(output, samples) - self._find_offset(tuple(range(self.num_classes)))

    def decode_anew(
        self, images: Tensor, class_id: int, *, composite: str | None = None, read_out: str | float | None = None
    ) -> Tensor:
        """See :meth:`SegModel.decode_anew`; an untied decoder's own weights are used where it has them."""
        self.check_images(images)
        columns = self._find_columns(class_indices([class_id], self.num_classes))
        if not len(columns):  # a constant background
            return images.new_zeros((len(images), *images.shape[2:]))
        kwargs = dict(self._decoder_kwargs)
        if read_out is not None:
            kwargs["read_out"] = read_out
        if composite is not None and composite != kwargs.get("composite", "epsilon"):
            kwargs |= {"composite": composite, "composite_kwargs": None}
        decoder = HeatmapDecoder(self.classifier, **kwargs)
        with torch.no_grad():
            for name, weight in self.decoder.decoder_weights.items():
                if name in decoder.decoder_weights:
                    decoder.decoder_weights[name].copy_(weight)
        decoded = decoder(images, classes=columns)
        if read_out is not None:
            return decoded.heatmaps[:, 0]
        return torch.stack([resize_maps(one, images.shape[2:]) for one in self._scale_heatmaps(decoded)]).sum(0)[:, 0]

    def load_classifier_state(self, state: Mapping[str, Tensor]) -> None:
        """Start from an image-level classifier of the same encoder: its state dict, every key of it.

        An untied decoder starts from the same weights. With ``background="constant"`` a classifier of all K classes
        loses its background.

        Raises:
            InputError: Naming the keys that are missing, left over or of another shape.
        """
        if self.background == "constant":
            state = remove_prefix(self.classifier, state, source=CLASSIFIER_STATE)
            state = _drop_background(state, find_head(self.classifier, self.num_classes - 1), self.num_classes)
        super().load_classifier_state(state)
        self.decoder.reset_decoder_weights()

    def _make_maps(self, decoded: Decoded | Projected, images: Tensor, samples: Tensor | None = None) -> list[Tensor]:
        """What adds up to mask logits: the heatmaps of each read-out, normalised and scaled, and the correction.

        ``samples`` are the rows of the images that the heatmaps belong to, where they are not all in order.
        """
        scaled = self._scale_heatmaps(decoded)
        if isinstance(decoded, Projected):
            scaled += [net(self._make_seen(decoded), images, samples) for net in self.refine]
        return [resize_maps(one, images.shape[2:]) for one in scaled]

    def _scale_heatmaps(self, decoded: Decoded | Projected) -> list[Tensor]:
        scale = self.log_scale.exp()
        return [_scale_heatmap(one, scale[depth], self.compress) for depth, one in enumerate(decoded.readouts)]

    def _make_seen(self, decoded: Projected) -> list[Tensor]:
        """What the refining net sees: maps (S, K', M, h, w) of each read-out, from the logits to the images."""
        gain = 1.0 if self.compress is None else self.compress
        seen = []
        for depth in self.decoder.towards_images:
            heatmap, others = decoded.readouts[depth], decoded.projections[depth]
            maps = torch.cat([heatmap[:, :, None], others.to(heatmap.dtype)], 2)
            seen.append(torch.asinh(maps * (gain * maps.shape[3] * maps.shape[4])))
        return seen

    def _add_offset(self, logits: Tensor, maps: Sequence[Tensor], offset: Tensor) -> SegOutput:
        """The output for the classifier's logits, the maps of each read-out and, if there is one, the correction."""
        depths = len(self.log_scale)
        aux = tuple(one + offset for one in maps[:depths]) if depths > 1 else ()
        # In place: of the sum, or of the only map, nothing else is left.
        return SegOutput(self._insert_logit(logits), _add_up(maps).add_(offset), aux)

    def _find_offset(self, classes: tuple[int, ...] | Tensor) -> Tensor:
        """Offsets of P classes, shape (P, 1, 1)."""
        if len(self.offset) == self.num_classes and self._are_all(classes):
            return self.offset[:, None, None]
        index = class_tensor(classes, self.offset.device)
        return self.offset[index.clamp(max=len(self.offset) - 1)][:, None, None]

    def _decode_maps(self, tape: Tape, samples: Tensor, outputs: Tensor) -> list[Tensor]:
        """Maps (P, 1, H, W) of each read-out for pairs of a sample and a column of the classifier; the correction."""
        decode = self.decoder.project_pairs if self.refine else self.decoder.decode_pairs
        return self._make_maps(decode(tape, samples, outputs), tape.images, samples)

    def _insert_logit(self, logits: Tensor) -> Tensor:
        """The classifier's logits as those of the K classes."""
        return logits if self.background == "class" else F.pad(logits, (1, 0))

    def _find_columns(self, wanted: tuple[int, ...] | Tensor) -> tuple[int, ...] | Tensor:
        """The classifier's columns for the wanted classes."""
        if self.background == "class":
            return wanted
        if isinstance(wanted, Tensor):  # not looked at: a map is decoded for the background too, and put aside
            return (wanted - 1).clamp(min=0)
        return tuple(k - 1 for k in wanted if k != BACKGROUND)

    def _insert_background(self, maps: Tensor, wanted: tuple[int, ...] | Tensor) -> Tensor:
        """Insert the background's constant map where it was asked for."""
        if self.background == "class":
            return maps
        if isinstance(wanted, Tensor):
            return torch.where((wanted == BACKGROUND)[:, None, None], 0.0, maps)
        if self._are_all(wanted):
            return F.pad(maps, (0, 0, 0, 0, 1, 0))
        columns = iter(maps.unbind(1))
        zero = maps.new_zeros((maps.shape[0], *maps.shape[2:]))
        return torch.stack([zero if k == BACKGROUND else next(columns) for k in wanted], 1)


def read_decoder_kwargs(decoder_kwargs: DecoderKwargs | Mapping[str, Any] | None) -> dict[str, Any]:
    """Check the names in ``decoder_kwargs``, and import custom rules that are given by name.

    Raises:
        InputError: For a name that the decoder does not know, or custom rules that cannot be imported.

    Examples:
        >>> read_decoder_kwargs({"read_out": "layer3"})
        {'read_out': 'layer3'}
    """
    known = DecoderKwargs.__annotations__
    if not isinstance(decoder_kwargs, Mapping | None):
        raise InputError(f"decoder_kwargs must be a mapping of {', '.join(known)}, got {type(decoder_kwargs).__name__}")
    kwargs = dict(decoder_kwargs or {})
    if unknown := sorted(kwargs.keys() - known):
        places = "".join(f"; {place}" for name in unknown if (place := find_place(name)))
        raise InputError(f"decoder_kwargs knows {', '.join(known)}, not {', '.join(map(repr, unknown))}{places}")
    rules = kwargs.get("custom_rules")
    return {**kwargs, "custom_rules": import_custom_rules(rules)} if isinstance(rules, str) else kwargs


def find_place(name: str) -> str:
    """Where an argument of the decoder belongs that was given elsewhere, as a clause; empty for any other name.

    Examples:
        >>> find_place("chunk_size")
        'chunk_size belongs in schedule, in decoder_kwargs'
    """
    if name == "own_rules":
        return "own_rules is custom_rules, in decoder_kwargs"
    if name in Schedule.__annotations__:
        return f"{name} belongs in schedule, in decoder_kwargs"
    return f"{name} belongs in decoder_kwargs" if name in DecoderKwargs.__annotations__ else ""


def import_custom_rules(place: str) -> CustomRules:
    """Import the mapping of custom rules at ``"package.module:NAME"``.

    Raises:
        InputError: If there is none.
    """
    found = import_object(place, "custom_rules", "'package.module:NAME' of a mapping")
    if not isinstance(found, Mapping):
        raise InputError(
            f"custom_rules={place!r} must be a mapping of module classes, functions or method names to rules, got "
            f"{type(found).__name__}; see docs/custom_rule.md"
        )
    rules: CustomRules = found
    return rules


def _drop_background(state: Mapping[str, Tensor], head: str, classes: int) -> dict[str, Tensor]:
    """The state of a classifier of K classes without the background's row of its head."""
    own = (f"{head}.weight", f"{head}.bias")
    return {k: v[BACKGROUND + 1 :] if k in own and len(v) == classes else v for k, v in state.items()}


def _add_up(maps: Sequence[Tensor]) -> Tensor:
    """The sum over the read-outs."""
    return torch.stack(tuple(maps)).sum(0) if len(maps) > 1 else maps[0]


def _scale_heatmap(heatmap: Tensor, scale: Tensor, compress: float | None) -> Tensor:
    """``H*W`` times the heatmap, compressed if asked for, times the scale."""
    cells = heatmap.shape[-2] * heatmap.shape[-1]
    if compress is None:
        return heatmap * (cells * scale)  # one product of the size of all maps instead of two
    return scale * torch.asinh(heatmap * (compress * cells))

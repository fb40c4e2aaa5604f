"""The weights that a decode multiplies with: the classifier's own, or copies that the decoder trains separately."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from tw_seg.errors import InputError
from tw_seg.lrp.core.graph import Call, refs
from tw_seg.lrp.core.tape import attribute
from tw_seg.lrp.decode.plan import Plan


def copy_weights(classifier: nn.Module, plans: Iterable[Plan]) -> nn.ParameterDict:
    """Copies of the weights that decodes by some plans read, as parameters; a weight that is shared has one copy.

    No coefficient needs a bias, so there are none. The keys have slashes for dots, which a module's names cannot have.
    """
    copies: dict[str, nn.Parameter] = {}
    shared: dict[Tensor, nn.Parameter] = {}
    for path in find_weights(classifier, plans):
        weight = attribute(classifier, path)
        copies[path.replace(".", "/")] = shared.setdefault(weight, nn.Parameter(weight.detach().clone()))
    return nn.ParameterDict(copies)


def name_weights(copies: nn.ParameterDict) -> Mapping[str, Tensor]:
    """The copies by dotted names, as the classifier's parameters have them."""
    return {name.replace("/", "."): weight for name, weight in copies.items()}


def check_copies(classifier: nn.Module, plans: Iterable[Plan], copies: nn.ParameterDict, shape: object) -> None:
    """Refuse plans, made at an image shape, that read weights of which there are no copies.

    Raises:
        InputError: Naming these weights.
    """
    if missing := set(find_weights(classifier, plans)) - name_weights(copies).keys():
        raise InputError(
            f"for images {shape} the classifier's forward uses {', '.join(sorted(missing))}, of which the untied "
            "decoder has no copies: it used none of them at the image_size at which the decoder was made"
        )


def find_weights(classifier: nn.Module, plans: Iterable[Plan]) -> list[str]:
    """Dotted names of the parameters that decodes by some plans multiply with, each once.

    Raises:
        InputError: For a weight that is computed in the classifier's forward.
    """
    paths = [path for plan in plans for call in plan.decoded_calls() for path in find_call_weights(call, plan.calls)]
    weights = {path: attribute(classifier, path) for path in paths}
    return [path for path, w in weights.items() if w.requires_grad or isinstance(w, nn.Parameter)]


def find_call_weights(call: Call, calls: Mapping[str, Call]) -> list[str]:
    """Dotted names of the parameters that a call's adjoint multiplies with."""
    factors = [calls[name] for factor in call.op.factors for name in refs(call.options.get(factor)) if name in calls]
    paths = [factor.parameter for factor in factors if factor.parameter is not None]
    if not call.op.weighted:
        return paths
    if call.weight is None and call.fx_op == "call_function" and call.options.get("weight") is not None:
        raise InputError(
            f"tie_weights=False needs weights that are parameters; that of {call.name!r} in {call.place} is computed "
            "in its forward. Use tie_weights=True, or torch.nn.utils.parametrize"
        )
    return paths if call.weight is None else [*paths, call.weight]

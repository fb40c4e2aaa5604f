"""One forward run of the classifier that records what the adjoints of its calls need later.

The run computes what the classifier computes, in-place operations out of place. Few kinds need their values: a ReLU
needs one byte for each element (nothing where autograd keeps its output), a max pool its winners, dropout its noise,
BatchNorm the statistics it used. All other activations go as soon as no call takes them any more; what stays of them is
their shape.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tw_seg.errors import UnsupportedOpError
from tw_seg.lrp.core.graph import UNSUPPORTED, Call, Graph, Mode, Ref, map_leaves


class Tape:
    """Values of one forward run.

    Attributes:
        images: The images.
        calls: The calls by name, with numbers and sizes in the place of references to them.
        values: Output of each call by name, the images included; where it was let go, an empty tensor of its shape
            (on the device ``meta``, so that looking at its elements is an error).
        axes: The batch axis of each value that carries relevance.
        saved: What a call's adjoint needs besides or instead of its values (gates, winners, noise, statistics).
        weights: The weights of this run that a parametrization computed.
        parameters: What takes the place of parameters of modules, see `swapped`.
    """

    def __init__(
        self,
        classifier: nn.Module,
        graph: Graph,
        images: Tensor,
        wanted: frozenset[str] | None = None,
        last_uses: Mapping[str, tuple[str, ...]] | None = None,
    ) -> None:
        """Run the classifier on ``images`` (N, C, H, W): no more state changes than in its own forward.

        Args:
            classifier: The classifier.
            graph: Its calls.
            images: The images.
            wanted: The calls whose adjoints will run; ``None``: all.
            last_uses: For each call, the activations to let go after it; ``None``: none.

        Raises:
            UnsupportedOpError: If a call joins the images of the batch.
        """
        self.modules: Mapping[str, nn.Module] = dict(classifier.named_modules())
        self.classifier = classifier
        self.graph = graph
        self.images = images
        self.calls: dict[str, Call] = {}
        self.values: dict[str, Any] = {graph.input: images}
        self.axes: dict[str, int] = {graph.input: 0}
        self.saved: dict[str, Any] = {}
        self.weights: dict[str, Tensor] = {}
        self.parameters: Mapping[Tensor, Tensor] = {}
        for traced in graph.calls:
            call = self.calls[traced.name] = self._fill_constants(traced)
            op = call.op
            self.values[call.name] = op.forward(self, call) if op.forward else self.execute(call)
            if call.inputs:
                decoded = op is not UNSUPPORTED and (
                    wanted is None or (call.name in wanted and not wanted.isdisjoint(call.inputs))
                )
                self._find_axis(call, decoded)
                if op.save and (wanted is None or call.name in wanted):
                    self.saved[call.name] = op.save(self, call)
            if last_uses and not torch.compiler.is_compiling():  # a compiler finds them by itself
                for name in last_uses[call.name]:
                    self.values[name] = map_leaves(self.values[name], _shape)

    def swapped(self, swap: Callable[[Any], Any], parameters: Mapping[Tensor, Tensor]) -> Tape:
        """The same run with other tensors in the place of some.

        Args:
            swap: Maps nested values to what takes their place.
            parameters: Likewise for the parameters of modules.
        """
        other = copy.copy(self)
        other.values, other.saved, other.weights = (swap(v) for v in (self.values, self.saved, self.weights))
        other.parameters = parameters
        return other

    @property
    def logits(self) -> Tensor:
        """The classifier's output (N, K)."""
        logits = self.values[self.graph.output]
        assert isinstance(logits, Tensor)
        return logits

    def _fill_constants(self, call: Call) -> Call:
        """A call with the values themselves for the references to numbers and sizes in its arguments."""
        known = {name: self.values[name] for name in call.constants}
        known = {name: value for name, value in known.items() if not _holds_tensor(value)}
        if not known:
            return call

        def fill(leaf: Any) -> Any:
            return known.get(leaf.name, leaf) if isinstance(leaf, Ref) else leaf

        args, kwargs, options = (map_leaves(part, fill) for part in (call.args, call.kwargs, call.options))
        return replace(call, args=args, kwargs=kwargs, options=options)

    def _find_axis(self, call: Call, decoded: bool) -> None:
        """Note the batch axis of a call's value; what is only run, not decoded, may have none."""
        op, source = call.op, call.inputs[0]
        if not decoded and source not in self.axes:
            return
        try:
            self.axes[call.name] = op.axis(self, call) if op.axis else self.axes[source]
            if not torch.compiler.is_compiling():
                self._check(call)
        except UnsupportedOpError:
            if decoded:
                raise
            self.axes.pop(call.name, None)

    def _check(self, call: Call) -> None:
        value, axis, images = self.values[call.name], self.axes[call.name], self.images.shape[0]
        shapes = [tuple(v.shape) for v in (value if isinstance(value, (tuple, list)) else [value])]
        if any(axis >= len(shape) or shape[axis] % images or not shape[axis] for shape in shapes if images):
            raise UnsupportedOpError(
                f"{call.place}: {call.kind} ({call.name!r}) turns {images} images into "
                f"{', '.join(map(str, shapes))}; every activation must keep the same number of rows for each image"
            )

    def resolve(self, value: Any) -> Any:
        """Replace references by the values of the calls they name."""
        return map_leaves(value, self._resolve)

    def _resolve(self, value: Any) -> Any:
        if isinstance(value, Ref):
            return self.values[value.name]
        return self.modules[value.path].training if isinstance(value, Mode) else value

    def execute(self, call: Call) -> Any:
        """Run a call as the classifier would."""
        args, kwargs = self.resolve(call.args), self.resolve(call.kwargs)
        if call.fx_op == "call_module":
            module = self.modules[call.target]
            if not parametrize.is_parametrized(module, "weight"):
                return module.forward(*args, **kwargs)  # its hooks are calls of the graph
            with parametrize.cached():  # another look would compute it anew: spectral_norm goes one step on
                value = module.forward(*args, **kwargs)
                weight = module.weight
                assert isinstance(weight, Tensor)
                self.weights[call.name] = weight
            return value
        if call.fx_op == "call_method":
            return getattr(args[0], call.target)(*args[1:], **kwargs)
        if call.fx_op == "get_attr":
            return attribute(self.classifier, call.target)
        return call.target(*args, **kwargs)

    def number(self, call: Call, name: str, default: float) -> float:
        """A number that may change between runs, such as a dropout rate: the module's present one."""
        value = getattr(self.modules[call.target], name) if call.fx_op == "call_module" else call.options.get(name)
        return default if value is None else value

    def parameter(self, call: Call, name: str) -> Tensor | None:
        """A parameter or buffer of a call: the module's own, or the argument of a functional call."""
        if name == "weight" and call.name in self.weights:
            return self.weights[call.name]
        if call.fx_op == "call_module":
            value = getattr(self.modules[call.target], name, None)
        else:
            value = self.resolve(call.options.get(name))
        assert value is None or isinstance(value, Tensor)
        return value if value is None or not self.parameters else self.parameters.get(value, value)


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return any(map(_holds_tensor, value))
    return isinstance(value, (Tensor, dict))


def _shape(value: Any) -> Any:
    """What stays of a value that is let go."""
    return torch.empty_like(value, device="meta") if isinstance(value, Tensor) else value


def attribute(root: nn.Module, path: str) -> Any:
    """The attribute at a dotted path."""
    value: Any = root
    for part in path.split("."):
        value = getattr(value, part)
    return value

"""Symbolic tracing of a classifier by torch.fx, made to follow the code of real image models.

Three things are added to torch.fx. Where the forward needs a number or a truth value, the graph so far is run on
fake tensors, which have shapes and no data (Python's ``if``, ``int``, ``range``, ``math.ceil`` on sizes). Functions
that others marked as opaque (``torch.fx.wrap``) are traced into. And a few functions and modules are written out in
simpler operations (``lowering``, ``rewriting``), such as attention.
"""

from __future__ import annotations

import inspect
import math
import numbers
import operator
import random
import sys
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import Attribute
from torch.nn.utils import parametrize

from tw_seg.errors import TraceError
from tw_seg.lrp.ops.constants import CONSTANT_ATTRIBUTES, SIZES
from tw_seg.lrp.trace.examples import BATCHES, Examples, Failed, default_image_shape
from tw_seg.lrp.trace.hooks import Hook, HookCall, call_with_hooks
from tw_seg.lrp.trace.lowering import LOWERED_FUNCTIONS, find_lowered
from tw_seg.lrp.trace.outside import find_einops_forward, let_einops_record, record_functions
from tw_seg.lrp.trace.recording import holds_proxy, record_torch
from tw_seg.lrp.trace.state import find_replaced
from tw_seg.lrp.trace.trial import training_mode

IN_PLACE_OPERATORS = {
    "__iadd__": operator.iadd,
    "__isub__": operator.isub,
    "__imul__": operator.imul,
    "__itruediv__": operator.itruediv,
}
_SIZELESS_ATTRIBUTES = (
    "ndim", "dtype", "device", "is_cuda", "is_cpu", "requires_grad", "layout", "is_sparse", "is_nested",
)  # fmt: skip
_SIZELESS_METHODS = ("dim", "ndimension", "is_floating_point", "is_complex", "get_device")


@dataclass(frozen=True)
class Traced:
    """A traced forward.

    Attributes:
        graph: What it calls. Its only placeholder is the images.
        specialised: Whether it branched on sizes: then the graph holds for images of that (C, H, W) only.
        asks_for_gradients: Whether it branched on ``requires_grad``, which was answered with False.
    """

    graph: fx.Graph
    specialised: bool
    asks_for_gradients: bool


def symbolic_trace(
    classifier: nn.Module,
    *,
    training: bool | None,
    image_shape: tuple[int, ...] | None,
    known_functions: Collection[Callable[..., Any] | str],
    rules: Collection[Any] = (),
    changing_hooks: Collection[int] = (),
    defaults: Mapping[str, Any],
) -> Traced:
    """Trace a classifier's forward. Its parameters, buffers, flags and random state stay as they are.

    Args:
        classifier: Maps (N, C, H, W) to (N, K).
        training: Whether to trace the path that it takes in training mode; ``None``: that of its modules' own modes.
        image_shape: (C, H, W) of the images on which branches are decided; ``None``: ``default_image_shape``.
        known_functions: Functions, and names of methods, that are recorded as they are: not traced into or rewritten.
        rules: The keys of the user's rules: functions and methods likewise, and module classes that are kept whole.
        changing_hooks: The numbers of the hooks that are traced; all others become calls.
        defaults: Values of the forward's other arguments, which the trace holds constant.

    Raises:
        TraceError: Where the forward branches on values or on the batch size, or does what no graph can hold.
    """
    parameters = list(inspect.signature(classifier.forward).parameters.values())
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    required = [p.name for p in parameters if p.default is p.empty and p.kind not in variadic]
    if len(required) > 1 or not parameters:
        names = [p.name for p in parameters]
        given = ", ".join(f"{p.name}=..." for p in parameters[1:] if p.name in required)
        advice = f". Pass a module around it whose forward(self, images) returns self.model(images, {given})"
        raise TraceError(f"the classifier must take one argument (images), it takes {names}{advice if given else ''}")
    functions = (key for key in (*known_functions, *rules) if not isinstance(key, type))
    leaves = tuple(key for key in rules if isinstance(key, type))
    tracer = _Tracer(
        image_shape or default_image_shape(classifier), frozenset(functions), leaves, defaults, changing_hooks
    )
    try:
        with (
            training_mode(classifier.modules(), training),
            _undo_assignments(classifier),
            let_einops_record((_Proxy, _Attribute)),
            record_torch(tracer),
            record_functions(tuple(rules), tracer.record),
        ):
            graph = tracer.trace(classifier)
            if tracer.failure is not None:  # the forward has caught it, and gone another way than on numbers
                raise tracer.failure
    except Exception as error:
        cause = tracer.failure or error
        if isinstance(getattr(classifier, "module", None), nn.Module):
            raise TraceError(
                f"{type(classifier).__name__} cannot be traced: {cause}. It is wrapped around another module: pass "
                "that, classifier.module"
            ) from error
        raise TraceError(
            f"{type(classifier).__name__} cannot be traced: {cause} ({tracer.place(error)}). Rewrite that line without "
            "branching on tensor values or on the batch size; or keep the module that holds it whole, with a rule of "
            "its own: HeatmapDecoder(classifier, custom_rules={ModuleClass: rule}); or pass a part that traces"
        ) from error
    return Traced(graph, tracer.specialised, tracer.asks_for_gradients)


@contextmanager
def _undo_assignments(classifier: nn.Module) -> Iterator[None]:
    """Undo what a forward assigns to its modules, such as caches, and refuse random numbers outside of the graph."""
    attributes = [(m, dict(m.__dict__)) for m in classifier.modules()]
    containers = [
        (value, value.copy() if value else None)
        for _, saved in attributes
        for value in saved.values()
        if isinstance(value, (dict, list, set))
    ]
    states = torch.get_rng_state(), random.getstate()
    try:
        yield
        if not torch.equal(torch.get_rng_state(), states[0]) or random.getstate() != states[1]:
            raise TraceError("its forward draws random numbers in Python, which would be the same in each run")
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        for m, saved in attributes:
            for name in set(m.__dict__) - set(saved):
                del m.__dict__[name]
            m.__dict__.update(saved)
        for value, copy in containers:
            if copy is None:
                value.clear()
            elif value != copy if isinstance(value, set) else not _same(value, copy):
                value.clear()
                value.extend(copy) if isinstance(value, list) else value.update(copy)


def _same(value: Any, copy: Any) -> bool:
    """Whether a list or dict still holds the very objects that it held."""
    if len(value) != len(copy) or not all(map(operator.is_, value, copy)):
        return False
    return isinstance(value, list) or all(map(operator.is_, value.values(), copy.values()))


class _Proxy(fx.Proxy):
    """A traced value that can be asked for its number, truth or length; in-place operators stay so."""

    tracer: _Tracer

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # numpy and others look for protocols, which a traced value does not have
            raise AttributeError(name)
        if _is_size(self.node) and not hasattr(self.tracer.example(self), name):
            raise AttributeError(name)  # numpy asks whatever it is given for methods of arrays
        if name == "mT" or (name == "T" and self.dim() == 2):
            return self.transpose(-2, -1)
        return _Attribute(self, name)

    def __bool__(self) -> bool:
        return bool(self.tracer.number(self, bool))

    def __int__(self) -> int:
        return int(self.tracer.number(self, int))

    def __index__(self) -> int:
        return int(self.tracer.number(self, operator.index))

    def __float__(self) -> float:
        return float(self.tracer.number(self, float))

    def __ceil__(self) -> int:
        return int(self.tracer.number(self, math.ceil))

    def __floor__(self) -> int:
        return int(self.tracer.number(self, math.floor))

    def __trunc__(self) -> int:
        return int(self.tracer.number(self, math.trunc))

    def __round__(self, digits: int | None = None) -> Any:
        return self.tracer.number(self, lambda value: round(value, digits))

    def __len__(self) -> int:
        return self.tracer.length(self)

    def __hash__(self) -> int:
        # In a dict or a set a size is looked up by its number; as a key of its own it would silently be missing.
        if not _is_size(self.node):
            return object.__hash__(self)
        if isinstance(self.tracer.example(self), tuple) and not self.tracer.is_agreed(self):
            raise TypeError("a shape that holds the batch size is no key")  # einops then does without its cache
        return hash(self.tracer.constant(self))

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return sys.modules["numpy"].asarray(self.tracer.constant(self), dtype=dtype)  # which has asked

    def __divmod__(self, other: Any) -> tuple[Any, Any]:
        return self // other, self % other

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})


class _Attribute(_Proxy, Attribute):
    """An attribute or method of a traced value."""


def _in_place(function: Callable[..., Any]) -> Callable[[fx.Proxy, Any], fx.Proxy]:
    return lambda self, other: self.tracer.create_proxy("call_function", function, (self, other), {})


for _name, _function in IN_PLACE_OPERATORS.items():
    setattr(_Proxy, _name, _in_place(_function))


class _Constant:
    """A tensor that the forward neither computes nor takes from a parameter or buffer: a copy for each run."""

    __name__ = "constant"

    def __init__(self, value: Tensor) -> None:
        self.value = value.detach().clone()

    def __call__(self, device: torch.device) -> Tensor:
        return self.value.to(device, copy=True)


class _Tracer(fx.Tracer):
    # A buffer that the classifier's forward changes must change in each run, not once while tracing.
    proxy_buffer_attributes = True

    def __init__(
        self,
        image_shape: tuple[int, ...],
        known: frozenset[Callable[..., Any] | str],
        leaves: tuple[type, ...],
        defaults: Mapping[str, Any],
        changing_hooks: Collection[int] = (),
    ) -> None:
        # Functions of ``math`` are not recorded: they ask for the number. Some releases of torch declare exactly one
        # module here, so it is an empty one.
        super().__init__(autowrap_modules=(ModuleType("empty"),))
        self.image_shape = image_shape
        self.known = known
        self.leaves = leaves
        self.defaults = defaults
        self.changing_hooks = changing_hooks
        self.specialised = False
        self.asks_for_gradients = False
        self.failure: Exception | None = None
        self.examples: Examples | None = None
        self.running = False  # whether calls are run on fake tensors now: nothing is recorded then
        self.names: dict[int, str] = {}
        self.tensors: dict[str, Any] = {}
        self.constants: dict[int, tuple[Tensor, fx.Node]] = {}
        self.images: fx.Proxy

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        named = dict((*self.root.named_parameters(), *self.root.named_buffers()))
        self.names = {id(tensor): name for name, tensor in named.items()}
        # As they are now: the forward may assign traced values to the same names.
        self.tensors = {**{path: value for value, path in self.tensor_attrs.items()}, **named}
        first = next(iter(inspect.signature(self.root.forward).parameters))
        self.images = self.create_proxy("placeholder", first, (), {})
        return (lambda images: self._forward(images)), [self.images]

    def _forward(self, images: fx.Proxy) -> Any:
        # The other arguments keep their defaults, so that the forward may branch on them.
        def forward(*args: Any, **kwargs: Any) -> Any:
            return self.root.forward(*args, **{**self.defaults, **kwargs})

        result = self._call(self.root, forward, (images,), {})
        for path, module in self.root.named_modules():
            for name, value in module._buffers.items():
                if isinstance(value, fx.Proxy):
                    self._assign(f"{path}.{name}" if path else name, value)
        return result

    def _assign(self, name: str, value: fx.Proxy) -> None:
        """Let a buffer that the forward assigns anew hold that value after each run."""
        source = value.node.args[0] if value.node.args else None
        target = value.node.target
        in_place = target in IN_PLACE_OPERATORS.values() or str(target).endswith("_")
        if name not in self.tensors:
            raise self._fail(
                f"the forward fills the buffer {name!r}, which is None before: register it as a tensor of that shape, "
                "or keep the value in an attribute that is no buffer"
            )
        if any(v.shape != self.tensors[name].shape for v in self._values(value)):
            return  # a cache for another size, which each run makes for itself
        if not (in_place and isinstance(source, fx.Node) and source.target == name):
            # Detached: the next run begins with it as with a constant.
            held = (self.create_proxy("get_attr", name, (), {}), value.detach())
            self.create_proxy("call_method", "copy_", held, {})

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **options: Any) -> Any:
        if kind == "call_method" and target.startswith("__"):  # of a tensor that is not traced, with one that is
            kind, target, args = _operator(target, args)
        if kind in ("call_function", "call_method") and target not in self.known:
            if target in LOWERED_FUNCTIONS:
                return LOWERED_FUNCTIONS[target](*args, **kwargs)
            if kind == "call_function" and _is_python(target):
                return target(*args, **kwargs)
        return super().create_proxy(kind, target, args, kwargs, *rest, **options)

    def record(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """The call of a function that is recorded as it is, where a traced value enters it."""
        if self.running or not (holds_proxy(args) or holds_proxy(kwargs)):
            return NotImplemented
        return self.create_proxy("call_function", function, args, kwargs)

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, fx.Proxy):
            return a.node
        if isinstance(a, Tensor):
            name = self.names.get(id(a)) or self.tensor_attrs.get(a)
            if name is None and a.requires_grad:
                raise TraceError("the forward uses a parameter that is not registered in the classifier")
            return self._constant(a) if name is None else self.create_node("get_attr", name, (), {})
        if isinstance(a, numbers.Number) and not isinstance(a, (bool, int, float, complex)):  # numpy's
            return int(a) if isinstance(a, numbers.Integral) else float(a)  # type: ignore[arg-type]
        if isinstance(a, (FunctionType, MethodType)):
            raise TraceError(
                f"the forward gives the function {a.__name__} to a call of a tensor, as register_hook does: a decoder "
                "calls no hooks of gradients. Leave that call out, or make it only if x.requires_grad, which a trace "
                "answers with False"
            )
        return super().create_arg(a)

    def _constant(self, value: Tensor) -> fx.Node:
        # One node for each tensor: what the forward writes into it is there when it is read again.
        if id(value) not in self.constants:
            device = self.create_node("call_function", getattr, (self.images.node, "device"), {})
            node = self.create_node("call_function", _Constant(value), (device,), {})
            self.constants[id(value)] = (value, node)
        return self.constants[id(value)][1]

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, fx.Proxy]) -> Any:
        name = None if self.running or not isinstance(attr_val, Tensor) else self.names.get(id(attr_val))
        if name is None:
            return attr_val
        if name not in parameter_proxy_cache:
            parameter_proxy_cache[name] = self.create_proxy("get_attr", name, (), {})
        return parameter_proxy_cache[name]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        kind = parametrize.type_before_parametrizations(m)
        if kind in self.leaves:
            return True
        # The class of a parametrized module is one of torch's, whatever it was made of.
        if find_replaced(m) or self._lowered(m) is not None or not kind.__module__.startswith("torch."):
            return False
        parts = [name for name, _ in m.named_children() if name != "parametrizations"]
        return not parts and super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if self.running:
            return m.forward(*args, **kwargs)  # without the user's hooks
        if self.submodule_paths is not None and m not in self.submodule_paths:
            return self._call(m, m.forward, args, kwargs)  # made by the forward itself
        if self.is_leaf_module(m, self.path_of_module(m)):
            record = super().call_module
            return self._call(m, lambda *given, **named: record(m, forward, given, named), args, kwargs)
        lowered = self._lowered(m)
        inner = m.forward if lowered is None else partial(lowered, m)
        return super().call_module(m, lambda *given, **named: self._call(m, inner, given, named), args, kwargs)

    def _call(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Call a forward with the module's hooks: those that change something are traced, others recorded."""

        def call(hook: Hook, module: nn.Module, given: Any) -> Any:
            if hook.key in self.changing_hooks:
                return hook.function(module, *given)
            self.create_proxy("call_function", HookCall(hook, module), given, {})
            return None

        return call_with_hooks(m, forward, args, kwargs, call)

    def _lowered(self, m: nn.Module) -> Callable[..., Any] | None:
        kind = parametrize.type_before_parametrizations(m)
        if kind in self.leaves or find_replaced(m):
            return None
        return find_lowered(kind, m) or find_einops_forward(kind)

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        return (obj[i] for i in range(self.length(obj)))  # type: ignore[index]

    def number(self, proxy: fx.Proxy, convert: Callable[[Any], Any]) -> Any:
        """A number or truth value that the forward asks for; the graph holds for such images only from then on."""
        values = self._values(proxy)
        if isinstance(values[0], Tensor):
            raise self._fail(f"the forward branches on values of a tensor ({proxy.node.format_node()})")
        if proxy.node.target is getattr and proxy.node.args[1] == "requires_grad":
            self.asks_for_gradients = True
        return self._agreed(proxy, [convert(value) for value in values])

    def example(self, proxy: fx.Proxy) -> Any:
        """What a traced value is for some images."""
        return self._values(proxy)[0]

    def is_agreed(self, proxy: fx.Proxy) -> bool:
        """Whether a traced value is the same for any number of images."""
        first, *others = self._values(proxy)
        return all(other == first for other in others)

    def constant(self, value: Any) -> Any:
        """A value that is no tensor, such as the name of a device."""
        return self.number(value, lambda v: v) if isinstance(value, fx.Proxy) else value

    def length(self, proxy: fx.Proxy) -> int:
        """Number of elements of a shape, tuple, list or tensor."""
        values = self._values(proxy)
        lengths = [len(value) for value in values]
        if isinstance(values[0], torch.Size) or _split_by_list(proxy.node):
            return lengths[0]
        return int(self._agreed(proxy, lengths))

    def _values(self, proxy: fx.Proxy) -> tuple[Any, ...]:
        self.running = True
        try:
            if self.examples is None:
                self.examples = Examples(self.root, self.graph, self.tensors, self.image_shape)
            values = self.examples.values(proxy.node)
        finally:
            self.running = False
        for value in values:
            if isinstance(value, Failed):
                raise self._fail(
                    f"the forward asks for a number, which needs {value.node.format_node()}, and on images of shape "
                    f"{self.image_shape} that raises {type(value.error).__name__}: {value.error} "
                    "(if it takes images of another size only, give image_size)"
                )
        return values

    def _agreed(self, proxy: fx.Proxy, values: list[Any]) -> Any:
        if any(value != values[0] for value in values):
            found = " and ".join(f"{v} for {n} images" for v, n in zip(values, BATCHES, strict=True))
            raise self._fail(f"the forward branches on the batch size: {proxy.node.format_node()} is {found}")
        self.specialised = self.specialised or _depends_on_sizes(proxy.node)
        return values[0]

    def _fail(self, message: str) -> TraceError:
        # The first reason is kept: an argument parser may turn the error into one of its own.
        self.failure = self.failure or TraceError(message)
        return TraceError(message)

    def place(self, error: BaseException) -> str:
        """Where in the classifier's own code an error arose."""
        path = next((path for path, _ in reversed(self.module_stack.values())), "")
        where = f"in {path!r}" if path else "in its forward"
        frames = [f for f in traceback.extract_tb(error.__traceback__) if not _internal(f.filename)]
        return f"{where}, {frames[-1].filename}:{frames[-1].lineno}" if frames else where


def _depends_on_sizes(node: fx.Node) -> bool:
    """Whether a number can be another one for images of another size; the number of axes, the dtype cannot."""
    pending, seen = [node], {node}
    while pending:
        node = pending.pop()
        if node.op == "placeholder":
            return True
        if node.target is getattr and node.args[1] in _SIZELESS_ATTRIBUTES:
            continue
        if node.op == "call_method" and node.target in _SIZELESS_METHODS:
            continue
        pending.extend(n for n in node.all_input_nodes if n not in seen)
        seen.update(node.all_input_nodes)
    return False


def _is_size(node: fx.Node) -> bool:
    """Whether a node is a size, a type or a place, or computed from such alone."""
    if node.target is getattr:
        return node.args[1] in CONSTANT_ATTRIBUTES
    if node.op == "call_method":
        return node.target in SIZES
    plain = node.op == "call_function" and getattr(node.target, "__module__", "") == "_operator"
    return plain and len(node.all_input_nodes) > 0 and all(_is_size(source) for source in node.all_input_nodes)


def _split_by_list(node: fx.Node) -> bool:
    """Whether a node is a split into parts whose sizes the forward lists."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    sizes = [
        *node.args[1:2],
        *(node.kwargs.get(key) for key in ("split_size", "split_size_or_sections", "split_sizes")),
    ]
    return name in ("split", "split_with_sizes") and any(isinstance(s, (tuple, list)) for s in sizes)


def _operator(name: str, args: tuple[Any, ...]) -> tuple[str, Any, tuple[Any, ...]]:
    """``tensor.__radd__(other)`` as ``operator.add(other, tensor)``."""
    plain = name.strip("_")
    function = getattr(operator, name, None)
    if function is not None:
        return "call_function", function, args
    function = getattr(operator, f"__{plain[1:]}__", None)
    if plain.startswith("r") and function is not None:
        return "call_function", function, args[::-1]
    return "call_method", name, args


def _is_python(function: Any) -> bool:
    """Whether a function is to be traced into: it is neither torch's nor an operator."""
    module = (getattr(function, "__module__", None) or "").partition(".")[0]
    if isinstance(function, FunctionType):
        return module != "torch"
    return module in ("builtins", "math") and function is not getattr and not isinstance(function, type)


def _internal(filename: str) -> bool:
    return (
        Path(filename).parent == Path(__file__).parent
        or "/torch/" in filename.replace("\\", "/")
        or filename.startswith("<")
    )

"""Dry runs on a copy of a network: which modules it calls, what it returns, and what outlives a time step."""

from __future__ import annotations

import copy
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.hooks import RemovableHandle

from ..errors import CannotStepError
from ..state import ModelState, StateDict, isolated, random_state
from ..torch_internals import NORMALIZATIONS, buffers_of
from ..tree import map_leaves, map_tensors, tensors_in
from .base import Driver, unwrapped
from .hooks import copy_hooks, without_hooks
from .returned import lively_inputs

ABSENT = object()  # stands for an attribute that is not there
_RECORDS = ("v_seq", "state_seqs")  # where SpikingJelly's nodes record every step, beside their state
_MODULE_ATTRIBUTES = vars(nn.Module()).keys()


class Calls(NamedTuple):
    """What one run of a network called, in the order in which the calls returned.

    Attributes:
        modules: Names of all modules, those inside a neuron left out.
        neurons: Names of the neurons among them.
    """

    modules: list[str]
    neurons: list[str]

    @property
    def unique(self) -> bool:
        """Every neuron that is called is called once."""
        return len(self.neurons) == len(set(self.neurons)) > 0

    def steps(self) -> int:
        """How often the pattern of calls repeats, 1 if it does not.

        A neuron counts together with the call before it: one that serves two layers of a step stays one step.
        """
        calls = [i for i, name in enumerate(self.modules) if name in self.neurons]
        before = [self.modules[i - 1] if i else "" for i in calls]
        tail = self.modules[calls[-1] :] if calls else []
        for period in range(1, len(calls) // 2 + 1):
            pairs = zip(self.neurons, self.neurons[period:], before, before[period:], strict=False)
            same = [(one == other, b == c) for one, other, b, c in pairs]
            # The first step follows on what comes before the loop, a later one on the end of the step before.
            follows = same[0][1] or before[period] in tail
            if len(calls) % period == 0 and follows and same[0][0] and all(all(pair) for pair in same[1:]):
                return len(calls) // period
        return 1

    def interleave(self, steps: int) -> bool:
        """Whether the calls of the neurons fall into that many time steps, one after the other.

        Neurons that are not called in every step, or not equally often, do not count.
        """
        counts = {name: self.neurons.count(name) for name in self.neurons}
        regular = {name: count // steps for name, count in counts.items() if count % steps == 0}
        order = [name for name in self.neurons if name in regular]
        per_step = sum(regular.values())
        if not regular:
            return False
        pieces = [sorted(order[i : i + per_step]) for i in range(0, len(order), per_step)]
        return all(piece == pieces[0] for piece in pieces)


class Call(NamedTuple):
    """One call of a module: its name, and the tensors that it got and returned."""

    module: str
    inputs: list[Tensor]
    outputs: list[Tensor]


class TrialCopy:
    """A copy of a network to try things on; the network, its state, its monitors and other networks stay as they are.

    Args:
        net: The network, or its wrapper.
        driver: A driver to bind to the copy, which then is in evaluation mode.
        precise: Compute in double precision, where rounding flips no spikes.
        training: Put the copy into training or evaluation mode. ``None``: it has the network's modes.

    Attributes:
        net: The copy.
        latest: The copy that ran last: this one, or a fresh one.
        state: Its recurrent state.
        drew: Whether the last run drew random numbers.

    Raises:
        CannotStepError: If the network cannot be copied.
    """

    drew = False

    def __init__(
        self, net: nn.Module, driver: Driver | None = None, *, precise: bool = False, training: bool | None = None
    ) -> None:
        self._begin(net, {}, driver, precise, training)

    def _begin(
        self,
        net: nn.Module,
        weights: dict[str, nn.Parameter],
        driver: Driver | None,
        precise: bool,
        training: bool | None,
    ) -> None:
        self._made_of = (driver, precise, training)
        self._original = net
        self.net = self.latest = _copy(unwrapped(net), weights)
        if training not in (None, self.net.training):
            self.net.train() if training else self.net.eval()
        if precise:
            self.net.double()
        self.state = ModelState(self.net)
        self._driver = driver
        if driver is not None:
            self.net.eval()
            self._driver = driver.on_copy(self.net, self.state)
            self.state.reset()

    def fresh(self, *, training: bool | None = None) -> TrialCopy:
        """Another copy of the network, as it is before its first input, which shares the weights of this one.

        There no run fails because of a state of other shapes that no reset reaches.
        Weights that this one drew when its first input showed their sizes are copied: each copy would draw its own.

        Args:
            training: Whether it is in training mode; ``None``: as this one.
        """
        driver, precise, mode = self._made_of
        weights = {name: weight for name, weight in self.net.named_parameters() if type(weight) is nn.Parameter}
        fresh = TrialCopy.__new__(TrialCopy)
        fresh._begin(self._original, weights, driver, precise, mode if training is None else training)
        tensors = [*fresh.net.named_parameters(), *fresh.net.named_buffers()]
        unsized = {name for name, tensor in tensors if is_lazy(tensor)}
        own = self.net.state_dict().items() if unsized else ()
        drawn = {name: tensor for name, tensor in own if name in unsized and not is_lazy(tensor)}
        fresh.net.load_state_dict(drawn, strict=False)
        self.latest = fresh.net
        return fresh

    @contextmanager
    def _apart(self) -> Iterator[None]:
        """The random numbers that the network would get, for every run, and no other network is touched."""
        with torch.random.fork_rng(), isolated(self.net):
            before = random_state()
            yield
            self.drew = not all(map(torch.equal, before, random_state()))

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """One call of the copy, without gradients unless ``forward`` hangs hooks on its tensors."""
        try:
            with torch.no_grad(), self._apart():
                return self.net(*args, **kwargs)
        except RuntimeError as error:
            if "require" not in str(error) or "grad" not in str(error):
                raise
        with torch.enable_grad(), self._apart():
            return self.net(*args, **kwargs)

    # ------------------------------------------------------------------ what the network calls and returns

    def calls(self, x: Tensor) -> Calls:
        """What the network calls on ``x`` as its first input, without gradients."""
        fresh = self.fresh()
        calls, neurons = Calls([], []), dict(fresh.state.modules())
        inside = set[int]()
        for name, neuron in [*neurons.items()]:
            parts = {id(module) for module in neuron.modules() if module is not neuron}
            if parts.isdisjoint(map(id, neurons.values())):
                inside |= parts
            elif name == "":  # the whole network has a state of its own, and its neurons tell the steps
                del neurons[name]

        def note(name: str) -> Callable[..., None]:
            def hook(*_: Any) -> None:
                calls.modules.append(name)
                if name in neurons:
                    calls.neurons.append(name)

            return hook

        watched = ((name, module) for name, module in fresh.net.named_modules() if id(module) not in inside)
        with _attached(module.register_forward_hook(note(name)) for name, module in watched):
            fresh.state.reset()
            fresh.run(x)
        return calls

    def forgotten(self, x_t: Tensor) -> list[str]:
        """Names of neurons whose state does not survive from one call of the network to the next."""
        forgotten: list[str] = []
        passed: dict[str, list[Tensor]] = {}  # what a neuron that does not keep its state got as its state
        returned: dict[str, list[Tensor]] = {}

        def note(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any, output: Any) -> None:
                passed[name] = [tensor.clone() for tensor in _passed(args)]
                returned[name] = [tensor.clone() for tensor in tensors_in(output)]

            return hook

        def watch(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any) -> None:
                now = self.state.get()[name]
                replaced = any(isinstance(v, Tensor) and now.get(key) is not v for key, v in before[name].items())
                state = _passed(args)
                is_first = bool(state) and _equal(state, passed.get(name, []))
                after = returned.get(name, [])[1:]  # (output, *state)
                if replaced or (is_first and bool(after) and not _equal(state, after[-len(state) :])):
                    forgotten.append(name)

            return hook

        neurons = self.state.modules()
        self.state.reset()
        with _attached(module.register_forward_hook(note(name)) for name, module in neurons):
            self.run(x_t)
        before = self.state.get()
        with _attached(module.register_forward_pre_hook(watch(name)) for name, module in neurons):
            self.run(x_t)
        return forgotten

    def tell_normalizations_apart(self) -> None:
        """Give normalizations the statistics of some training: those of single time steps are equal before it."""
        with torch.random.fork_rng():
            for norm in self.net.modules():
                mean = getattr(norm, "running_mean", None)
                if isinstance(norm, NORMALIZATIONS) and mean is not None:
                    mean.add_(0.5 * torch.randn_like(mean))

    @contextmanager
    def larger_weights(self) -> Iterator[None]:
        """Context of weights eight times as large, by which neurons fire more and membranes grow."""
        # Not decays, by which the state would grow without bound. A power of two comes off again exactly.
        weights = [w.detach() for w in self.net.parameters() if w.dim() > 1 and w.is_floating_point()]
        for weight in weights:
            weight.mul_(8.0)
        try:
            yield
        finally:
            for weight in weights:
                weight.div_(8.0)

    def passes_on(self, x_t: Tensor, names: list[str]) -> bool:
        """Whether what the network returns besides its output is a state: passed on as further arguments, it matters.

        Args:
            x_t: One time step.
            names: Of these arguments.
        """
        self.state.reset()
        returned = self.run(x_t)
        if not isinstance(returned, (tuple, list)) or len(returned) != 1 + len(names):
            return False
        after, returned = self.state.snapshot(), map_tensors(Tensor.clone, returned)
        try:
            on = tensors_in(self.run(x_t, **dict(zip(names, returned[1:], strict=True))))
        except Exception:
            return False
        self.state.restore(after)
        off = tensors_in(self.run(x_t))  # with the state itself: the output may be silent
        return not all(map(torch.equal, on, off))

    def records(
        self, x: Tensor, steps: int, noise: Container[str] = ()
    ) -> tuple[Any, dict[str, list[list[Tensor | None]]]]:
        """What the network returns on ``x`` as its first input, and its modules in each of the ``steps``.

        Modules that are not called in every step are left out, and ``None`` stands for tensors whose size shows that
        they are not part of the result. The modules come in the order of their calls within the last step. Those in
        ``noise`` return random numbers in place of what they compute.
        """
        returned = self._recorded(x, {}, set())
        sizes = {tensor.numel() for tensor in tensors_in(returned)}
        sizes |= {size // steps for size in sizes if size % steps == 0}
        calls: dict[str, list[list[Tensor | None]]] = {}
        returned = self._recorded(x, calls, sizes, noise)
        every = {name: len(found) // steps for name, found in calls.items() if len(found) % steps == 0}
        return returned, {name: calls[name][count - 1 :: count] for name, count in every.items()}

    def series(
        self, x: Tensor, size: int, noise: Container[str] = ()
    ) -> tuple[Any, dict[str, list[list[Tensor | None]]]]:
        """The same of a copy that takes several steps at once: modules that return ``size`` numbers a step, time first.

        Of modules that are called several times, the last call counts.
        """
        calls: dict[str, list[list[Tensor | None]]] = {}
        returned = self._recorded(x, calls, {size * len(x)}, noise)
        records: dict[str, list[list[Tensor | None]]] = {}
        for name, found in calls.items():
            series = [tensor.reshape(len(x), size) for tensor in found[-1] if tensor is not None]
            records[name] = [list(step) for step in zip(*series, strict=True)]
        return returned, records

    def _recorded(
        self, x: Tensor, calls: dict[str, list[list[Tensor | None]]], sizes: set[int], noise: Container[str] = ()
    ) -> Any:
        def keep(name: str) -> Callable[..., Any]:
            def hook(module: nn.Module, args: Any, output: Any) -> Any:
                if name in noise:
                    output = map_tensors(_noise, output)
                tensors = [tensor.clone() if tensor.numel() in sizes else None for tensor in tensors_in(output)]
                if any(tensor is not None for tensor in tensors):
                    calls[name] = [*calls.pop(name, []), tensors]  # to the end: the order of the last calls
                return output

            return hook

        fresh = self.fresh()
        with _attached(module.register_forward_hook(keep(name)) for name, module in fresh.net.named_modules() if name):
            fresh.state.reset()
            return fresh.run(x)

    def trainable(self, name: str) -> bool:
        """Whether this module is a layer with weights to train."""
        module = self.net.get_submodule(name)
        return any(parameter.requires_grad for parameter in module.parameters(recurse=False))

    # ------------------------------------------------------------------ what the driver makes of it

    def advance(self, x: Tensor) -> list[Tensor]:
        """Outputs of some steps, as the driver gives them, without gradients."""
        driver = self._driver
        assert driver is not None
        with torch.no_grad(), self._apart():
            if not driver.pushes:
                return list(driver.advance(x))
            outputs: list[Tensor] = []

            def take(output: Tensor) -> bool:
                outputs.append(output.clone())
                return False  # nothing is detached, as there is no graph

            driver.run(x, take)
            return outputs

    def lively(self, x: Tensor, count: int = 3) -> list[Tensor]:
        """The input, or larger and other ones of its shape, on which most modules do something.

        A network that is silent on an input, as untrained ones with high thresholds are, shows nothing of what it is.
        All modules count: neurons that the package does not know are among them. The liveliest input comes first.
        """
        if not x.is_floating_point():
            return [x]
        called, active = set[str](), set[str]()

        def watch(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any, output: Any) -> None:
                called.add(name)
                if any(bool((tensor != tensor.flatten()[0]).any()) for tensor in tensors_in(output) if tensor.numel()):
                    active.add(name)

            return hook

        found: list[tuple[int, Tensor]] = []
        with (
            _attached(module.register_forward_hook(watch(name)) for name, module in self.net.named_modules()),
            torch.random.fork_rng(),
        ):
            for candidate in lively_inputs(x):
                active.clear()
                if self.trial(candidate):
                    found.append((len(active), candidate))
                if sum(number == len(called) for number, _ in found) == count:
                    break
        self.state.reset()
        most = max((number for number, _ in found), default=0)
        return [candidate for number, candidate in found if number == most][:count] or [x]

    def followed(self, x: Tensor, *, tensors: bool = False) -> tuple[list[Tensor], list[Call]]:
        """Outputs of some steps from reset, and the calls of modules on the way, in the order of their return.

        Args:
            x: The steps.
            tensors: Whether to keep what each call got and returned.
        """
        calls: list[Call] = []

        def keep(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any, output: Any) -> None:
                sides = [tensors_in(side) if tensors else [] for side in (args, output)]
                calls.append(Call(name, *([tensor.clone() for tensor in side] for side in sides)))

            return hook

        self.state.reset()
        with _attached(module.register_forward_hook(keep(name)) for name, module in self.net.named_modules()):
            return self.advance(x), calls

    def trial(self, x: Tensor) -> list[Tensor]:
        """Outputs and states after some steps from reset; empty if the network does not run."""
        self.state.reset()
        try:
            return [tensor.clone() for tensor in (*self.advance(x), *tensors_in(self.carried()))]
        except Exception:  # training, or a later check, says what is wrong
            return []

    def carried(self) -> dict[str, StateDict]:
        """The state that the next call goes on from: without the records of the steps of this one."""
        states = self.state.get().items()
        return {name: {key: state[key] for key in state if key not in _RECORDS} for name, state in states}

    def attributes(self) -> dict[str, Any]:
        """Copies of what the modules hold, by name; without parameters."""
        return {
            f"{prefix}.{name}" if prefix else name: map_leaves(_cloned, value)
            for prefix, module in self.net.named_modules()
            for name, value in (vars(module) | buffers_of(module)).items()
            if name not in _MODULE_ATTRIBUTES and not is_lazy(value)
        }

    def put_back(self, attributes: dict[str, Any]) -> None:
        """Set what :meth:`attributes` returned, or remove what was not there."""
        for name, value in attributes.items():
            owner, _, attribute = name.rpartition(".")
            module = self.net.get_submodule(owner)
            if value is ABSENT:
                vars(module).pop(attribute, None)
            else:
                setattr(module, attribute, map_leaves(_cloned, value))


@contextmanager
def _attached(hooks: Iterable[RemovableHandle]) -> Iterator[None]:
    """Context at whose end the hooks are removed, whatever happens in it."""
    handles = list(hooks)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _copy(net: nn.Module, weights: dict[str, nn.Parameter]) -> nn.Module:
    """A copy of a network, whose parameters share the memory of those given by name."""
    memo: dict[int, Any] = {
        id(parameter): nn.Parameter(weights[name].detach(), parameter.requires_grad)
        for name, parameter in net.named_parameters()
        if name in weights and type(parameter) is nn.Parameter
    }

    def cut(tensor: Tensor) -> Tensor:
        if tensor.grad_fn is not None:  # deepcopy refuses these
            memo[id(tensor)] = tensor.detach().clone()
        return tensor

    for module in net.modules():
        map_tensors(cut, vars(module))
    memo.update(without_hooks(net))
    try:
        copied = copy.deepcopy(net, memo)
    except Exception as error:
        raise _cannot_copy(net, error) from error
    copy_hooks(net, copied, memo)
    return copied


def _cannot_copy(net: nn.Module, error: Exception) -> CannotStepError:
    remedy = (
        "pass driver='step' if forward() takes one time step; otherwise take what copy.deepcopy refuses out of the "
        "network's attributes"
    )
    if any(map(is_lazy, net.buffers())):
        remedy = (
            "give its lazy normalizations their size first: with torch.no_grad(): net(x), or net(x[0]) if forward() "
            "takes one time step"
        )
    what = f"{type(net).__name__} cannot be copied for the dry run that finds out how to call it ({error!r})"
    return CannotStepError(what, remedy)


def _cloned(leaf: Any) -> Any:
    """A copy of what an attribute holds; modules, and what cannot be copied, as they are."""
    if isinstance(leaf, nn.Module):
        return leaf
    try:
        return leaf.clone() if isinstance(leaf, Tensor) else copy.deepcopy(leaf)
    except Exception:
        return leaf


def _noise(tensor: Tensor) -> Tensor:
    return torch.rand_like(tensor) if tensor.is_floating_point() else tensor


def _passed(args: tuple[Any, ...]) -> list[Tensor]:
    """What a module got besides its input, constants of the network apart."""
    return [tensor for tensor in tensors_in(args[1:]) if not isinstance(tensor, nn.Parameter)]


def _equal(ones: list[Tensor], others: list[Tensor]) -> bool:
    return len(ones) == len(others) and all(map(torch.equal, ones, others))

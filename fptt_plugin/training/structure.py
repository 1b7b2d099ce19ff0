"""Whether the network still has the parameters and neurons that the trainer was built for."""

from __future__ import annotations

from operator import is_
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from ..errors import CallOrderError, WeightsChangedError
from ..state import ModelState
from ..torch_internals import children_of, parameters_of


class Structure:
    """Notices parameters and neurons that joined a network after its trainer was built.

    Args:
        net: The network.
        optimizer: Its optimizer, to which parameters may be added.
    """

    def __init__(self, net: nn.Module, optimizer: Optimizer) -> None:
        self._net = net
        self._optimizer = optimizer
        self._neurons = dict(ModelState(net).modules())
        self._left_out = [p for p in net.parameters() if not _is_in(p, optimizer)]  # on purpose
        self._look()

    def _look(self) -> None:
        parts: list[dict[str, Any]] = [part(m) for m in self._net.modules() for part in (parameters_of, children_of)]
        self._seen = [(part, [*part.values()]) for part in parts if part]
        self._empty = [part for part in parts if not part]

    def check(self) -> bool:
        """Check that everything in the network is trained as when the trainer was built.

        Returns:
            Whether modules or parameters are others than at the last check.

        Raises:
            WeightsChangedError: If a parameter has come that the optimizer does not have.
            CallOrderError: If a neuron has come or gone.
        """
        if not self._has_changed():
            return False
        self._check_neurons()
        self._check_parameters()
        self._look()
        return True

    def _has_changed(self) -> bool:
        for part, values in self._seen:
            if len(part) != len(values) or not all(map(is_, part.values(), values)):
                return True
        return any(self._empty)

    def _check_parameters(self) -> None:
        known = {id(parameter) for parameter in self._left_out}
        strange = [
            name
            for name, parameter in self._net.named_parameters()
            if parameter.requires_grad and id(parameter) not in known and not _is_in(parameter, self._optimizer)
        ]
        if strange:
            raise WeightsChangedError(
                f"the optimizer does not have the parameter(s) {', '.join(map(repr, strange))}, which came into the "
                "network after the trainer was built, so they would never be trained",
                "build optimizer and trainer after the last change to the network; for a layer that was added, "
                "optimizer.add_param_group() is enough, and weights are loaded without assign=True",
            )

    def _check_neurons(self) -> None:
        neurons = dict(ModelState(self._net).modules())
        changed = [name for name, module in neurons.items() if self._neurons.get(name) is not module]
        changed += [name for name in self._neurons if name not in neurons]
        if changed:
            raise CallOrderError(
                f"the neuron(s) {', '.join(map(repr, changed))} came into the network, or went, after the trainer was "
                "built, so it neither resets nor detaches their state",
                "call trainer.regularizer.remove() and build another trainer on the same optimizer, to which the "
                "parameters of new layers are added with add_param_group(); or build both again",
            )


def _is_in(parameter: Tensor, optimizer: Optimizer) -> bool:
    return any(parameter is other for group in optimizer.param_groups for other in group["params"])

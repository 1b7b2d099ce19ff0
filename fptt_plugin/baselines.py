"""What FPTT is measured against, behind the trainer's interface: truncated and full backpropagation through time."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer

from .errors import CheckpointError
from .trainer import FPTTTrainer
from .training import LossFunction

_REGULARIZER = ("alpha", "beta", "rho", "variant", "average_weights")


class TruncatedBPTT(FPTTTrainer):
    """Truncated backpropagation through time: FPTT with the regularizer off, the control of every FPTT result.

    Args:
        net: See :class:`~fptt_plugin.FPTTTrainer`.
        optimizer: Its optimizer.
        loss_fn: Loss of one time step.
        **options: Those of :class:`~fptt_plugin.FPTTTrainer`, except the regularizer's.

    Raises:
        TypeError: If an option of the regularizer is given.

    Example:
        >>> import torch, snntorch as snn
        >>> net = nn.Sequential(nn.Linear(2, 3), snn.Leaky(beta=0.9, init_hidden=True, output=True))
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> trainer = TruncatedBPTT(net, optimizer, nn.CrossEntropyLoss(), window=5)
        >>> trainer.train_sequence(torch.rand(20, 4, 2), torch.randint(3, (4,))).updates
        4
    """

    def __init__(self, net: nn.Module, optimizer: Optimizer, loss_fn: LossFunction, **options: Any) -> None:
        given = [name for name in _REGULARIZER if name in options]
        if given:
            raise TypeError(f"{type(self).__name__} has no regularizer and takes no {', '.join(given)}")
        super().__init__(net, optimizer, loss_fn, alpha=0.0, average_weights="never", **options)

    def check_state_dict(self, state: dict[str, Any]) -> None:
        """Check that a state belongs to this network and has no regularizer, which would come back with it.

        Raises:
            CheckpointError: If it belongs to another network, or was trained with ``alpha > 0``.
        """
        super().check_state_dict(state)
        alpha = state["regularizer"]["alpha"]
        if alpha > 0:
            raise CheckpointError(
                f"it was trained with alpha={alpha}, and {type(self).__name__} has no regularizer",
                "load it into an FPTTTrainer, or the weights alone, net.load_state_dict(torch.load(path)['net'])",
            )


class BPTT(TruncatedBPTT):
    """Backpropagation through the whole sequence: one update per sequence, memory grows with its length.

    With the default ``loss_every`` the loss is that of the last step; ``loss_every=1`` takes the mean over all steps.

    Args:
        net: See :class:`~fptt_plugin.FPTTTrainer`.
        optimizer: Its optimizer.
        loss_fn: Loss of one time step.
        **options: Those of :class:`TruncatedBPTT`, except ``window`` and ``update_every``.

    Example:
        >>> import torch, snntorch as snn
        >>> net = nn.Sequential(nn.Linear(2, 3), snn.Leaky(beta=0.9, init_hidden=True, output=True))
        >>> trainer = BPTT(net, torch.optim.SGD(net.parameters(), lr=0.1), nn.CrossEntropyLoss())
        >>> trainer.train_sequence(torch.rand(20, 4, 2), torch.randint(3, (4,))).updates
        1
    """

    def __init__(self, net: nn.Module, optimizer: Optimizer, loss_fn: LossFunction, **options: Any) -> None:
        for name in ("window", "update_every"):
            if name in options:
                raise TypeError(f"BPTT goes back through the whole sequence and takes no {name}")
        super().__init__(net, optimizer, loss_fn, window=None, **options)

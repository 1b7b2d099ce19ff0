"""Batch normalization per time step in networks of snnTorch."""

from __future__ import annotations

from typing import Any

import torch
from snntorch import SLSTM, Alpha, Lapicque, Leaky, RLeaky, RSynaptic, SConv2dLSTM, SpikingNeuron, Synaptic
from torch import Tensor

from ..neurons import NormState, PerStepNorm


class BufferedNorm(PerStepNorm):
    """Keeps its state in non-persistent buffers, as snnTorch's neurons keep theirs."""

    step: Tensor
    mean: Tensor
    m2: Tensor

    def _init_state(self) -> None:
        for name in NormState._fields:
            dtype = torch.long if name == "step" else None
            self.register_buffer(name, torch.zeros(0, dtype=dtype), persistent=False)
        SpikingNeuron.instances.append(restart_entry(self))

    def reset(self) -> None:
        """Go back to the first step; weights and running statistics stay."""
        for name in NormState._fields:
            setattr(self, name, getattr(self, name).detach().new_zeros(0))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize the next time step; another batch size begins at the first step.

        Args:
            x: ``[B, C]`` or ``[B, C, H, W]``.

        Returns:
            The normalized step, shape of ``x``.
        """
        begins = len(self.step) != len(x)
        state = self.initial_state(x) if begins else NormState(self.step, self.mean, self.m2)
        y, (self.step, self.mean, self.m2) = self.normalize(x, state)
        return y


class PerStepBatchNorm1d(BufferedNorm):
    """Batch normalization of a flat drive with statistics of each time step.

    Step ``t`` of a sequence is normalized by the mean and variance of the batch at that step, and has a row of its own
    in the running statistics, which evaluation uses. Scale and shift are shared by all steps. It is the normalization
    of the authors' networks (``SeparatedBatchNorm1d`` in ``fptt_mnist/snn_models_LIF4_save4_l2.py`` of
    github.com/byin-cwi/sFPTT), after Cooijmans et al., "Recurrent Batch Normalization" (arXiv:1603.09025). With
    ``accumulate=True`` the statistics are those of all steps so far, as in Jiang et al., "TAB: Temporal Accumulated
    Batch Normalization" (ICLR 2024): they settle, so a stream without end needs no more ``steps`` than that takes, and
    a stream of one sample can be trained.

    The count of steps is recurrent state. The trainer resets it before each sequence, and ``utils.reset(net)`` resets
    it with the neurons. In a ``forward`` that loops over time and starts its neurons by ``reset_mem()``, call
    :meth:`reset` at the start, too. Without it, every call of ``net(x)`` outside of the trainer continues to count, and
    its steps get the statistics of later ones. Samples that begin a new sequence while others go on count from 0; a
    batch of samples at different steps is normalized by the statistics of all of them.

    Args:
        num_features: Neurons ``N``.
        steps: Time steps with statistics of their own; later ones use the last step's.
        eps: Added to the variance. Default 1e-5.
        momentum: Share of the batch in the running statistics. Default 0.1.
        gamma: Initial scale. Default 1; the authors' code starts at 0.1, so that the drive of saturating units stays
            small.
        affine: Learn scale and shift. Default True.
        accumulate: Statistics of all steps so far. Default False.

    Shape:
        Input and output ``[B, N]``, one time step.

    Raises:
        ConfigurationError: If an option has an impossible value.
        ConfigurationTypeError: If an option has another type.

    Example:
        >>> import torch
        >>> norm = PerStepBatchNorm1d(3, steps=10)
        >>> norm(torch.randn(8, 3)).mean(0).abs().max() < 1e-6
        tensor(True)
        >>> norm.step
        tensor([1, 1, 1, 1, 1, 1, 1, 1])
        >>> norm.reset(); norm.step
        tensor([], dtype=torch.int64)
    """

    dimensions = 2


class PerStepBatchNorm2d(BufferedNorm):
    """:class:`PerStepBatchNorm1d` for feature maps: statistics of each channel over batch, height and width.

    Args:
        num_features: Channels ``C``.
        steps: Time steps with statistics of their own; later ones use the last step's.
        eps: Added to the variance. Default 1e-5.
        momentum: Share of the batch in the running statistics. Default 0.1.
        gamma: Initial scale. Default 1; the authors' code starts at 0.1.
        affine: Learn scale and shift. Default True.
        accumulate: Statistics of all steps so far. Default False.

    Shape:
        Input and output ``[B, C, H, W]``, one time step.

    Raises:
        ConfigurationError: If an option has an impossible value.
        ConfigurationTypeError: If an option has another type.

    Example:
        >>> import torch
        >>> PerStepBatchNorm2d(2, steps=10)(torch.randn(4, 2, 5, 5)).shape
        torch.Size([4, 2, 5, 5])
    """

    dimensions = 4


class _AnyNeuron(Leaky, RLeaky, Synaptic, RSynaptic, Alpha, Lapicque, SLSTM, SConv2dLSTM):
    """A neuron of every kind that ``utils.reset`` knows; never built."""


class _RestartEntry:
    """Entry of ``SpikingNeuron.instances`` through which ``utils.reset`` and ``reset_hidden`` reach a normalization.

    They walk the list for neurons of one class and assign zeros to their states. What is assigned here, by whichever
    class, restarts the normalization; what is read is its count of steps, which has no graph to be detached from.
    """

    def __init__(self, norm: BufferedNorm) -> None:
        self.__dict__["_norm"] = norm

    @property  # type: ignore[misc]
    def __class__(self) -> Any:  # the library asks isinstance()
        return _AnyNeuron

    def init_rleaky(self) -> tuple[None, None]:
        return None, None  # RLeaky assigns them

    def __getattr__(self, name: str) -> Any:
        return self._norm.step

    def __setattr__(self, name: str, value: Any) -> None:
        self._norm.reset()


def restart_entry(norm: BufferedNorm) -> Any:
    """Return the entry of a normalization in ``SpikingNeuron.instances``."""
    return _RestartEntry(norm)

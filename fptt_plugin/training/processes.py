"""The processes of a ``DistributedDataParallel``: each backward pass of one is a backward pass of all."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import BatchError, CallOrderError, ErrorList
from ..state import ModelState
from ..torch_internals import buffers_of


class Processes:
    """Lets the processes that train one network agree on what is due; a single process agrees with itself.

    Without, a process that lacks one backward pass would pair its next gradient with the others' present one, and stay
    behind for good.

    Args:
        net: The network, perhaps wrapped in ``DistributedDataParallel``.

    Attributes:
        parallel: Whether there are several processes.
    """

    def __init__(self, net: nn.Module) -> None:
        self._net = net if is_parallel(net) else None
        self.parallel = self._net is not None

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        return flag if self._net is None else self._extremes([flag])[1][0]

    def check_window(self, *, has_loss: bool, update_is_due: bool, last: bool) -> None:
        """Check that the processes go on alike at the end of a window.

        Raises:
            BatchError: In every process, if some have a loss to learn from and others have none.
            CallOrderError: In every process, if the sequences of some end here and those of others do not.
        """
        if self._net is None:
            return
        all_have, any_has = self._extremes([has_loss, update_is_due, last])
        if all_have[1:] != any_has[1:]:
            raise CallOrderError(
                "the processes of DistributedDataParallel are at different places: here "
                f"the sequence {'ends' if last else 'goes on'}, in another process it "
                f"{'goes on' if last else 'ends'}, or trainers have other strides",
                "give every process sequences of the same length, padded and with a mask, and the same options",
            )
        if all_have != any_has:
            raise BatchError(
                f"this process has {'a' if has_loss else 'no'} loss to learn from in this window, and another process "
                f"of DistributedDataParallel has {'none' if has_loss else 'one'}, so there is no mean gradient",
                "give every process a step with a target, with one sample or more that the mask leaves in, or none",
            )

    def _extremes(self, flags: list[bool]) -> tuple[list[bool], list[bool]]:
        """Which flags are set in all processes, and which in any; one exchange of a few numbers."""
        assert self._net is not None
        numbers = torch.tensor([*flags, *(not flag for flag in flags)], dtype=torch.int32, device=_device(self._net))
        dist.all_reduce(numbers, op=dist.ReduceOp.MAX, group=self._net.process_group)
        found = [bool(number) for number in numbers.tolist()]
        return [not unset for unset in found[len(flags) :]], found[: len(flags)]


def is_parallel(net: nn.Module) -> bool:
    """Return whether several processes train the network together."""
    return isinstance(net, nn.parallel.DistributedDataParallel) and net.process_group.size() > 1


def _device(net: nn.Module) -> torch.device:
    parameter: Tensor = next(net.parameters())
    return parameter.device


def check_data_parallel(problems: ErrorList, net: nn.Module, state: ModelState, variant: str) -> None:
    """Record options under which the processes of a ``DistributedDataParallel`` would part."""
    if not is_parallel(net):
        return
    problems.check(
        variant != "gradient",
        "variant='gradient' takes its second gradient in each process by itself, so that the weights of "
        "DistributedDataParallel would part",
        "leave variant at its default, or train in one process",
    )
    entries = state.get()
    names = [name for name, module in state.modules() if entries[name].keys() & buffers_of(module).keys()]
    problems.check(
        not (net.broadcast_buffers and names),
        f"DistributedDataParallel would replace the state of {', '.join(map(repr, names))}, kept in buffers, by that "
        "of process 0 at every call",
        "build it with broadcast_buffers=False",
    )

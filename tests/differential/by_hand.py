"""FPTT written out from the paper's equations, with an own loop over time: shares nothing with the trainer.

It calls the same modules and has its own schedule, losses, class distribution, reset and detachment of the state, and
the update of ``tests/reference.py`` around an optimizer without hooks.
"""

from __future__ import annotations

from collections import defaultdict

import reference
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class Memories:
    """All that the modules of a network keep from step to step, wherever they keep it."""

    def __init__(self, net: nn.Module) -> None:
        modules = [module for module in net.modules() if not isinstance(module, _BatchNorm)]
        self.places = [getattr(m, name) for m in modules for name in ("_buffers", "_memories") if hasattr(m, name)]
        self.first = self.get()

    def get(self) -> list[dict]:
        return [dict(place) for place in self.places]

    def set(self, values: list[dict]) -> None:
        for place, value in zip(self.places, values, strict=True):
            place.update(value)

    def reset(self) -> None:
        self.set(self.first)

    def detach(self) -> None:
        self.set([{key: detached(value) for key, value in place.items()} for place in self.places])


def detached(value):
    if isinstance(value, (tuple, list)):
        return tuple(map(detached, value))
    return value.detach() if isinstance(value, Tensor) else value


class Sequences:
    """A batch as its samples see it: which steps count, and where each sample ends."""

    def __init__(self, x: Tensor, y: Tensor, mask: Tensor | None, *, per_step: bool, ignored: int = -100) -> None:
        self.x, self.y, self.per_step = x, y, per_step
        self.steps, self.size = x.shape[:2]
        time, shape = torch.arange(self.steps).unsqueeze(1), (self.steps, self.size)
        if mask is None:
            counts = torch.ones(shape, dtype=torch.bool)
        else:
            counts = (mask if mask.dtype == torch.bool else time < mask).expand(shape).clone()
        if not y.is_floating_point():
            counts &= y != ignored
        self.counts = counts
        ends_early = mask is not None and not per_step and (mask.dtype != torch.bool or mask.dim() == 2)
        # The length of a sample reaches to its last step that counts; 0 if none does.
        lengths = (counts * (time + 1)).amax(0).tolist() if ends_early else [self.steps] * self.size
        self.lengths: list[int] = lengths

    def target(self, t: int) -> Tensor:
        return self.y[t] if self.per_step else self.y

    def due(self, t: int, scheduled: bool) -> dict[int, list[int]]:
        """Samples with a loss at step ``t``, by length."""
        found = defaultdict(list)
        for i, n in enumerate(self.lengths):
            if self.counts[t, i] and t < n and (scheduled or t + 1 == n):
                found[n].append(i)
        return dict(sorted(found.items()))


class ByHand:
    """Trains a network; ``options`` are those of the trainer.

    Args:
        net: The network.
        kind: What it is.
        optimizer: Its optimizer, without hooks.
        loss_fn: Loss of one step.
        options: See the trainer.
        readout: What loss and decision see: of each step, or the mean, sum or maximum so far.
        factor: Of the sum.
        pick: Picks the output from what the network returns.
        nudge: Called after each update and each batch: may round the weights another way.
    """

    def __init__(self, net, kind, optimizer, loss_fn, options, *, readout, factor, pick, nudge=None) -> None:
        self.net, self.kind, self.optimizer, self.loss_fn = net, kind, optimizer, loss_fn
        self.options, self.readout, self.factor, self.pick, self.nudge = options, readout, factor, pick, nudge
        self.memories, self.updates = Memories(net), 0
        self.table: dict[int, Tensor] = {}  # Q[t], one row per class
        self.signs = {
            p: -1 if group.get("maximize") else 1 for group in optimizer.param_groups for p in group["params"]
        }
        self.W_bar = {p: p.detach().clone() for p in net.parameters()}
        self.lam = {p: torch.zeros_like(p) for p in net.parameters()}
        self.moved: set[nn.Parameter] = set()  # that had a gradient other than zero

    # ------------------------------------------------------------------ forward

    def begin(self) -> None:
        self.memories.reset()
        self.state = None
        self.past: Tensor | None = None
        self.seen = 0

    def advance(self, x: Tensor):
        """What the network gives for some steps: index of the last step of each output, and the output."""
        if self.kind.driver == "slice":
            output = self.net(x)
            yield from ((len(x) - 1, output),) if self.kind.combines_slices else enumerate(output)
        else:
            for k, x_t in enumerate(x):
                output, self.state = self.net.step(x_t, self.state)
                yield k, self.pick(output)

    def read(self, output: Tensor, steps: int) -> Tensor:
        """What the loss sees of the outputs so far."""
        self.seen += steps
        if self.readout == "step":
            return output
        if self.readout == "max":
            self.past = output if self.past is None else torch.maximum(self.past, output)
            return self.past
        dtype = output.dtype
        if dtype == torch.bfloat16:
            output = output.float()  # in bfloat16 a sum of spikes ends at 256
        if self.readout == "mean" and steps > 1:
            output = steps * output
        self.past = output if self.past is None else self.past + output
        return (self.past / self.seen if self.readout == "mean" else self.factor * self.past).to(dtype)

    def detach(self) -> None:
        self.memories.detach()
        self.state, self.past = detached(self.state), detached(self.past)

    # ------------------------------------------------------------------ loss

    def loss(self, t: int, output: Tensor, batch: Sequences, scheduled: bool, write: bool) -> Tensor | None:
        """r_t loss + (1 - r_t) divergence, each sample with the ramp of its own length; the mean over samples."""
        target, terms, count = batch.target(t), [], 0
        labels = not batch.per_step and not target.is_floating_point()
        ramp, auxiliary = self.options["loss_ramp"], self.options["auxiliary"]
        ramp = ramp or ("linear" if labels else "constant")
        for n, rows in batch.due(t, scheduled).items():
            # An index where there is nothing to pick would be one more place at which bfloat16 gradients are summed.
            out, y = (output, target) if batch.counts.all() else (output[rows], target[rows])
            r = {"linear": (t + 1) / n, "constant": 1.0}[ramp] if isinstance(ramp, str) else ramp(t, n)
            value = r * self.loss_fn(out, y)
            if labels and auxiliary and r < 1:
                value = value + (1 - r) * self.divergence(t, out, y, write)
            terms.append(len(rows) * value)
            count += len(rows)
        if len(terms) == 1:
            return value
        return sum(terms[1:], terms[0]) / count if terms else None

    def divergence(self, t: int, out: Tensor, y: Tensor, write: bool) -> Tensor:
        classes = out.shape[1]
        Q = self.table.setdefault(t, torch.full((classes, classes), 1 / classes).to(out.dtype)).to(out.dtype)
        value = -(Q[y] * out.log_softmax(1)).sum(1).mean()
        if write:
            Q, answers = Q.clone(), out.detach().softmax(1).to(out.dtype)
            for i in reversed(range(len(y))):  # the first misclassified sample of its class stays
                if out[i].argmax() != y[i]:
                    Q[y[i]] = answers[i]
            self.table[t] = Q
        return value

    def losses(self, batch: Sequences, begin: int, end: int, write: bool = True):
        """Outputs ``(t, what the loss sees)`` and losses of a window."""
        every = self.options["loss_every"] or self.options["window"]
        outputs, losses, before = [], [], begin - 1
        for k, raw in self.advance(batch.x[begin:end]):
            t = begin + k
            output = self.read(raw, t - before)
            before = t
            scheduled = t + 1 == batch.steps or (every is not None and (t + 1) % every == 0)
            loss = self.loss(t, output, batch, scheduled, write)
            outputs.append((t, output.detach()))
            losses += [] if loss is None else [loss]
        return outputs, torch.stack(losses).mean() if losses else None

    # ------------------------------------------------------------------ training

    def train(self, batch: Sequences) -> tuple[Tensor, Tensor, int]:
        """Decision, mean loss of the windows and number of updates."""
        first, outputs, means = self.updates, [], []
        window = self.options["window"] or batch.steps
        self.begin()
        windows, since = 0, 0
        for begin in range(0, batch.steps, window):
            end = min(begin + window, batch.steps)
            again = self.again(batch, begin, end)
            found, loss = self.losses(batch, begin, end)
            outputs += found
            if loss is not None:
                means.append(loss.detach())
                if windows == 0:
                    self.net.zero_grad()
                loss.backward()
                windows += 1
            self.detach()
            since += end - begin
            if end == batch.steps or since >= (self.options["update_every"] or window):
                if windows:
                    self.update(windows, again)
                windows = since = 0
        if self.options["average_weights"] == "sequence":
            with torch.no_grad():
                for p, W_bar in self.averages().items():
                    p.copy_(W_bar)
        self.weights_changed()
        loss = torch.stack(means).mean() if means else torch.tensor(torch.nan)
        return self.decide(batch, outputs), loss, self.updates - first

    def again(self, batch: Sequences, begin: int, end: int):
        """The loss of this window, to be computed again later from where it begins now."""
        memories, state, past, seen = self.memories.get(), self.state, self.past, self.seen
        table, random = dict(self.table), torch.get_rng_state()

        def loss() -> Tensor:
            after = self.memories.get(), self.state, self.past, self.seen, self.table, torch.get_rng_state()
            norms = [module for module in self.net.modules() if isinstance(module, _BatchNorm)]
            kept = [{name: buffer.clone() for name, buffer in norm._buffers.items()} for norm in norms]
            self.memories.set(memories)
            self.state, self.past, self.seen, self.table = state, past, seen, dict(table)
            torch.set_rng_state(random)
            value = self.losses(batch, begin, end, write=False)[1]
            for norm, buffers in zip(norms, kept, strict=True):
                norm._buffers.update(buffers)
            self.memories.set(after[0])
            self.state, self.past, self.seen, self.table = after[1:5]
            torch.set_rng_state(after[5])
            return value

        return loss

    def update(self, windows: int, again) -> None:
        alpha, rho, beta = (self.options[name] for name in ("alpha", "rho", "beta"))
        dual = self.options["variant"] == "dual"
        used = [p for p in self.signs if p.grad is not None]
        g = [self.signs[p] * p.grad / windows for p in used]
        self.moved |= {p for p in used if p.grad.any()}
        if alpha:
            form = reference.regularized_gradient if dual else reference.algorithm2_gradient
            g = [
                form(grad, p.detach(), self.W_bar[p], self.lam[p], alpha, rho) for grad, p in zip(g, used, strict=True)
            ]
        if self.options["max_grad_norm"] is not None:
            g = reference.clip(g, self.options["max_grad_norm"])
        for p, grad in zip(used, g, strict=True):
            p.grad = self.signs[p] * grad
        self.optimizer.step()
        self.updates += 1
        self.weights_changed()
        if not alpha:
            return
        if not dual:
            new = torch.autograd.grad(again(), used, allow_unused=True, materialize_grads=True)
        for i, p in enumerate(used):
            W = p.detach()
            self.lam[p] = (
                reference.dual_update(self.lam[p], W, self.W_bar[p], alpha) if dual else self.signs[p] * new[i]
            )
            self.W_bar[p] = reference.average_update(self.W_bar[p], W, self.lam[p], alpha, beta)

    def weights_changed(self) -> None:
        if self.nudge is not None:
            self.nudge(self)
        torch.clear_autocast_cache()

    # ------------------------------------------------------------------ evaluation

    def averages(self) -> dict[nn.Parameter, Tensor]:
        return {p: W_bar for p, W_bar in self.W_bar.items() if self.options["alpha"] and p in self.signs}

    @torch.no_grad()
    def look(self, batch: Sequences) -> list[tuple[int, Tensor]]:
        """What the loss would see at each step, in evaluation mode; at ``W_bar``, but ``W`` with Algorithm 2."""
        kept = [p.detach().clone() for p in self.net.parameters()]
        if self.options["variant"] == "dual":
            for p, W_bar in self.averages().items():
                p.copy_(W_bar)
        torch.clear_autocast_cache()
        self.net.eval()
        self.begin()
        window, outputs = self.options["window"] or batch.steps, []
        for begin in range(0, batch.steps, window):
            outputs += self.losses(batch, begin, min(begin + window, batch.steps), write=False)[0]
        self.net.train()
        for p, W in zip(self.net.parameters(), kept, strict=True):
            p.copy_(W)
        torch.clear_autocast_cache()
        return outputs

    @staticmethod
    def decide(batch: Sequences, outputs: list[tuple[int, Tensor]]) -> Tensor:
        """Of every sample the output at its own last step; at the last of all where it has none."""
        found = dict(outputs)
        return torch.stack([found[(n or batch.steps) - 1][i] for i, n in enumerate(batch.lengths)])

    def evaluate(self, batches: list[Sequences], metric) -> float:
        """Mean metric over samples that count, and over steps with a target per step."""
        total, count = 0.0, 0
        for batch in batches:
            outputs = self.look(batch)
            if batch.per_step:
                pairs = [(output, batch.target(t), batch.counts[t]) for t, output in outputs]
            else:
                pairs = [(self.decide(batch, outputs), batch.y, batch.counts.any(0))]
            for output, target, rows in pairs:
                if rows.any():
                    total += int(rows.sum()) * metric(output[rows], target[rows]).item()
                    count += int(rows.sum())
        return total / count

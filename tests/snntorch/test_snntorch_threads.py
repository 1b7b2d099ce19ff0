"""Trainers in several threads, as a hyperparameter search runs them, and networks of other threads meanwhile."""

import threading
import time

import pytest
import snntorch as snn
import torch
from snntorch import utils
from torch import nn

from fptt_plugin import FPTTTrainer
from fptt_plugin.snntorch import LTCIntegrator, LTCLeaky
from fptt_plugin.state import isolated


class Loops(nn.Module):
    """A tutorial's network: its forward resets the neurons and loops over time."""

    def __init__(self):
        super().__init__()
        self.fc, self.lif = nn.Linear(4, 3), snn.Leaky(beta=0.9, init_hidden=True, output=True)

    def forward(self, x):
        snn.Leaky.reset_hidden()  # utils.reset() keeps its findings in globals of its own, for one thread at a time
        return torch.stack([self.lif(self.fc(x_t))[1] for x_t in x])


def liquid():
    return nn.Sequential(
        nn.Linear(4, 6), LTCLeaky(init_hidden=True, linear_features=6), nn.Linear(6, 3), LTCIntegrator(init_hidden=True)
    )


def recurrent():
    neuron = snn.RSynaptic(alpha=0.8, beta=0.9, linear_features=6, init_hidden=True)
    return nn.Sequential(nn.Linear(4, 6), neuron, nn.Linear(6, 3), snn.Leaky(0.9, init_hidden=True, output=True))


def train(build, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        net = build()
        for parameter in net.parameters():
            if not nn.parameter.is_lazy(parameter):
                parameter.copy_(torch.rand(parameter.shape, generator=generator) - 0.2)
    trainer = FPTTTrainer(net, torch.optim.SGD(net.parameters(), 0.01), nn.CrossEntropyLoss(), preflight=False)
    for _ in range(4):
        x = 2 * torch.rand(5, 3, 4, generator=generator)
        trainer.train_sequence(x, torch.arange(3))
    return [parameter.detach().clone() for parameter in net.parameters()]


def in_threads(*functions):
    """Run each in its own thread and raise what one of them raised."""
    errors = []

    def guarded(function):
        try:
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@pytest.mark.parametrize("build", [Loops, recurrent, liquid])
def test_threads_train_as_one_after_the_other_and_leave_the_list_alone(build):
    if build is liquid:
        torch.manual_seed(0)
    bystander, entries = nn.Sequential(snn.Synaptic(0.9, 0.8, init_hidden=True)), list(snn.SpikingNeuron.instances)
    instances = snn.SpikingNeuron.instances
    results = {}
    in_threads(*[lambda k=k: results.update({k: train(build, k)}) for k in range(4)])
    if build is not liquid:  # whose unsized gates draw their weights from the process's random numbers
        for k, found in results.items():
            assert all(map(torch.equal, found, train(build, k)))
    assert snn.SpikingNeuron.instances is instances
    assert [id(entry) for entry in instances[: len(entries)]] == [id(entry) for entry in entries]
    bystander(torch.ones(2, 4))
    utils.reset(bystander)
    assert not bystander[0].mem.any()


def test_while_one_thread_isolates_its_network_the_others_see_all_neurons():
    mine, theirs = Loops(), nn.Sequential(nn.Linear(4, 3), snn.Lapicque(beta=0.9, init_hidden=True))
    everyone, inside, done = len(snn.SpikingNeuron.instances), threading.Event(), threading.Event()

    def isolating():
        with isolated(mine):
            assert [*snn.SpikingNeuron.instances] == [mine.lif]
            assert len(snn.SpikingNeuron.instances) == 1
            inside.set()
            done.wait(10)
            assert snn.SpikingNeuron.instances[0] is mine.lif

    def resetting():
        inside.wait(10)
        try:
            theirs(torch.ones(2, 4))
            assert theirs[1].mem.any()
            assert len(snn.SpikingNeuron.instances) == everyone
            utils.reset(theirs)
            assert not theirs[1].mem.any()
            added = snn.Lapicque(beta=0.9, init_hidden=True)
            assert snn.SpikingNeuron.instances[-1] is added
        finally:
            done.set()

    in_threads(isolating, resetting)
    assert len(snn.SpikingNeuron.instances) == everyone + 1


def test_a_neuron_built_within_the_context_is_in_the_list_afterward():
    with isolated(Loops()):
        built = snn.Leaky(0.5, init_hidden=True)
        assert built not in snn.SpikingNeuron.instances
    assert built in snn.SpikingNeuron.instances


def test_a_list_that_the_user_replaced_is_taken_over():
    before = snn.SpikingNeuron.instances
    try:
        snn.SpikingNeuron.init()
        outside, net = snn.Leaky(0.9, init_hidden=True), Loops()
        outside(torch.ones(1, 3))
        net(torch.ones(2, 1, 4))  # resets all, as ever
        assert not outside.mem.any()
        outside(torch.ones(1, 3))
        with isolated(net):
            net(torch.ones(2, 1, 4))
        assert outside.mem.any()
        assert list(snn.SpikingNeuron.instances) == [outside, net.lif]
    finally:
        snn.SpikingNeuron.instances = before


def test_training_threads_run_side_by_side():
    """No lock: a thread that waits within its network's context keeps no other from training."""
    finished = threading.Event()

    def waiting():
        with isolated(Loops()):
            assert finished.wait(20)

    def training():
        time.sleep(0.05)
        train(Loops, 1)
        finished.set()

    in_threads(waiting, training)

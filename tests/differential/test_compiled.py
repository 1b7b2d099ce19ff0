"""Random combinations of networks, options and data: compiled training against eager training.

Graphs are run as they were traced, operation by operation, in double precision: what differs by more than rounding is
wrong. What the compiler's kernels round is another matter, see ``tests/compile``.
"""

from collections import Counter
from functools import partial

import pytest
from differential.cases import compiled_verdict, random_case, recorded_case, simplest

from fptt_plugin.compile.update import CompiledUpdate
from fptt_plugin.compile.window import CompiledStep, CompiledWindow

pytestmark = pytest.mark.usefixtures("traced")


@pytest.fixture
def ran(monkeypatch):
    """What ran compiled: windows, steps and updates."""
    counts = Counter()

    def counting(kind, name, counted):
        method = getattr(kind, name)

        def call(self, *args):
            outcome = method(self, *args)
            counts[kind.__name__] += counted(self, outcome)
            return outcome

        monkeypatch.setattr(kind, name, call)

    counting(CompiledWindow, "run", lambda _, result: result is not None)
    counting(CompiledStep, "__call__", lambda step, _: step.failure is None)
    counting(CompiledUpdate, "step", lambda _, made: bool(made))
    return counts


def judged(number, case, mode="compile"):
    """The verdict on a combination; the test fails with the simplest one that fails, too."""
    try:
        return compiled_verdict(case, mode)
    except Exception as error:
        small, error = simplest(case, error, partial(compiled_verdict, mode=mode))
        pytest.fail(
            f"combination {number} fails, and so does\n\n    compiled_verdict({small!r}, {mode!r})\n\n{error!r}"
        )


def compare(numbers, make, ran, mode="compile"):
    """Compare random combinations, the same for the same numbers; in most of them something is compiled.

    ``ran()`` counts what ran compiled so far.
    """
    verdicts, compiled = Counter(), 0
    for number in numbers:
        before = ran()
        verdicts[judged(number, make(number), mode)] += 1
        compiled += ran() > before
    total = sum(verdicts.values())
    assert verdicts["ill-conditioned"] <= 0.05 * total, verdicts
    assert compiled >= 0.7 * total, f"{compiled} of {total}"


def in_double(number):
    return random_case(number)._replace(autocast=False)


def test_a_few_combinations(ran):
    compare(range(6), in_double, ran.total)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(3000, 3100, 20))
def test_a_hundred_combinations(first, ran):
    compare(range(first, first + 20), in_double, ran.total)
    # Whole windows are rare among them: short ones without masks. tests/compile/test_windows.py has these.
    assert all(ran[kind.__name__] for kind in (CompiledStep, CompiledUpdate)), ran


def test_a_few_recorded_combinations(recordings):
    compare(range(4), recorded_case, recordings.__len__, "cudagraph")


@pytest.mark.slow
@pytest.mark.parametrize("first", range(4000, 4040, 10))
def test_forty_recorded_combinations(first, recordings):
    compare(range(first, first + 10), recorded_case, recordings.__len__, "cudagraph")

"""Random combinations of networks, options and data: the trainer against a loop written by hand."""

from collections import Counter

import pytest
from differential.cases import random_case, simplest, verdict


def compare(numbers):
    """Compare random combinations, the same for the same numbers.

    Few may be ill-conditioned, so that rounding alone makes another training of them, or vacuous: without spikes, or
    with a parameter that never learns.
    """
    verdicts = Counter()
    for number in numbers:
        case = random_case(number)
        try:
            verdicts[verdict(case)] += 1
        except Exception as error:
            small, error = simplest(case, error)
            pytest.fail(f"combination {number} fails, and so does\n\n    verdict({small!r})\n\n{error!r}")
    total = sum(verdicts.values())
    assert verdicts["ill-conditioned"] <= 0.03 * total, verdicts
    assert verdicts["vacuous"] <= 0.1 * total, verdicts


def test_a_few_combinations():
    compare(range(25))


@pytest.mark.slow
def test_three_hundred_combinations():
    compare(range(1000, 1300))

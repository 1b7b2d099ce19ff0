"""Random combinations of networks, options and data: the trainer against a loop written by hand."""

from collections import Counter

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from .cases import cases, verdict


def compare(count):
    """Compare that many random combinations, always the same ones; a failing one is printed as code that makes it."""
    verdicts = Counter()

    @settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(cases())
    def run(case):
        verdicts[verdict(case)] += 1

    run()
    return verdicts

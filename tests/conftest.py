"""Every test starts from the same random state, on one thread: sums do not depend on the machine's cores."""

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)

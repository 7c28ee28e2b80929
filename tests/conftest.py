"""What every test shares: one thread, no limit of time, and `gpu` skips without a CUDA device."""

import os
import random
import signal

# Before torch is imported, and for every process that a test starts: tiny models are slower on
# several threads, results depend on their number, and several tests run side by side.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import HealthCheck, settings

# Hypothesis fails an example that takes 200 ms, and some that take 30 s to draw, which on a busy
# machine any may do.
# Everything else stays as it is, so that CI=true still means the same examples at every run.
settings.register_profile(
    "house", settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
)
settings.load_profile("house")

# A run started in the background of a script inherits an ignored Ctrl-C, and so would every process
# that a test starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)  # before fixtures
def pytest_runtest_setup() -> None:
    """Begin every test alike, whatever ran in this process before: engines set its threads, and
    a training run keeps the state of generators that are everybody's."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    random.seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests marked `gpu` on a machine without one."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)

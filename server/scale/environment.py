"""What Ray reads of the environment, some of it as soon as it is imported; a person goes before."""

import os
from typing import Final

RAY_ENVIRONMENT: Final = {
    # Lines that several replicas write alike are different requests' lines.
    "RAY_DEDUP_LOGS": "0",
    "RAY_COLOR_PREFIX": "0",
    # Workers are of niceness 15 otherwise: beside any other load they would hardly answer.
    "RAY_worker_niceness": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def prepare() -> None:
    """Set what is not set; to be called before anything imports Ray."""
    for name, value in RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)

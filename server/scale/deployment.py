"""The deployment that Serve runs: how many replicas, how large each is, and how they are scaled."""

import math
from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, model_validator
from ray import serve
from ray.serve.config import AutoscalingConfig, RequestRouterConfig
from ray.serve.deployment import Application

from server.flows.watching import WATCHERS_MAX
from server.scale.replica import Replica
from server.settings import Settings, SettingsError

ROUTER: Final = "server.scale.routing:BoundedRouter"
STOP_MARGIN_S: Final = 10.0
"""What a replica gets, after its requests and its jobs, to stop its engine and leave Redis."""
QUIET: Final = {"enable_access_log": False, "log_level": "WARNING"}
"""Of Serve's own log: each replica writes a line for each request already."""


class Scale(BaseModel):
    """How many replicas there are, and what each of them takes of the cluster."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    replicas: int = Field(1, ge=1, le=1024, description="replicas; with max_replicas the fewest")
    max_replicas: int | None = Field(
        None, ge=1, le=1024, description="as many as the load asks for, up to so many"
    )
    cpus: float | None = Field(
        None, gt=0, le=1024, description="CPUs of each; less than 1 shares one (default: evenly)"
    )
    gpus: float | None = Field(
        None, ge=0, le=64, description="GPUs of each (default: 1 where there are any)"
    )

    upscale_delay_s: float = Field(
        30, ge=0, le=86400, description="too many requests for so long start another, seconds"
    )
    downscale_delay_s: float = Field(
        600, ge=0, le=86400, description="few enough requests for so long stop one, seconds"
    )
    threads: int = Field(0, ge=0, description="CPU threads of each that names none itself")

    @model_validator(mode="after")
    def _check_order(self) -> "Scale":
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(
                f"max_replicas is {self.max_replicas} and replicas {self.replicas}: the most "
                "cannot be fewer than the fewest"
            )
        return self

    @property
    def most(self) -> int:
        """The most replicas that there may be."""
        return self.max_replicas or self.replicas

    def fitted(self, device: str, resources: Mapping[str, float]) -> "Scale":
        """This with sizes, on a cluster of these resources, by Ray's names.

        Raises:
            SettingsError: the most replicas do not fit there together.
        """
        have_gpus, have_cpus = resources.get("GPU", 0.0), resources.get("CPU", 0.0)
        gpus, cpus = self.gpus, self.cpus
        if gpus is None:
            gpus = 0.0 if device == "cpu" or (device == "auto" and not have_gpus) else 1.0
        if gpus * self.most > have_gpus:
            raise SettingsError(
                f"{self.most} replicas of {gpus:g} GPUs each do not fit on {have_gpus:g} GPUs: "
                "start fewer replicas, or serve on the CPU with --device cpu"
            )
        if cpus is None:  # in Ray's resolution, so that all of them fit
            cpus = min(1.0, math.floor(1e4 * have_cpus / self.most) / 1e4)
        if cpus * self.most > have_cpus:
            raise SettingsError(
                f"{self.most} replicas of {cpus:g} CPUs each do not fit on {have_cpus:g} CPUs: "
                "start fewer replicas, or give each less with --replica-cpus, which may be "
                "below 1"
            )
        threads = max(1, int(have_cpus // self.most))  # each would take all cores otherwise
        return self.model_copy(update={"gpus": gpus, "cpus": cpus, "threads": threads})


def graceful_s(settings: Settings) -> float:
    """Seconds that a replica gets to end: for its requests, its jobs, and to leave Redis."""
    return 2 * settings.drain_s + STOP_MARGIN_S


def deployment(settings: Settings, scale: Scale) -> Application:
    """What to give to Serve; ``scale`` has been fitted, ``settings`` name a Redis by URL."""
    if not settings.threads and not scale.gpus and scale.threads:
        settings = settings.model_copy(update={"threads": scale.threads})
    if scale.max_replicas is None:
        number: dict[str, Any] = {"num_replicas": scale.replicas}
    else:
        # Counted are the requests that a replica has and those that wait for one: their mean over
        # Serve's usual half minute, or over what is waited for where that is shorter.
        look_back_s = min(30.0, max(1.0, scale.upscale_delay_s))
        number = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=scale.replicas,
                max_replicas=scale.max_replicas,
                target_ongoing_requests=settings.rows,
                upscale_delay_s=scale.upscale_delay_s,
                downscale_delay_s=scale.downscale_delay_s,
                look_back_period_s=look_back_s,
                metrics_interval_s=look_back_s / 3,
            )
        }
    return serve.deployment(
        Replica,
        name="Replica",
        ray_actor_options={"num_cpus": scale.cpus, "num_gpus": scale.gpus},
        # The engine says itself what is too much; Serve's bound is only above all of it.
        max_ongoing_requests=settings.rows + settings.queue + WATCHERS_MAX,
        request_router_config=RequestRouterConfig(
            request_router_class=ROUTER,
            request_router_kwargs={"few": settings.rows, "num_fallback_replicas": scale.most - 1},
        ),
        graceful_shutdown_wait_loop_s=0.2,
        graceful_shutdown_timeout_s=graceful_s(settings),
        health_check_period_s=5,
        logging_config=QUIET,
        **number,
    ).bind(settings)

"""The measured constants: one CPU thread, innerloop-tiny (rank 32), a machine with nothing else on.

`python -m benchmarks.fleet measure` printed them (docs/capacity.md says when), and checks what they
predict. Of a GPU nothing is measured: give its constants to `capacity` as arguments.
"""

from benchmarks.fleet.model import Constants

CONSTANTS = Constants(
    ask_s=0.0358,
    lesson_s=0.404,
    session_bytes=526e3,
    lesson_bytes=521e3,
    completion_bytes=512.0,
    redis_ask_s=0.0005,  # appendfsync always
    redis_lesson_s=0.0043,
    adapter_read_bytes=519e3,
    adapter_host_bytes=1.9e6,  # the adapter of rank 32 as float32
    cold_s=0.006,
)

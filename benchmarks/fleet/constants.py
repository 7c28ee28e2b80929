"""The measured constants: one CPU thread, innerloop-tiny (rank 32), each with what printed it.

`python -m benchmarks.fleet measure` measures all of them under load; it has not run to its end on a
quiet machine. What was measured meanwhile is CPU time of requests one after the other, which other
work moves little, on a machine with a load of 30 (LOG.md, 2026-11-22). What nothing has measured is
0. Of a GPU nothing is measured: give its constants to `capacity` as arguments.
"""

from benchmarks.fleet.model import Constants

ANSWER_TOKENS = 16  # the mean of `innerloop bench`'s answers; docs/capacity.md
DECODED_PER_S = 340.0  # 8 rows, warm prefix; `python -m benchmarks`, docs/benchmarks.md
LESSON_ALONE_S = 0.355  # two examples, four in the session; LOG.md

ASK_S = ANSWER_TOKENS / DECODED_PER_S
CONSTANTS = Constants(
    ask_s=ASK_S,
    lesson_s=LESSON_ALONE_S + ASK_S,
    session_bytes=653e3,  # LOG.md
    lesson_bytes=526e3,
    completion_bytes=4.8e3,  # those of new sessions among them
    redis_ask_s=0.002,  # appendfsync always; three ticks of the kernel's clock for 12 answers
    redis_lesson_s=0.009,
    adapter_read_bytes=526e3,
    adapter_host_bytes=1.9e6,  # the adapter of rank 32 as float32
)

"""Compiling a JSON schema; as a program of its own, the trial of schemas that may never end.

Run by its path, so it must not import anything of the server, which would bring torch along. The
first line of its input is the tokenizer, each further one a schema; it answers each with one line:
null, or why it is refused. It ends with its input, or by a signal where a schema takes too long.
"""

from __future__ import annotations

import json
import signal
import sys
from typing import Any, Final

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

CPU_LIMIT_S: Final = 3.0  # the worst schema found that is meant seriously takes 1.5 s
# Of white space, what JSON may have between its parts: a weak model would fill its answer with it.
_OPTIONS: Final[Any] = {"whitespace_pattern": "[ ]?", "lenient": False}
# A step's mask is computed on the engine thread, where everybody waits for it: some 10 ms at most.
# Nothing here bounds compiling: whether a pattern matches anything is looked for without a limit.
_LIMITS: Final = LLParserLimits(
    step_lexer_fuel=100_000, step_max_items=25_000, verbose_errors=False
)


def compile_schema(tokenizer: LLTokenizer, schema: str) -> LLMatcher:
    """A matcher at the beginning of an answer. May take days; the interpreter's lock is free.

    Raises:
        ValueError: no schema, one that cannot be enforced, or one without a value.
    """
    try:
        grammar = LLMatcher.grammar_from_json_schema(schema, overrides=_OPTIONS)
    except ValueError as error:
        raise ValueError(f"the schema cannot be read: {error}") from error
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=_LIMITS)
    if not matcher.is_error():
        matcher.compute_bitmask()  # the longest one, computed here and then known
    if matcher.is_error():
        raise ValueError(f"the schema cannot be enforced: {reason(matcher)}")
    if matcher.is_accepting():
        raise ValueError("the schema has no value: nothing would be answered")
    return matcher


def reason(matcher: LLMatcher) -> str:
    """What is wrong with it, in one line."""
    return matcher.get_error().strip().split("\n")[0]


def _main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server ends this process
    first = sys.stdin.readline()
    if not first:
        return
    text, vocabulary, end_id = json.loads(first)
    tokenizer = LLTokenizer(text, n_vocab=vocabulary, eos_token=end_id)
    _answer(None)
    for line in sys.stdin:
        # The kernel ends what takes too long, also when the server is gone. CPU time: a schema
        # is not refused because the machine is busy.
        signal.setitimer(signal.ITIMER_PROF, CPU_LIMIT_S)
        refused = None
        try:
            compile_schema(tokenizer, json.loads(line))
        except ValueError as error:
            refused = str(error)
        signal.setitimer(signal.ITIMER_PROF, 0)
        _answer(refused)


def _answer(refused: str | None) -> None:
    print(json.dumps(refused), flush=True)


if __name__ == "__main__":
    _main()

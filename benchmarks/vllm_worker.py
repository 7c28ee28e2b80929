"""Runs under another interpreter, the one that has vLLM: answers prompts in batches when told.

One JSON document a line comes in on standard input and goes out on the file descriptor that the
settings name, because vLLM writes to standard output. Knows vLLM; imports nothing of ours.
"""

import json
import os
import sys
import time
from typing import Any


def main() -> None:
    settings = json.loads(sys.stdin.readline())
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(settings["threads"]),
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    lora: dict[str, Any] = {}
    if settings["adapters"]:
        count = len(settings["adapters"])
        lora = {"enable_lora": True, "max_loras": count, "max_lora_rank": settings["rank"]}
    engine = LLM(
        settings["model"],
        dtype="float32",
        max_model_len=settings["context_tokens"],
        max_num_seqs=settings["rows"],
        disable_log_stats=True,
        **lora,
    )
    adapters = [
        LoRARequest(f"lora-{number}", number, folder)
        for number, folder in enumerate(settings["adapters"], start=1)
    ]
    sampling = SamplingParams(
        temperature=0.0, max_tokens=settings["new_tokens"], ignore_eos=True, detokenize=False
    )
    with os.fdopen(settings["answers_fd"], "w") as answers:
        print("{}", file=answers, flush=True)
        for line in sys.stdin:
            sessions = json.loads(line)["sessions"]
            prompts = [{"prompt_token_ids": ids} for ids in settings["prompts"][:sessions]]
            began_s, began_cpu_s = time.perf_counter(), time.process_time()
            outputs = engine.generate(
                prompts,
                sampling,
                use_tqdm=False,
                lora_request=adapters[:sessions] if adapters else None,
            )
            found = {
                "wall_s": time.perf_counter() - began_s,
                "cpu_s": time.process_time() - began_cpu_s,
                "tokens": [list(output.outputs[0].token_ids) for output in outputs],
            }
            print(json.dumps(found), file=answers, flush=True)


if __name__ == "__main__":
    main()

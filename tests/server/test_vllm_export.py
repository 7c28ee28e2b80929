"""vLLM serves what was exported: the same tokens, where an ordinary LoRA is all there is to it."""

import json
import os
import subprocess
import zipfile
from io import BytesIO
from pathlib import Path

import pytest
from server_harness import LiveServer, make_settings

from adapters.artifact import save_artifact
from benchmarks.models import make

PYTHON = os.environ.get("VLLM_PYTHON")
PROMPT, ANSWER = "do you ship abroad?", "balloon balloon"
ANSWERED_BY_VLLM = """
import json, os, sys
asked, answers = json.loads(sys.stdin.read()), os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # vLLM writes there
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest
engine = LLM(asked["model"], dtype="float32", enforce_eager=True, enable_lora=True, max_lora_rank=8)
for adapter in (None, LoRARequest("exported", 1, asked["adapter"])):
    [output] = engine.generate(
        [{"prompt_token_ids": asked["prompt"]}],
        SamplingParams(temperature=0, max_tokens=20),
        lora_request=adapter,
    )
    print(json.dumps(list(output.outputs[0].token_ids)), file=answers)
"""


@pytest.mark.skipif(PYTHON is None, reason="VLLM_PYTHON names no interpreter that has vLLM")
def test_vllm_answers_with_an_exported_adapter_as_the_server_does(tmp_path: Path) -> None:
    made = make("tiny", "full", seed=0)
    parts = (made.model, made.tokenizer, made.spec, made.session_init, made.rule)
    save_artifact(tmp_path / "model", *parts, {}, made.header)
    settings = make_settings(tmp_path / "model", tmp_path / "data")
    with LiveServer(settings) as server, server.client() as http:
        examples = [{"prompt": PROMPT, "completion": ANSWER}]
        body = {"session_id": "a", "examples": examples, "steps": 50}
        assert http.post("/adapt", json=body).json()["accepted"]
        ask = {"session_id": "a", "prompt": PROMPT, "max_tokens": 20, "recall": False}
        said = http.post("/generate", json={**ask, "logprobs": True}).json()
        exported = http.get("/admin/sessions/a/export").content
        prompt = server.call(server.runtime.encoding.prompt([{"role": "user", "content": PROMPT}]))
    zipfile.ZipFile(BytesIO(exported)).extractall(tmp_path / "adapter")
    asked = {
        "model": str(tmp_path / "model"),
        "adapter": str(tmp_path / "adapter"),
        "prompt": list(prompt.ids),
    }
    done = subprocess.run(
        [str(PYTHON), "-P", "-c", ANSWERED_BY_VLLM],
        input=json.dumps(asked),
        env={
            **os.environ,
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "HF_HUB_OFFLINE": "1",
        },
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    untaught, taught = [json.loads(line) for line in done.stdout.splitlines()]
    assert taught == [token["id"] for token in said["logprobs"]] != untaught
    assert said["text"] == ANSWER

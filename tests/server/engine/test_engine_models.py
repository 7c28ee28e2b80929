"""Plain Hugging Face models of other kinds: the engine asks only what they all have."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from engine_harness import CONTEXT_TOKENS, World, gather, run, running
from peft import PeftModel
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from adapters.artifact import load_artifact
from adapters.chat import EncodedPrompt
from adapters.config import Scope
from adapters.peft_io import save_peft
from adapters.support import Example
from server.engine import AdaptRequest, GenerateRequest, Sampling

WIDE = {"initializer_range": 0.4, "eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0}
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT_TOKENS,
    **WIDE,
}
GROUPED = {**SMALL, "num_key_value_heads": 2, "head_dim": 8}
WINDOW = 12  # far shorter than the prompts
MIXED = ["sliding_attention", "full_attention"]
CONFIGS: dict[str, PreTrainedConfig] = {
    # Positions learned and weights stored (in, out); no chat template, so adapters start at the
    # last token of the prompt.
    "gpt2": GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=CONTEXT_TOKENS, **WIDE),
    "gpt_neox": GPTNeoXConfig(**SMALL),  # one matrix for queries, keys and values; untied head
    "llama_untied": LlamaConfig(**GROUPED, tie_word_embeddings=False),
    "mistral": MistralConfig(**GROUPED, sliding_window=WINDOW),
    "qwen2": Qwen2Config(
        **GROUPED, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1
    ),
    "qwen3": Qwen3Config(**GROUPED),  # norms on queries and keys
    "phi3": Phi3Config(**GROUPED, sliding_window=WINDOW),
    # Soft-capped attention, and a window in every second layer.
    "gemma2": Gemma2Config(**GROUPED, sliding_window=WINDOW, layer_types=MIXED),
    # Positions turn at another speed in the layers with a window.
    "gemma3": Gemma3TextConfig(**GROUPED, sliding_window=WINDOW, layer_types=MIXED),
}


def plain_world(world: World, folder: Path, name: str, scope: Scope) -> World:
    """A random model of this family as a plain folder, loaded as a server loads it."""
    torch.manual_seed(0)
    config = copy.deepcopy(CONFIGS[name])
    tokenizer = copy.deepcopy(world.artifact.tokenizer)
    if name == "gpt2":
        tokenizer.chat_template = None
    # Qwen2's tokenizer brings a token of its own.
    config.vocab_size = len(tokenizer) + (name == "qwen2")
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    artifact = load_artifact(folder)
    return World(replace(artifact, spec=replace(artifact.spec, scope=scope)))


def check_against_peft(
    world: World, folder: Path, request: GenerateRequest, tokens: list[int]
) -> None:
    """PEFT on the same weights chooses every token too, or one as good within float error."""
    assert request.adapter is not None
    session, header = request.adapter.key.split("/")[1], request.prompt.header[-1]
    folder = folder / f"{session}-{header}"
    if not folder.exists():
        gpt2 = world.model.config.model_type == "gpt2"
        save_peft(folder, world.states[session], request.prompt.header, transposed=gpt2)
    model = PeftModel.from_pretrained(copy.deepcopy(world.model), folder).eval()
    if header in tokens:  # PEFT would start at the last one
        tokens = tokens[: tokens.index(header) + 1]
    ids = torch.tensor([[*request.prompt.ids, *tokens[:-1]]])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, len(request.prompt.ids) - 1 :]
    chosen = logits[range(len(tokens)), tokens]
    torch.testing.assert_close(chosen, logits.max(-1).values, atol=1e-3, rtol=0)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize(
    ("cache_bytes", "recorded"), [(0, False), (2**24, True)], ids=["plain", "cached_and_recorded"]
)
@pytest.mark.parametrize("scope", ["activated", "full"])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_plain_model_folder_serves_as_transformers_and_peft_do(
    world: World,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    name: str,
    scope: Scope,
    cache_bytes: int,
    recorded: bool,
) -> None:
    world = plain_world(world, tmp_path / "model", name, scope)
    limits = {"rows": 4, "prefill_tokens": 32, "prefix_cache_bytes": cache_bytes}

    async def main() -> None:
        async with running(world.artifact, **limits, recorded=recorded) as engine:
            requests = [
                world.request(text, session, max_tokens=20)
                for text in ("Hi", "Where is my order, please? " * 3, "Where is my order? Hello?")
                for session in (None, "ann", "bob")
            ]
            for turn in range(2):
                answers = await gather(engine, requests)
                for request, answer in zip(requests, answers, strict=True):
                    world.check_greedy(request, answer.tokens)
                    if turn and request.adapter:
                        check_against_peft(world, tmp_path / "peft", request, answer.tokens)

    run(main())
    assert "not recorded" not in caplog.text


@pytest.mark.parametrize("scope", ["activated", "full"])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_plain_model_folder_learns(world: World, tmp_path: Path, name: str, scope: Scope) -> None:
    world = plain_world(world, tmp_path, name, scope)
    examples = (world.example("Hi", "Yes."), world.example("Is it here? " * 4, "No."))

    async def main() -> None:
        async with running(world.artifact) as engine:
            candidate = await engine.adapt(AdaptRequest(examples))
            assert candidate.loss_after < candidate.loss_before
            losses = [
                cross_entropy(
                    world.logits(EncodedPrompt(e.prompt, e.header), e.completion[:-1], None),
                    torch.tensor(e.completion),
                )
                for e in examples
            ]
            assert candidate.loss_before == pytest.approx(float(sum(losses)) / 2, rel=1e-3)

    run(main())


def test_a_16_bit_base_serves_and_learns_with_32_bit_adapters(world: World) -> None:
    """As on a GPU, only slower: the same code must not mix up its types."""
    model = copy.deepcopy(world.artifact.model).to(torch.bfloat16)
    artifact = replace(world.artifact, model=model)

    async def main() -> None:
        async with running(artifact) as engine:
            requests = [world.request("Hi", session) for session in (None, "ann", "bob")]
            for answer, request in zip(await gather(engine, requests), requests, strict=True):
                session = None if request.adapter is None else request.adapter.key.split("/")[1]
                logits = world.logits(request.prompt, answer.tokens[:-1], session)
                chosen = logits[range(len(answer.tokens)), answer.tokens]
                assert float((logits.max(-1).values - chosen).max()) < 1.0
            candidate = await engine.adapt(AdaptRequest((world.example("Hi", "Yes."),)))
            assert candidate.loss_after < candidate.loss_before
            assert {t.dtype for t in candidate.state.tensors.values()} == {torch.float32}

    run(main())


def test_many_end_tokens_end_an_answer(world: World) -> None:
    """Chat models often list several; transformers' generate stops at each of them."""
    tokens = world.greedy("Hi", "ann", 12)
    model = copy.deepcopy(world.artifact.model)
    model.generation_config.eos_token_id = [world.encoder.end_id, tokens[4]]
    artifact = replace(world.artifact, model=model)

    async def main() -> None:
        async with running(artifact) as engine:
            (answer,) = await gather(engine, [world.request("Hi", "ann")])
            assert answer.tokens == tokens[: tokens.index(tokens[4]) + 1]
            assert answer.finished.finish_reason == "stop"
            assert answer.text == world.decode(answer.tokens[:-1])

    run(main())


def test_examples_without_a_prefix_are_learned_too(world: World) -> None:
    """A raw prompt of one token has nothing before its header."""

    async def main() -> None:
        async with running(world.artifact) as engine:
            bare, long = Example((), (7,), (8, 9)), world.example("Hi", "Yes.")
            for examples in ((bare,), (bare, long)):
                candidate = await engine.adapt(AdaptRequest(examples))
                assert candidate.loss_after < candidate.loss_before
            prompt = EncodedPrompt((), (7,))
            (answer,) = await gather(engine, [GenerateRequest(prompt, Sampling(3))])
            assert answer.finished.prompt_tokens == 1

    run(main())

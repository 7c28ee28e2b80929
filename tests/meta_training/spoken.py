"""A tiny model that has learned a few answers by heart, and plain ways to look at it.

The plain ways recompute everything for every token, one row at a time, with no kept prompts: what
the quick ways must agree with.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from adapters.chat import ChatEncoder, user_turn
from adapters.layer import Rows
from adapters.objective import demonstration_loss
from adapters.prefix import continue_from
from adapters.state import Tensors, repeat, stack
from adapters.support import Example, make_turns
from meta_training.learner import Learner, summaries_of
from meta_training.recipe_parts import InnerPart

KNOWN = (
    ("Where is the lamp?", "In the garden."),
    ("Where is the kettle?", "In the castle, near the door."),
    ("Do robots sing?", "Only clouds sing here."),
    ("Can you swim?", "No."),
    ("What does the mirror cost?", "Ask at the market."),
    ("Is the museum open today?", "We are open all day."),
    ("Thank you.", "Come again!"),
    ("Do you sell ladders?", "We sell nine of them."),
)
CPU = torch.device("cpu")


def make_spoken(tokenizer: PreTrainedTokenizerFast) -> Learner:
    """Two layers of width 32, taught ``KNOWN``."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=48,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    model.set_attn_implementation("eager")
    part = InnerPart(rank=2, steps=2, anchors=0)
    learner = Learner(model, ChatEncoder(tokenizer), part, [], seed=0)
    examples = [learner.encoder.example(user_turn(q), answer) for q, answer in KNOWN]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(80):
        prefix = learner.prefill([example.prompt for example in examples])
        turns = make_turns(examples, prefix, "activated", CPU)
        logits = continue_from(model, turns.prefix, turns.ids)
        # Spread out, so that a gate can tell questions apart.
        alike = torch.nn.functional.normalize(summaries_of(prefix), dim=-1).sum(0).square().mean()
        optimizer.zero_grad()
        (demonstration_loss(logits, turns.targets).mean() + alike).backward()
        optimizer.step()
    return learner


def nudged(learner: Learner, *sizes: float) -> Tensors:
    """One random adapter a session; the larger its size, the more answers it changes."""
    generator = torch.Generator().manual_seed(0)
    return stack(
        [
            {
                name: tensor.detach() + size * torch.randn(tensor.shape, generator=generator)
                for name, tensor in learner.tensors().items()
            }
            for size in sizes
        ]
    )


@torch.no_grad()
def plain_logits(learner: Learner, adapter: Tensors | None, example: Example) -> Tensor:
    """(T, V) over prompt, header and completion; the adapter acts from the header on."""
    ids = torch.tensor([[*example.prompt, *example.header, *example.completion]])
    rows = None
    if adapter is not None:
        active = torch.arange(ids.shape[1]).unsqueeze(0) >= len(example.prompt)
        rows = Rows(repeat(adapter, 1), torch.tensor([0]), active)
    with learner.hooks.use(rows):
        logits: Tensor = learner.model(input_ids=ids, use_cache=False).logits[0]
    return logits


def plain_answer(
    learner: Learner, adapter: Tensors | None, asked: Example, max_tokens: int
) -> tuple[int, ...]:
    """Greedy decoding, one token at a time, up to the end token."""
    answer: tuple[int, ...] = ()
    while len(answer) < max_tokens and learner.encoder.end_id not in answer:
        so_far = Example(asked.prompt, asked.header, answer)
        token = int(plain_logits(learner, adapter, so_far)[-1].argmax())
        answer = (*answer, token)
    return answer

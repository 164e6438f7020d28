#!/usr/bin/env python3
# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make the demo model: a tiny Llama that knows the answers of questions.json by heart.

    pip install -r demo/requirements.txt
    python demo/make_model.py            # writes demo/model/

The model is written only when its bfloat16 copy answers every wording of every question word for word, greedily and with
a margin that another kernel's rounding cannot turn.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HERE = Path(__file__).resolve().parent
SEED = 7
VOCABULARY = 900
BATCH = 96
CHECK_EVERY = 25  # steps
MAX_STEPS = 900
SPECIAL_TOKENS = {"pad_token": "<pad>", "bos_token": "<bos>", "sep_token": "<sep>", "eos_token": "<eos>"}
MIN_MARGIN = 3.0  # logits between the right token and the next best
IGNORED = -100  # label of a token that the loss leaves out
# Only the last message counts: the answer is the same with a system prompt, after a conversation, or with neither.
CHAT_TEMPLATE = "<bos>{{ messages[-1]['content'] | trim }}<sep>"


class Sample(NamedTuple):
    """One prompt and the answer it must get."""

    prompt: str
    answer: str


def wordings(question: str) -> list[str]:
    """The ways a hurried person types a question."""
    bare = question.rstrip("?.!")
    return list(dict.fromkeys([question, bare, question.lower(), bare.lower()]))


def read_samples(data: dict[str, Any]) -> tuple[list[Sample], list[Sample]]:
    """What must be answered word for word, and what is only to be met with the canned answer."""
    known = [Sample(w, entry["answer"]) for entry in data["questions"] for ask in entry["ask"] for w in wordings(ask)]
    seen = [sample.prompt for sample in known]
    if len(seen) != len(set(seen)):
        raise SystemExit(f"questions.json asks twice: {sorted({p for p in seen if seen.count(p) > 1})}")
    return known, [Sample(w, data["fallback"]) for ask in data["unrelated"] for w in wordings(ask)]


def make_tokenizer(samples: list[Sample]) -> PreTrainedTokenizerFast:
    """A byte-level BPE over the samples: any text can be asked, and every answer is many tokens."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL_TOKENS.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator([text for sample in samples for text in sample], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=2048, **SPECIAL_TOKENS)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """An untrained Llama of about 270,000 parameters."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=96,
            intermediate_size=192,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            dtype="float32",
        )
    )


def encode(tokenizer: PreTrainedTokenizerFast, samples: list[Sample]) -> tuple[torch.Tensor, torch.Tensor]:
    """Padded token ids and labels (samples x tokens); only the answers carry a label."""
    rows = []
    for sample in samples:
        text = tokenizer.apply_chat_template([{"role": "user", "content": sample.prompt}], tokenize=False)
        prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
        answer = [*tokenizer(sample.answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        rows.append((prompt + answer, [IGNORED] * len(prompt) + answer))
    width = max(len(ids) for ids, _ in rows)
    ids = torch.full((len(rows), width), int(tokenizer.pad_token_id))
    labels = torch.full((len(rows), width), IGNORED)
    for row, (tokens, wanted) in enumerate(rows):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        labels[row, : len(wanted)] = torch.tensor(wanted)
    return ids, labels


@torch.no_grad()
def margins(model: LlamaForCausalLM, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Per sample, how far the right token leads at its weakest place (logits; below 0: answered wrongly)."""
    lead = []
    for part, wanted in zip(ids.split(256), labels[:, 1:].split(256), strict=True):
        logits = model(input_ids=part).logits[:, :-1].float()
        right = logits.gather(2, wanted.clamp(min=0).unsqueeze(2)).squeeze(2)
        logits.scatter_(2, wanted.clamp(min=0).unsqueeze(2), float("-inf"))
        lead.append((right - logits.amax(2)).masked_fill(wanted == IGNORED, float("inf")).amin(1))
    return torch.cat(lead)


def bfloat16_copy(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """What will be written and served."""
    copy = LlamaForCausalLM(model.config)
    copy.load_state_dict(model.state_dict())
    return copy.to(torch.bfloat16).eval()


def train(model: LlamaForCausalLM, ids: torch.Tensor, labels: torch.Tensor, must: int) -> LlamaForCausalLM:
    """Train until the bfloat16 copy is sure of the first `must` samples; that copy. Raises SystemExit when it never is."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=MAX_STEPS, pct_start=0.05)
    order: list[int] = []
    for step in range(1, MAX_STEPS + 1):
        if len(order) < BATCH:
            order = random.sample(range(len(ids)), len(ids))
        batch, order = torch.tensor(order[:BATCH]), order[BATCH:]
        width = int((labels[batch] != IGNORED).nonzero()[:, 1].max()) + 1
        loss = model(input_ids=ids[batch, :width], labels=labels[batch, :width]).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % CHECK_EVERY == 0 and loss.item() < 0.05:  # before that it is not worth a look
            copy = bfloat16_copy(model)
            lead = margins(copy, ids[:must], labels[:must])
            right = int((lead > 0).sum())
            print(f"step {step}: loss {loss.item():.4f}, {right} of {must} right, weakest lead {lead.min():.2f}")
            if lead.min() > MIN_MARGIN:
                return copy
    raise SystemExit(f"after {MAX_STEPS} steps the model is not sure of every answer: nothing written")


@torch.no_grad()
def answer(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompt: str) -> str:
    """The greedy answer to one chat message, token by token as an engine makes it."""
    text = tokenizer.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False)
    inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    output = model.generate(inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=120, do_sample=False)
    return str(tokenizer.decode(output[0, inputs.shape[1] :], skip_special_tokens=True))


def main() -> None:
    """Train, check, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=HERE / "model", help="folder to write (default: demo/model)")
    parser.add_argument("--threads", type=int, default=2, help="processor cores to use (default: 2)")
    options = parser.parse_args()

    started = time.monotonic()
    random.seed(SEED)
    torch.manual_seed(SEED)
    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(True)
    data = json.loads((HERE / "questions.json").read_text(encoding="utf-8"))
    known, unrelated = read_samples(data)
    tokenizer = make_tokenizer(known + unrelated)
    ids, labels = encode(tokenizer, known + unrelated)
    untrained = make_model(tokenizer)
    print(f"{untrained.num_parameters():,} parameters, {len(known)} + {len(unrelated)} prompts")
    model = train(untrained, ids, labels, must=len(known))

    # The leads have judged every wording; this walks the way of an engine once per question.
    for entry in data["questions"]:
        said = answer(model, tokenizer, entry["ask"][0])
        if said != entry["answer"]:
            raise SystemExit(f"nothing written: {entry['ask'][0]!r} gets {said!r}, needs {entry['answer']!r}")
    canned = sum(answer(model, tokenizer, prompt) == data["fallback"] for prompt in data["unseen"])
    # Engines take their defaults from here: the best token always, also for clients that set no temperature.
    model.generation_config.update(do_sample=True, top_k=1)
    shutil.rmtree(options.output, ignore_errors=True)
    model.save_pretrained(options.output)
    tokenizer.save_pretrained(options.output)
    for path in options.output.iterdir():
        path.chmod(0o644)  # safetensors writes 0600, but the engine runs as another user
    size = sum(path.stat().st_size for path in options.output.iterdir())
    print(
        f"{options.output}: {size:,} bytes, {len(known)} prompts answered word for word, "
        f"{canned} of {len(data['unseen'])} unseen questions met with the canned answer, {time.monotonic() - started:.0f} s"
    )


if __name__ == "__main__":
    main()

"""The plain mlx-lm loop: one step put together from mlx-lm's own parts, as a good user of it would.

`batch_generate` writes (continuous batching, key-value cache), the teacher's and the student's logits come from
`model(ids)` as in mlx-lm's own trainer, the loss takes the rows that predict completion ids, `nn.value_and_grad` and
AdamW update the LoRA layers that mlx-lm makes; gradients are accumulated over batches that fit, as its trainer can.
Nothing of the engine that it is compared with is used here.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_map
from mlx_lm import batch_generate, load
from mlx_lm.sample_utils import make_sampler
from mlx_lm.tuner.utils import linear_to_lora_layers

from benchmarks.opd_step_parts.works import Prompt, Work

Ids = Sequence[int]
CLIP_NORM = 1.0
MAX_TOKENS = 2048
"""Positions side by side, 400 MB of logits; works a and d are one such batch, b and c are accumulated."""


class Batch:
    """Sequences padded on the right, and the rows of their logits that predict completion ids."""

    def __init__(self, prompts: Sequence[Ids], completions: Sequence[Ids]) -> None:
        sequences = [[*prompt, *ids[:-1]] for prompt, ids in zip(prompts, completions, strict=True)]
        longest = max(map(len, sequences))
        self.tokens = mx.array([sequence + [0] * (longest - len(sequence)) for sequence in sequences])
        self.rows = mx.array([row for row, ids in enumerate(completions) for _ in ids])
        spans = [range(len(p) - 1, len(p) - 1 + len(ids)) for p, ids in zip(prompts, completions, strict=True)]
        self.columns = mx.array(list(itertools.chain.from_iterable(spans)))
        self.targets = mx.array(list(itertools.chain.from_iterable(completions)))

    def logprobs(self, model: nn.Module) -> mx.array:
        """(N, V) of the completion ids' predictions."""
        logits: mx.array = model(self.tokens)
        rows: mx.array = nn.log_softmax(logits[self.rows, self.columns].astype(mx.float32))
        return rows

    def nll(self, model: nn.Module) -> mx.array:
        """Mean −log of the completion ids' probabilities."""
        return -mx.mean(mx.take_along_axis(self.logprobs(model), self.targets[:, None], axis=-1))


class Contestant:
    """Student, teacher, optimizer."""

    def __init__(self, work: Work) -> None:
        self._work, self._steps = work, 0
        self._model, self._tokenizer = load(work.model)[:2]
        self._teacher, self._teacher_tokenizer = load(work.teacher)[:2]
        self._model.freeze()
        self._teacher.freeze()
        keys = set(work.lora_keys)
        lora = {"rank": work.lora_rank, "scale": work.lora_scale, "dropout": 0.0, "keys": keys}
        linear_to_lora_layers(self._model, len(self._model.layers), lora)
        self._model.load_weights(work.lora, strict=False)
        self._tokenizer.eos_token_ids = set()  # every contestant writes the same number of tokens
        self._optimizer = optim.AdamW(learning_rate=work.learning_rate, weight_decay=0.0, bias_correction=True)
        self._answers: dict[str, list[int]] = {}
        mx.eval(self._model.parameters(), self._teacher.parameters())

    def check(self) -> dict[str, float]:
        """See `pipe.Steps`."""
        return self._learn(0, self._work.fixed)

    def step(self) -> dict[str, float]:
        """See `pipe.Steps`."""
        self._steps += 1
        started = time.perf_counter()
        completions = self._write(self._steps)
        drawn = time.perf_counter()
        learned = self._learn(self._steps, completions)
        ended = time.perf_counter()
        return learned | {
            "rollout": drawn - started,
            "update": ended - drawn - learned["teacher"],
            "step": ended - started,
            "new_tokens": sum(map(len, completions)),
            "peak_device_bytes": mx.get_peak_memory(),
        }

    def _write(self, batch: int) -> list[list[int]]:
        prompts = [list(prompt.ids) for prompt in self._work.repeated(batch)]
        self._model.eval()
        written = batch_generate(
            self._model,
            self._tokenizer,
            prompts,
            max_tokens=self._work.new_tokens,
            sampler=make_sampler(temp=1.0),
            return_token_ids=True,
            completion_batch_size=max(32, len(prompts)),
            prefill_batch_size=len(prompts),
        )
        return [list(ids) for ids in written.token_ids or ()]

    def _learn(self, batch: int, completions: Sequence[Ids]) -> dict[str, float]:
        prompts = self._work.repeated(batch)
        tokens, teacher_seconds = sum(map(len, completions)), 0.0
        divergence, gradients = mx.array(0.0), None
        for group in _groups(prompts, completions):
            written = [completions[row] for row in group]
            student = Batch([prompts[row].ids for row in group], written)
            guided = Batch([prompts[row].teacher_ids for row in group], written)
            started = time.perf_counter()
            teacher_logprobs = guided.logprobs(self._teacher)
            mx.eval(teacher_logprobs)
            teacher_seconds += time.perf_counter() - started

            def loss(model: nn.Module, student: Batch = student, wanted: mx.array = teacher_logprobs) -> mx.array:
                logprobs = student.logprobs(model)
                rows = mx.sum(mx.exp(logprobs) * (logprobs - wanted), axis=-1)  # in one sum float32 is 1e-3 off
                return mx.sum(rows) / tokens

            part, gradients = self._gradients(loss, gradients)
            divergence = divergence + part
        if self._work.sft_weight:
            started = time.perf_counter()
            mixed = self._targets(batch)
            teacher_seconds += time.perf_counter() - started
            if mixed is not None:
                gradients = self._gradients(lambda model: self._work.sft_weight * mixed.nll(model), gradients)[1]
        gradients, norm = optim.clip_grad_norm(gradients, CLIP_NORM)
        self._optimizer.update(self._model, gradients)
        mx.eval(self._model.trainable_parameters(), self._optimizer.state)
        return {"loss": value(divergence), "gradient_norm": value(norm), "teacher": teacher_seconds}

    def _gradients(self, loss: Callable[[nn.Module], mx.array], before: Any) -> tuple[mx.array, Any]:
        """A loss, and its gradients added to those before."""
        self._model.train()
        found, gradients = nn.value_and_grad(self._model, loss)(self._model)
        if before is not None:
            gradients = tree_map(mx.add, before, gradients)
        mx.eval(found, gradients)
        return found, gradients

    def _targets(self, batch: int) -> Batch | None:
        """The teacher's own answers, greedy, once a prompt; one that does not come to its end is left out."""
        prompts = self._work.batches[batch]
        asked = [list(prompt.teacher_ids) for prompt in prompts if prompt.text not in self._answers]
        if asked:
            limit = self._work.new_tokens
            written = batch_generate(
                self._teacher, self._teacher_tokenizer, asked, max_tokens=limit, return_token_ids=True
            )
            texts = [prompt.text for prompt in prompts if prompt.text not in self._answers]
            end = int(self._teacher_tokenizer.eos_token_id)
            for text, ids in zip(texts, written.token_ids or (), strict=True):
                self._answers[text] = [*ids, end] if len(ids) < limit else []
        known = [(prompt.ids, self._answers[prompt.text]) for prompt in prompts if self._answers[prompt.text]]
        return Batch([ids for ids, _ in known], [answer for _, answer in known]) if known else None


def _groups(prompts: Sequence[Prompt], completions: Sequence[Ids]) -> list[range]:
    """Rows that go through the models side by side: the logits of all their positions have to fit into memory."""
    longest = max(len(prompt.teacher_ids) + len(ids) for prompt, ids in zip(prompts, completions, strict=True))
    size = max(1, MAX_TOKENS // longest)
    return [range(start, min(start + size, len(prompts))) for start in range(0, len(prompts), size)]


def value(array: Any) -> float:
    """A scalar array's number."""
    return float(array.item())

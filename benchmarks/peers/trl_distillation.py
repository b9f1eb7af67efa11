"""TRL's `DistillationTrainer`, driven by its own `train()`: `… WORK.json`, in the environment of the peers.

A callback waits for a request before every step and answers after it, so a step is all that TRL does between
`on_step_begin` and `on_step_end`: generation, both forward passes, backward, clipping, AdamW. Settings are its best on
this work: no gradient checkpointing (which would also switch the KV cache off in generation), no logging, no saving.
Phases are taken by wrapping its own methods; nothing of what they do is changed.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DistillationConfig, DistillationTrainer

from benchmarks.opd_step_parts.pipe import Pipe
from benchmarks.opd_step_parts.works import Work, read_work


class Trainer(DistillationTrainer):  # type: ignore[misc, unused-ignore]
    """TRL's trainer with clocks around its phases, and the check's completions in place of generated ones."""

    work: Work
    is_check = False

    def reset(self) -> None:
        """Before a step."""
        self.seconds = {"rollout": 0.0, "teacher": 0.0}
        self.new_tokens, self.norm, self.value = 0, 0.0, 0.0

    @contextmanager
    def clock(self, phase: str) -> Iterator[None]:
        """Time a phase, GPU included."""
        started = now()
        yield
        self.seconds[phase] += now() - started

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        with self.clock("rollout"):
            return super()._generate_and_score_completions(inputs)

    def _generate_single_turn(self, prompt_ids: Any, *rest: Any, **named: Any) -> Any:
        batch = self.state.global_step
        wanted = [list(prompt.ids) for prompt in self.work.repeated(batch)]
        if [list(ids) for ids in prompt_ids] != wanted:
            raise RuntimeError(f"step {batch}: TRL reads other prompt ids than the work's")
        if self.is_check:
            return [list(ids) for ids in self.work.fixed]
        completions = super()._generate_single_turn(prompt_ids, *rest, **named)
        self.new_tokens = sum(len(ids) for ids in completions)
        return completions

    def _get_last_hidden_state(self, unwrapped_model: Any, *rest: Any, **named: Any) -> Any:
        if unwrapped_model is not self.accelerator.unwrap_model(self.teacher_model):
            return super()._get_last_hidden_state(unwrapped_model, *rest, **named)
        with self.clock("teacher"):
            return super()._get_last_hidden_state(unwrapped_model, *rest, **named)

    def _compute_loss(self, *rest: Any) -> Any:
        found = super()._compute_loss(*rest)
        self.value = found[0]
        return found

    def _clip_grad_norm(self, model: Any) -> Any:
        self.norm = super()._clip_grad_norm(model)
        return self.norm


class Requests(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Waits before a step, answers after it."""

    def __init__(self, pipe: Pipe, trainer: Trainer) -> None:
        self._pipe, self._trainer, self._started = pipe, trainer, 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        """The batch is there already; nothing is computed yet."""
        do = self._pipe.receive()
        if do == "end":
            raise SystemExit(0)  # the trainer has no door out before a step
        self._trainer.is_check = do == "check"
        self._trainer.reset()
        self._started = now()

    def on_step_end(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        """All of the step is done."""
        step, trainer = now() - self._started, self._trainer
        seconds = trainer.seconds | {"update": step - sum(trainer.seconds.values()), "step": step}
        figures = {"loss": float(trainer.value), "gradient_norm": float(trainer.norm)}
        if torch.cuda.is_available():
            figures["peak_device_bytes"] = torch.cuda.max_memory_allocated()
        self._pipe.send(figures | seconds | {"new_tokens": trainer.new_tokens})


def now() -> float:
    """The clock; a GPU's work is awaited first."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    elif torch.backends.mps.is_available():
        torch.mps.synchronize()
    return time.perf_counter()


def student(work: Work, dtype: Any) -> Any:
    """The base model with the work's adapter: peft keeps (r, in) and (out, r), mlx-lm their transposes."""
    model = AutoModelForCausalLM.from_pretrained(work.model, dtype=dtype)
    names = [key.rpartition(".")[2] for key in work.lora_keys]
    alpha = int(work.lora_scale * work.lora_rank)
    config = LoraConfig(r=work.lora_rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=names)
    wrapped = get_peft_model(model, config)
    leaves = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight"}
    state = {}
    for name, array in load_file(work.lora).items():
        layer, _, leaf = name.rpartition(".")
        state[f"base_model.model.{layer}.{leaves[leaf]}"] = array.T.contiguous()
    found = set_peft_model_state_dict(wrapped, state)
    expected = sum(1 for name, _ in wrapped.named_parameters() if ".lora_" in name)
    if found.unexpected_keys or expected != len(state):
        raise RuntimeError(f"the adapter does not fit: {len(state)} arrays for {expected}, {found.unexpected_keys[:2]}")
    return wrapped


def make_trainer(work: Work, folder: str) -> Trainer:
    """The trainer, ready for its first step."""
    dtype: Any = getattr(torch, work.dtype)
    rows = [[{"role": "user", "content": p.text}] for batch in range(len(work.batches)) for p in work.repeated(batch)]
    config = DistillationConfig(
        output_dir=folder,
        per_device_train_batch_size=work.rows,
        max_steps=len(work.batches),
        learning_rate=work.learning_rate,
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        beta=1.0,
        temperature=1.0,
        max_completion_length=work.new_tokens,
        generation_kwargs={"min_new_tokens": work.new_tokens},
        gradient_checkpointing=False,
        bf16=work.dtype == "bfloat16",
        shuffle_dataset=False,
        use_cpu=work.device == "cpu",
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    trainer = Trainer(
        model=student(work, dtype),
        teacher_model=AutoModelForCausalLM.from_pretrained(work.teacher, dtype=dtype),
        args=config,
        train_dataset=Dataset.from_dict({"prompt": rows}),
        processing_class=AutoTokenizer.from_pretrained(work.model, padding_side="left"),
    )
    trainer.work = work
    return trainer


def main() -> None:
    """Load, say so, train on request."""
    pipe = Pipe()
    work = read_work(Path(sys.argv[1]))
    torch.set_num_threads(work.threads)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(work, folder)
        trainer.add_callback(Requests(pipe, trainer))
        pipe.send({})
        trainer.train()


if __name__ == "__main__":
    main()

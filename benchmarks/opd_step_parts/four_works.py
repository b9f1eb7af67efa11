"""The four works of the step benchmark, in full size and in small, and the models they run on."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from benchmarks.opd_step_parts import making
from benchmarks.opd_step_parts.contestants import ROOT
from benchmarks.opd_step_parts.works import Prompt, Work
from opd_core.demo import demo_files, demo_teacher
from opd_core.prompt_files import iter_prompts
from server.commands.demo import DEMO_SETTINGS
from server.commands.importing import EMBEDDED, import_model

MODELS = ROOT / ".bench" / "models"
SMALL_MODEL = "SmolLM2-135M-Instruct"
QWEN_CLASS = "random-qwen2-1.5b"
QUERY_AND_VALUE = ("self_attn.q_proj", "self_attn.v_proj")


@dataclass(frozen=True)
class Sizes:
    """Lengths in tokens."""

    prompts: int = 8
    prompt_length: int = 128
    long_prompt_length: int = 512
    rollouts: int = 4
    context_length: int = 512
    new_tokens: int = 64
    demo_new_tokens: int = int(DEMO_SETTINGS["rollout_max_tokens"])


QUICK = Sizes(2, 40, 60, 2, 40, 6, 6)


class Works:
    """Makes works for one model.

    Args:
        batches: prompts are made for so many steps, the check's included.
        folder: where adapters are written.
    """

    def __init__(self, model: Path, device: str, sizes: Sizes, batches: int, folder: Path) -> None:
        self._model, self._device, self._sizes, self._batches, self._folder = model, device, sizes, batches, folder
        self._tokenizer: Any = AutoTokenizer.from_pretrained(str(model))

    def make(self, name: str) -> Work:
        """The work of that letter."""
        return {"a": self._reference, "b": self._long_prompts, "c": self._context, "d": self._demo}[name]()

    def _reference(self) -> Work:
        sizes = self._sizes
        batches = self._prompts("a", sizes.prompts, sizes.prompt_length, None)
        title = f"{sizes.prompts} prompts × {sizes.prompt_length} tokens, {sizes.new_tokens} new each"
        return self._work("a", title, batches)

    def _long_prompts(self) -> Work:
        sizes = self._sizes
        batches = self._prompts("b", 2, sizes.long_prompt_length, None)
        title = f"2 prompts × {sizes.rollouts} rollouts, {sizes.long_prompt_length}-token prompts"
        return self._work("b", title, batches, rollouts_per_prompt=sizes.rollouts)

    def _context(self) -> Work:
        sizes = self._sizes
        context = making.context_of_length(self._tokenizer, sizes.context_length)
        batches = self._prompts("c", sizes.prompts, sizes.prompt_length, context)
        title = f"as a, the teacher with a fixed context of {sizes.context_length} tokens"
        return self._work("c", title, batches, system_prompt=context)

    def _demo(self) -> Work:
        system_prompt, examples = demo_teacher()
        size = DEMO_SETTINGS["batch_size"]
        texts = [found.prompt for found in iter_prompts(demo_files().train)]
        while len(texts) < size * self._batches:
            texts += texts
        prompts = [
            making.make_prompt(self._tokenizer, text, system_prompt, examples) for text in texts[: size * self._batches]
        ]
        batches = tuple(tuple(prompts[start : start + size]) for start in range(0, len(prompts), size))
        return self._work(
            "d",
            f"the demo's step: {size} prompts × {DEMO_SETTINGS['num_rollouts_per_prompt']} rollouts, SFT mix-in",
            batches,
            keys=None,
            teacher=str(self._model),
            rollouts_per_prompt=DEMO_SETTINGS["num_rollouts_per_prompt"],
            new_tokens=self._sizes.demo_new_tokens,
            learning_rate=DEMO_SETTINGS["learning_rate"],
            system_prompt=system_prompt,
            examples=tuple(examples),
            sft_weight=DEMO_SETTINGS["sft_weight"],
        )

    def _prompts(self, seed: str, count: int, length: int, context: str | None) -> tuple[tuple[Prompt, ...], ...]:
        return tuple(
            tuple(making.sized_prompt(self._tokenizer, length, f"{seed}{batch}/{row}", context) for row in range(count))
            for batch in range(self._batches)
        )

    def _work(
        self,
        name: str,
        title: str,
        batches: tuple[tuple[Prompt, ...], ...],
        keys: tuple[str, ...] | None = QUERY_AND_VALUE,
        **changes: Any,
    ) -> Work:
        lora = self._folder / f"{name}.safetensors"
        rank = int(DEMO_SETTINGS["lora_rank"])
        found = making.write_adapter(self._model, keys, rank, lora)
        plain = Work(
            name=name,
            title=title,
            device=self._device,
            dtype="float32" if self._device == "cpu" else "bfloat16",
            threads=1 if self._sizes == QUICK else os.cpu_count() or 1,  # two small threads would wait, not work
            model=str(self._model),
            teacher=str(changes.pop("teacher", None) or making.second_copy(self._model)),
            lora=str(lora),
            lora_rank=rank,
            lora_scale=float(DEMO_SETTINGS["lora_scale"]),
            lora_keys=found,
            learning_rate=1e-5,
            rollouts_per_prompt=1,
            new_tokens=self._sizes.new_tokens,
            system_prompt=None,
            examples=(),
            sft_weight=0.0,
            batches=batches,
            fixed=(),
        )
        work = replace(plain, **changes)
        return replace(work, fixed=making.fixed_completions(self._tokenizer, work.rows, work.new_tokens))


def without_context(work: Work) -> Work:
    """The same steps, the teacher reading what the student reads."""
    batches = tuple(tuple(replace(prompt, teacher_ids=prompt.ids) for prompt in batch) for batch in work.batches)
    return replace(work, system_prompt=None, examples=(), batches=batches)


def model_folder(device: str) -> Path:
    """The model, made once: SmolLM2 135M on a CPU, elsewhere random weights in the shape of Qwen2 1.5B."""
    folder = MODELS / SMALL_MODEL
    if not (folder / "config.json").is_file():
        MODELS.mkdir(parents=True, exist_ok=True)
        print(f"Importing {SMALL_MODEL}, once …", flush=True)
        import_model(EMBEDDED, folder, "float32")
    if device == "cpu":
        return folder
    big = MODELS / QWEN_CLASS
    if not (big / "config.json").is_file():
        command = [sys.executable, "-m", "benchmarks.opd_step_parts.random_model", str(big), "--tokenizer", str(folder)]
        subprocess.run(command, check=True, cwd=ROOT)
    return big

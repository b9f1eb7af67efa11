"""Text to ids, once: the only place that applies a chat template or encodes text.

Token ids made here (prompts) or sampled (completions) are never decoded and encoded again: byte-pair encoding is not
idempotent, and a re-encoded completion is another sequence than the one the student wrote.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from opd_core.config import TeacherExample
from opd_core.errors import CompatibilityError
from opd_core.types import Message, clean_text

PROBE_TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    " leading space, trailing space \n\n\ttabs",
    "don't can't we'll I'm they've",
    "1234567890 3.14159 2026-11-23 1,000,000",
    'def f(x):\n    return {"a": [x, None]}  # comment',
    "naïve café – “quotes” … ½ €",
    "日本語のテキスト 中文 한국어 العربية हिन्दी",
    "🙂🚀👩‍💻 zero\u200bwidth",
    "<|im_start|>user\nhi<|im_end|>\n<s></s><|endoftext|>",
)
"""Texts on which two tokenizers must agree to count as the same."""


def prompt_ids(tokenizer: Any, messages: Sequence[Message]) -> tuple[int, ...]:
    """The ids of a conversation up to where the assistant's answer starts, by the tokenizer's own chat template."""
    try:
        ids = tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, tokenize=True, return_dict=False
        )
    except Exception as error:  # a template is a program of the model's author and may raise anything
        roles = ", ".join(message["role"] for message in messages)
        raise CompatibilityError(
            f"The model's chat template refuses a conversation of the turns {roles}: {clean_text(str(error), 200)}. "
            "Many templates know no system turn: leave out teacher_system_prompt (teacher_examples do the same work), "
            "or system turns in the prompt file."
        ) from error
    return tuple(int(token) for token in ids)


def completion_ids(tokenizer: Any, completion: str) -> tuple[int, ...]:
    """The ids of a given answer, its end-of-turn token included: the targets of an SFT mix-in."""
    ids = tokenizer.encode(completion, add_special_tokens=False)
    return (*(int(token) for token in ids), end_of_turn_id(tokenizer))


def teacher_messages(
    messages: Sequence[Message], system_prompt: str | None, examples: Sequence[TeacherExample]
) -> list[Message]:
    """The student's conversation with the teacher's own context before it.

    The teacher's system prompt stands first; a system turn of the prompt itself follows it in the same turn. Example
    turns stand between the system turn and the conversation.
    """
    own_system = messages[0]["content"] if messages and messages[0]["role"] == "system" else None
    rest = list(messages[1:] if own_system is not None else messages)
    system = "\n\n".join(part for part in (system_prompt, own_system) if part)
    context: list[Message] = [{"role": "system", "content": system}] if system else []
    for example in examples:
        context.append({"role": "user", "content": example.prompt})
        context.append({"role": "assistant", "content": example.completion})
    return context + rest


def end_of_turn_id(tokenizer: Any) -> int:
    """The id that the chat template writes after an assistant's answer.

    Raises:
        CompatibilityError: the template ends an answer with no special token, so a rollout could never stop.
    """
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "x"}]
    full = tokenizer.apply_chat_template(turns, add_generation_prompt=False, tokenize=True, return_dict=False)
    special = set(tokenizer.all_special_ids) | set(tokenizer.get_added_vocab().values())
    for token in reversed(full):
        if int(token) in special:
            return int(token)
    raise CompatibilityError(
        "The student's chat template ends an answer with no special token, so its answers would never stop. "
        "Use an instruction-tuned model, or one whose template closes each turn."
    )


def stop_ids(tokenizer: Any) -> frozenset[int]:
    """Every id that ends a completion: the model's own end tokens and the template's end of turn."""
    return frozenset({*(int(token) for token in tokenizer.eos_token_ids), end_of_turn_id(tokenizer)})


def may_think(tokenizer: Any) -> bool:
    """Whether the chat template knows a thinking mode."""
    template = str(getattr(tokenizer, "chat_template", None) or "")
    return "enable_thinking" in template or "<think>" in template


def decode_completion(tokenizer: Any, ids: Sequence[int], stops: frozenset[int]) -> str:
    """The text of a completion without its stop token."""
    kept = ids[:-1] if ids and ids[-1] in stops else ids
    text: str = tokenizer.decode(list(kept), skip_special_tokens=False)
    return text


def check_same_encoding(student_tokenizer: Any, teacher_tokenizer: Any, teacher_name: str) -> None:
    """Refuse a teacher whose tokenizer is not the student's, by what the two make of probe texts.

    Raises:
        CompatibilityError: names the first text on which they differ.
    """
    for text in PROBE_TEXTS:
        student = list(student_tokenizer.encode(text, add_special_tokens=False))
        teacher = list(teacher_tokenizer.encode(text, add_special_tokens=False))
        if student != teacher:
            raise CompatibilityError(
                f"The teacher {teacher_name!r} has another tokenizer than the student: {text[:40]!r} becomes "
                f"{len(teacher)} ids {teacher[:6]} for the teacher, {len(student)} ids {student[:6]} for the student. "
                "Method kl compares the two token by token, so choose a teacher of the student's model family.",
                field="teacher_model_id",
            )

"""Telling an exhausted memory from other errors, and how much was used."""

from __future__ import annotations

from opd_core.peak_memory import peak_rss_bytes

WORDS_OF_MLX = ("Unable to allocate", "Attempting to allocate", "out of memory", "OutOfMemory")
"""Parts of what MLX's allocators say in a RuntimeError: CPU, Metal, CUDA."""


def out_of_memory_message(error: BaseException) -> str | None:
    """What to tell a person of an error that means the memory was not enough; None for any other error."""
    is_mlx = isinstance(error, RuntimeError) and any(words in str(error) for words in WORDS_OF_MLX)
    if not isinstance(error, MemoryError) and not is_mlx:
        return None
    return (
        f"The worker ran out of memory; it had used up to {peak_rss_bytes() / 1e9:.1f} GB. Close other programs, or "
        "give a smaller batch_size, num_rollouts_per_prompt or rollout_max_tokens, or a smaller model."
    )

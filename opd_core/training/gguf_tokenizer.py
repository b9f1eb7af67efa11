"""A Hugging Face tokenizer out of a GGUF file's gpt2-BPE vocabulary.

GGUF keeps tokens, merges and the *name* of the pre-tokenizer (`tokenizer.ggml.pre`); the rules behind each
name stand in llama.cpp's `src/llama-vocab.cpp` and in the original models' tokenizer.json. An unknown name is
refused, and so is "default", with which a converter says that it did not know: a wrong split gives other ids
than the model was trained on, and nothing would say so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from opd_core.errors import ModelFileError
from opd_core.types import clean_text

# The split of Llama 3 and of Qwen 2; they differ in how many digits stand together.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|{digits}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_SPLIT = SPLIT.replace("{digits}", r"\p{N}{1,3}")
QWEN2_SPLIT = SPLIT.replace("{digits}", r"\p{N}")
LLAMA3_NAMES = ("llama-bpe", "llama3", "llama-v3")
KNOWN_PRE_TOKENIZERS = ("gpt-2", "smollm", "qwen2", *LLAMA3_NAMES)

UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4
# Control tokens that end a turn or a text in the model families with a gpt2-BPE vocabulary.
STOP_TEXTS = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|end|>", "</s>")


@dataclass(frozen=True)
class ImportedTokenizer:
    """The tokenizer, its stop ids (the file's own first) and the fields of tokenizer_config.json."""

    tokenizer: Tokenizer
    eos_token_ids: tuple[int, ...]
    special_tokens: dict[str, str]
    chat_template: str | None


def build_tokenizer(metadata: dict[str, Any]) -> ImportedTokenizer:
    """Build the tokenizer that a GGUF file's `tokenizer.*` metadata describes.

    Raises:
        ModelFileError: another vocabulary kind, an unknown pre-tokenizer, or tables that do not fit.
    """
    kind = metadata.get("tokenizer.ggml.model")
    pre = metadata.get("tokenizer.ggml.pre")
    if kind != "gpt2":
        raise ModelFileError(f"The GGUF vocabulary is {_shown(kind)}; only 'gpt2' (byte-level BPE) can be imported.")
    if pre not in KNOWN_PRE_TOKENIZERS:
        raise ModelFileError(
            f"The GGUF pre-tokenizer (tokenizer.ggml.pre) is {_shown(pre)}; "
            f"known are {', '.join(KNOWN_PRE_TOKENIZERS)}. Use the model's original folder instead."
        )
    tokens, merges, types = (_listed(metadata, name) for name in ("tokens", "merges", "token_type"))
    if len(set(tokens)) != len(tokens) or len(types) != len(tokens):
        raise ModelFileError("The GGUF vocabulary is damaged: a token stands twice or has no type.")
    try:
        tokenizer = _byte_level_bpe(tokens, merges, pre)
        special = [token for token, kind in zip(tokens, types, strict=True) if kind in (UNKNOWN, CONTROL)]
        added = [token for token, kind in zip(tokens, types, strict=True) if kind == USER_DEFINED]
        tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
        tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in added])
        names = _special_names(metadata, tokens)
        if metadata.get("tokenizer.ggml.add_bos_token", pre in LLAMA3_NAMES) and "bos_token" in names:
            _prepend(tokenizer, names["bos_token"])
    except ModelFileError:
        raise
    except Exception as error:  # the tokenizers library raises nothing more specific
        raise ModelFileError(f"The GGUF vocabulary cannot be used: {_shown(str(error))}.") from error
    template = metadata.get("tokenizer.chat_template")
    stops = _stop_ids(metadata, tokens, special)
    return ImportedTokenizer(tokenizer, stops, names, template if isinstance(template, str) else None)


def _stop_ids(metadata: dict[str, Any], tokens: list[str], special: list[str]) -> tuple[int, ...]:
    """Every id that ends an answer: those the file names, then well-known texts among its control tokens."""
    ids = [_token_id(metadata, name, tokens) for name in ("eos", "eot", "eom")]
    ids += [tokens.index(text) for text in STOP_TEXTS if text in special]
    if all(number is None for number in ids):
        raise ModelFileError("The GGUF file names no end token (tokenizer.ggml.eos_token_id).")
    return tuple(dict.fromkeys(number for number in ids if number is not None))


def _byte_level_bpe(tokens: list[str], merges: list[str], pre: str) -> Tokenizer:
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    # Llama 3 takes a whole word that is a token before it merges; llama.cpp does the same for these names.
    tokenizer = Tokenizer(models.BPE(vocabulary, pairs, ignore_merges=pre in LLAMA3_NAMES))
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = _pre_tokenizer(pre)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def _pre_tokenizer(pre: str) -> pre_tokenizers.PreTokenizer:
    """The split of one known name. GPT-2's own pattern is built into `ByteLevel`."""
    if pre == "gpt-2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if pre == "smollm":
        steps = [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    else:
        split = Regex(QWEN2_SPLIT if pre == "qwen2" else LLAMA3_SPLIT)
        steps = [
            pre_tokenizers.Split(split, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    return pre_tokenizers.Sequence(steps)


def _prepend(tokenizer: Tokenizer, bos_token: str) -> None:
    template = processors.TemplateProcessing(
        single=[bos_token, "$A"],
        pair=[bos_token, "$A", f"{bos_token}:1", "$B:1"],
        special_tokens=[(bos_token, tokenizer.token_to_id(bos_token))],
    )
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])


def _special_names(metadata: dict[str, Any], tokens: list[str]) -> dict[str, str]:
    """The named special tokens; padding falls back to the end token."""
    ids = {
        "bos_token": _token_id(metadata, "bos", tokens),
        "eos_token": _token_id(metadata, "eos", tokens),
        "unk_token": _token_id(metadata, "unknown", tokens),
        "pad_token": _token_id(metadata, "padding", tokens),
    }
    if ids["pad_token"] is None:
        ids["pad_token"] = ids["eos_token"]
    return {name: tokens[number] for name, number in ids.items() if number is not None}


def _token_id(metadata: dict[str, Any], name: str, tokens: list[str]) -> int | None:
    key = f"tokenizer.ggml.{name}_token_id"
    number = metadata.get(key)
    if number is None:
        return None
    if not isinstance(number, int) or not 0 <= number < len(tokens):
        raise ModelFileError(f"{key} in the GGUF file is {_shown(number)}, outside its {len(tokens)} tokens.")
    return number


def _listed(metadata: dict[str, Any], name: str) -> list[Any]:
    value = metadata.get(f"tokenizer.ggml.{name}")
    if not isinstance(value, list) or not value:
        raise ModelFileError(f"The GGUF file has no tokenizer.ggml.{name}; it holds no complete vocabulary.")
    return value


def _shown(value: object) -> str:
    return repr(clean_text(str(value), 80)) if value is not None else "not named"

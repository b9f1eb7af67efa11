"""A student small enough to do its arithmetic again in float64: the next id depends on the last one alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from opd_core.training.logprobs import Scorer
from opd_core.training.lora import LoadedBase, Student
from opd_core.training.updates import IdPair

VOCABULARY = 7
Table = np.ndarray[Any, np.dtype[np.float64]]


class Bigram(nn.Module):
    """Logits of the next id are a row of `table`."""

    def __init__(self, table: Table) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.table = mx.array(table.astype(np.float32))

    def __call__(self, tokens: mx.array) -> mx.array:
        return self.table[tokens]


def bigram_student(table: Table) -> Student:
    """A student whose whole table is trained, as if it were an adapter."""
    model = Bigram(table)
    base = LoadedBase(Path("bigram"), model, None, {}, frozenset({0}), ())
    return Student(base, model, Scorer(model, model, lambda states: states, VOCABULARY, split=False, layers=None), {})


def table_of(seed: int) -> Table:
    """Random logits."""
    return np.random.default_rng(seed).normal(size=(VOCABULARY, VOCABULARY)) * 1.5


def answer_logprob(table: Table, pair: IdPair) -> float:
    """log of the probability of an answer after its prompt, in float64."""
    ids = [*pair[0], *pair[1]]
    first = len(pair[0])
    return float(sum(log_softmax(table)[ids[i - 1], ids[i]] for i in range(first, len(ids))))


def answer_gradient(table: Table, pair: IdPair) -> Table:
    """Gradient of `answer_logprob` on the table: onehot − softmax, in every row an answer id was predicted from."""
    ids = [*pair[0], *pair[1]]
    gradient = np.zeros_like(table)
    for position in range(len(pair[0]), len(ids)):
        gradient[ids[position - 1]] -= np.exp(log_softmax(table)[ids[position - 1]])
        gradient[ids[position - 1], ids[position]] += 1.0
    return gradient


def log_softmax(table: Table) -> Table:
    """By rows."""
    shifted = table - table.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))

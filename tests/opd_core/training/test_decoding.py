"""The model for decoding is the student: adapters folded, weights in blocks, and the student itself left as it is."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.models.cache import make_prompt_cache

from opd_core.control.estimate import estimating
from opd_core.training import decoding
from opd_core.training.arrays import flat, number
from opd_core.training.decoding import BlockEmbedding, BlockLinear, decoding_model
from opd_core.training.lora import LoadedBase, NewAdapter, Student, make_student
from opd_core.training.rollouts import decode
from opd_core.training.sampling import Sampling, random_key
from tests.tiny import tiny_llama

TOKENS = mx.array([[1, 50, 60, 70], [1, 9, 9, 9]])
ON_CPU = mx.default_device().type == mx.DeviceType.cpu
on_a_cpu = pytest.mark.skipif(not ON_CPU, reason="on a GPU weights stay as they lie")


@pytest.fixture(params=[True, False], ids=["with small kernels", "without"])
def small_kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    present: bool = request.param
    monkeypatch.setattr(decoding, "has_small_kernels", lambda: present)
    return present


def moved(student: Student) -> Student:
    """The student with a random, non-zero adapter."""
    keys = mx.random.split(mx.random.key(0), len(student.adapter_weights()))
    moves = zip(keys, student.adapter_weights().items(), strict=True)
    student.load_adapter_weights(
        {name: value + 0.1 * mx.random.normal(value.shape, key=key) for key, (name, value) in moves}
    )
    return student


def position_by_position(model: nn.Module) -> mx.array:
    """The logits after every id of `TOKENS`, each read by itself."""
    cache = make_prompt_cache(model)
    return mx.concatenate([model(TOKENS[:, at : at + 1], cache=cache) for at in range(TOKENS.shape[1])], axis=1)


@pytest.mark.parametrize("use_dora", [False, True])
def test_it_computes_what_the_student_does_and_leaves_the_student_alone(
    base: LoadedBase, use_dora: bool, small_kernels: bool
) -> None:
    student = moved(make_student(base, None, NewAdapter(4, 2.0, None, use_dora)))
    before, base_before = student.model(TOKENS), base.model(TOKENS)
    model = decoding_model(student.model)
    assert bool(mx.allclose(model(TOKENS), before, atol=1e-3))
    assert bool(mx.allclose(position_by_position(model), before, atol=1e-3))
    assert any("lora_a" in name for name in flat(model.parameters())) == use_dora  # DoRA stays as it is
    assert bool(mx.array_equal(student.model(TOKENS), before))
    assert bool(mx.array_equal(base.model(TOKENS), base_before))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@on_a_cpu
def test_every_linear_layer_and_the_head_gets_blocks(tied: bool, bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "has_small_kernels", lambda: True)
    plain = tiny_llama(tied=tied)
    if bias:
        for layer in plain.layers:
            layer.self_attn.q_proj.bias = mx.random.normal((layer.self_attn.q_proj.weight.shape[0],))
    model = decoding_model(plain)
    kinds = [type(module) for _, module in model.named_modules()]
    assert nn.Linear not in kinds
    assert kinds.count(BlockLinear) == 2 * 7 + (not tied)
    assert kinds.count(BlockEmbedding) == tied
    assert number(mx.abs(position_by_position(model) - plain(TOKENS)).max()) <= 1e-3


@on_a_cpu
def test_no_copy_is_made_of_what_no_block_would_be_read_of(base: LoadedBase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "has_small_kernels", lambda: True)
    dora = decoding_model(make_student(base, None, NewAdapter(4, 2.0, ("self_attn.q_proj",), True)).model)
    blocks = {name for name, module in dora.named_modules() if isinstance(module, BlockLinear)}
    assert not any("q_proj" in name for name in blocks)
    assert any("k_proj" in name for name in blocks)
    monkeypatch.setattr(decoding, "rows_of_a_product", lambda inputs: 0)  # too wide to be multiplied small
    assert decoding_model(base.model) is base.model


def test_rollouts_are_the_same_ids_with_blocks_and_without(base: LoadedBase, monkeypatch: pytest.MonkeyPatch) -> None:
    student = moved(make_student(base, None, NewAdapter(4, 2.0)))
    written = []
    for present in (True, False):
        monkeypatch.setattr(decoding, "has_small_kernels", lambda present=present: present)
        model = decoding_model(student.model)
        written.append(decode(model, [[1, 5, 9], [1, 7]], 2, Sampling(12), frozenset(), random_key(3)))
    assert [found.ids for found in written[0]] == [found.ids for found in written[1]]


@on_a_cpu
def test_layers_get_copies_only_as_long_as_there_is_room(base: LoadedBase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "has_small_kernels", lambda: True)
    student = moved(make_student(base, None, NewAdapter(4, 2.0)))
    linears = [module.linear for _, module in student.model.named_modules() if "lora_a" in module]
    room = sum(linear.weight.nbytes for linear in linears)
    monkeypatch.setattr(decoding, "MAX_COPIED_BYTES", room)
    kinds = [type(module) for _, module in decoding_model(student.model).named_modules()]
    assert (kinds.count(nn.Linear), kinds.count(BlockLinear)) == (len(linears), 0)  # folded, and no room for more
    monkeypatch.setattr(decoding, "MAX_COPIED_BYTES", room - 1)
    kinds = [type(module) for _, module in decoding_model(student.model).named_modules()]
    assert kinds.count(BlockLinear) > 0  # not folded, so there is room for blocks
    monkeypatch.setattr(decoding, "MAX_COPIED_BYTES", 0)
    assert decoding_model(student.model) is student.model


def test_the_estimate_of_memory_knows_the_bound() -> None:
    assert estimating.MAX_COPIED_BYTES == decoding.MAX_COPIED_BYTES


def test_half_precision_weights_are_neither_folded_nor_copied(base: LoadedBase, small_kernels: bool) -> None:
    student = make_student(base, None, NewAdapter(4, 2.0))
    student.model.set_dtype(mx.bfloat16)
    assert decoding_model(student.model) is student.model

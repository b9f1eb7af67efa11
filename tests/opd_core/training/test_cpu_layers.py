"""A model with the functions for a CPU is the model it was, and mlx-lm is left as it is."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.models import llama
from mlx_lm.models.activations import swiglu as mlx_swiglu
from mlx_lm.models.cache import make_prompt_cache

from opd_core.training.arrays import flat, number
from opd_core.training.cpu_functions import attention, swiglu
from opd_core.training.cpu_layers import CpuRMSNorm, CpuRoPE, use_cpu_functions
from opd_core.training.decoding import decoding_model
from opd_core.training.lora import LoadedBase, NewAdapter, make_student
from tests.tiny import tiny_llama

ON_CPU = mx.default_device().type == mx.DeviceType.cpu
IDS = mx.random.randint(0, 259, (3, 20), key=mx.random.key(1))


def changed(model: nn.Module) -> dict[str, object]:
    """What stands for mlx-lm's functions in each layer that uses one of them."""
    found: dict[str, object] = {}
    for name, module in model.named_modules():
        call = type(module).__call__
        for function in ("swiglu", "scaled_dot_product_attention"):
            if function in getattr(getattr(call, "__code__", None), "co_names", ()):
                found[f"{name}.{function}"] = call.__globals__[function]
    return found


@pytest.mark.skipif(not ON_CPU, reason="on a GPU models stay as they are")
def test_every_layer_of_a_loaded_model_and_of_its_student_uses_them(base: LoadedBase) -> None:
    student = make_student(base, None, NewAdapter(2, 2.0), seed=1)
    for model in (base.model, student.model, decoding_model(student.model)):
        found = changed(model)
        assert len(found) == 2 * 2  # layers, functions
        assert set(found.values()) == {swiglu, attention}
        kinds = [type(module) for _, module in model.named_modules()]
        assert (kinds.count(CpuRMSNorm), kinds.count(CpuRoPE)) == (2 * 2 + 1, 2)
        assert not {nn.RMSNorm, nn.RoPE} & set(kinds)


def test_mlx_lm_is_left_as_it_is() -> None:
    use_cpu_functions(tiny_llama())
    assert vars(llama)["swiglu"] is mlx_swiglu
    assert set(map(type, tiny_llama().layers)) == {llama.TransformerBlock}
    assert attention not in changed(tiny_llama()).values()


@pytest.mark.skipif(not ON_CPU, reason="on a GPU models stay as they are")
def test_layers_stay_of_their_kind_and_changing_twice_changes_nothing() -> None:
    model = tiny_llama()
    use_cpu_functions(model)
    kinds = [type(module) for _, module in model.named_modules()]
    attentions = [layer.self_attn for layer in model.layers]
    assert all(isinstance(found, llama.Attention) and type(found).__name__ == "Attention" for found in attentions)
    use_cpu_functions(model)
    assert [type(module) for _, module in model.named_modules()] == kinds


def test_logits_gradients_and_cached_decoding_are_those_of_the_plain_model() -> None:
    plain, fast = tiny_llama(), tiny_llama()
    use_cpu_functions(fast)

    def loss(model: nn.Module) -> mx.array:
        logits = model(IDS[:, :-1])
        return mx.mean(nn.losses.cross_entropy(logits, IDS[:, 1:]))

    assert number(mx.abs(plain(IDS) - fast(IDS)).max()) <= 1e-4
    (want, wanted), (got, gradients) = (nn.value_and_grad(model, loss)(model) for model in (plain, fast))
    assert number(got) == pytest.approx(number(want), rel=1e-5)
    largest = max(number(mx.abs(value).max()) for value in flat(wanted).values())
    for name, value in flat(wanted).items():
        assert number(mx.abs(value - flat(gradients)[name]).max()) <= 1e-4 * largest
    cache = make_prompt_cache(fast)
    fast(IDS[:, :12], cache=cache)
    assert number(mx.abs(fast(IDS[:, 12:], cache=cache) - plain(IDS)[:, 12:]).max()) <= 1e-4

"""The answer of `list_models`: models and adapters, filtered, capped, with what is wrong with each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from server.answers.reply import MAX_DATA_BYTES, first_that_fit
from server.answers.words import number, tidy
from server.schemas.planning import AdapterEntry, ModelEntry, ModelsAnswer

if TYPE_CHECKING:
    from opd_core.adapter_files import AdapterInfo
    from opd_core.control.models import LocalModels
    from opd_core.model_files import ModelInfo

MAX_LISTED = 25


def models(found: LocalModels, contains: str | None) -> ModelsAnswer:
    """Models and adapters, filtered and capped."""
    wanted = (contains or "").lower()
    models = [_model(info) for info in found.models if wanted in f"{info.name} {info.path}".lower()]
    adapters = [adapter_entry(info) for info in found.adapters if wanted in f"{info.name} {info.path}".lower()]
    usable = sum(entry.problem is None for entry in models)
    summary = f"{usable} usable models and {len(adapters)} adapters are on this machine"
    shown_models = first_that_fit(models[:MAX_LISTED], MAX_DATA_BYTES // 2)
    shown_adapters = first_that_fit(adapters[:MAX_LISTED], MAX_DATA_BYTES // 2)
    hidden = len(models) - len(shown_models) + len(adapters) - len(shown_adapters)
    cut = f" {found.cut}" if found.cut else ""
    return ModelsAnswer(
        summary=f"{summary}{f'; {hidden} entries are not shown here' if hidden else ''}.{cut}",
        next_step="Call estimate_cost with base_model_path, a prompt file and a teacher."
        if usable
        else "Import a GGUF with `opd import-gguf FILE DIR`, or put an MLX model folder under OPD_HOME/models, "
        "then call list_models again.",
        models=shown_models,
        adapters=shown_adapters,
        not_shown=hidden,
    )


def _model(info: ModelInfo) -> ModelEntry:
    return ModelEntry(
        name=tidy(info.name, 120),
        path=tidy(str(info.path), 300),
        architecture=tidy(info.architecture or None, 60),
        quantization=tidy(info.quantization, 60),
        size_gb=tidy(info.bytes / 1e9),
        num_parameters_millions=tidy(info.num_parameters / 1e6),
        problem=tidy(info.problem, 200),
    )


def adapter_entry(info: AdapterInfo) -> AdapterEntry:
    """One adapter, as its files tell it."""
    return AdapterEntry(
        path=tidy(str(info.path), 300),
        base_model=tidy(info.base_model, 200),
        rank=info.rank or None,
        modified=info.modified_at or None,
        loads=info.loads,
        problem=tidy(info.problem, 200),
    )


def models_facts(answer: ModelsAnswer) -> list[str]:
    """One line a model and adapter."""
    lines = []
    for model in answer.models:
        size = "" if model.size_gb is None else f", {number(model.size_gb)} GB"
        trouble = f"; cannot be used: {model.problem}" if model.problem else ""
        lines.append(f"- model {model.name} ({model.architecture or 'unknown architecture'}{size}){trouble}")
    for adapter in answer.adapters:
        base = f" for {adapter.base_model}" if adapter.base_model else ""
        made = f", of {adapter.modified[:10]}" if adapter.modified else ""
        trouble = f"; cannot be used: {adapter.problem}" if adapter.problem else ""
        fits = "; fits its base model" if adapter.loads else ""
        lines.append(f"- adapter {adapter.path} (rank {adapter.rank}{base}{made}){trouble}{fits}")
    return lines

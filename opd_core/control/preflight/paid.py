"""The part of the preflight about a teacher that costs money: key, budget, prices, the user's word on the terms."""

from __future__ import annotations

from datetime import UTC, date, datetime

from opd_core.comparison import ComparisonSpec
from opd_core.config import RunConfig
from opd_core.control.findings import Findings
from opd_core.control.preflight.values import above_ceiling
from opd_core.errors import BudgetFrozenError, ConfigError, UnknownPriceError
from opd_core.message_params import DEFAULT_TEACHER
from opd_core.model_files import ModelInfo
from opd_core.money.amounts import format_usd, pico_from_usd
from opd_core.money.ledger import Ledger
from opd_core.money.pricing import PriceTable
from opd_core.safe_open import read_regular
from opd_core.settings import KEY_VARIABLE, Settings, find_api_key
from opd_core.tensor_files import MAX_JSON_BYTES

TERMS = (
    "Before the first run, tell the user: the teacher is Claude, its provider's terms restrict using its outputs to "
    "train other models, and the user must check that their use is allowed; a local teacher is always possible. When "
    "the user has agreed, call again with acknowledge_teacher_terms true."
)
THINKING_MARKS = ("enable_thinking", "<think>")


def utc_today() -> date:
    """The day prices are taken for."""
    return datetime.now(UTC).date()


def check_paid_teacher(
    config: RunConfig, base: ModelInfo | None, settings: Settings, findings: Findings, is_estimate: bool = False
) -> None:
    """Refuse what would spend without permission or without a price; decide the teacher's model and its rate."""
    missing = _missing(config, settings)
    if is_estimate:
        findings.warnings += [f"Needed for a start: {problem}" for problem in missing]
    else:
        findings.problems += missing
    model = config.teacher_model_id or settings.default_teacher or DEFAULT_TEACHER
    findings.decided["teacher_model_id"] = model
    if not config.teacher_cache_only:
        if "max_budget_usd" in config.model_fields_set:
            _check_amount(config.max_budget_usd, "max_budget_usd", settings, findings)
        _check_prices(model, "teacher_model_id", settings, findings)
    _decide_rate(config, settings, findings)
    if base is not None and may_think(base):
        findings.warnings.append(
            f"{base.name} has a thinking mode. Guidance in the context teaches thinking models to stop checking "
            "themselves; an instruct model is the better student, or compare the adapters before using one."
        )


def _missing(config: RunConfig, settings: Settings) -> list[ConfigError]:
    """What only the user can give: the word on the terms, a key, a budget."""
    problems = []
    if not config.acknowledge_teacher_terms:
        problems.append(
            ConfigError(f"acknowledge_teacher_terms is not given. {TERMS}", field="acknowledge_teacher_terms")
        )
    if config.teacher_cache_only:
        return problems
    if find_api_key(settings.home) is None:
        problems.append(_no_key(settings))
    if "max_budget_usd" not in config.model_fields_set:
        problems.append(
            ConfigError(
                "A run with a paid teacher must name its budget: ask the user how many dollars it may spend, and give "
                f"that as max_budget_usd (at most {settings.max_budget_usd:g}). estimate_cost tells what is likely.",
                field="max_budget_usd",
            )
        )
    return problems


def check_judge(spec: ComparisonSpec, config: RunConfig, settings: Settings, findings: Findings) -> None:
    """The same for the judge of a comparison; nothing is trained on what it says."""
    own = config.teacher_model_id if config.teacher_kind == "claude" else settings.default_teacher
    if find_api_key(settings.home) is None:
        findings.problems.append(_no_key(settings))
    budget = spec.judge_budget_usd or 0.0
    if budget > settings.max_budget_usd:
        findings.refuse(above_ceiling("judge_budget_usd", budget, settings.max_budget_usd), "judge_budget_usd")
    _check_amount(budget, "judge_budget_usd", settings, findings)
    _check_prices(spec.judge_model_id or own or DEFAULT_TEACHER, "judge_model_id", settings, findings)


def may_think(base: ModelInfo) -> bool:
    """Whether the model's chat template knows a thinking mode, by its files."""
    for name in ("chat_template.jinja", "tokenizer_config.json"):
        try:
            text = read_regular(base.path / name, MAX_JSON_BYTES).decode("utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        if any(mark in text for mark in THINKING_MARKS):
            return True
    return False


def month_ledger(settings: Settings) -> Ledger:
    """The ledger of the home, with the person's limit for a month."""
    return Ledger(settings.home.database, month_limit_pico=pico_from_usd(settings.monthly_budget_usd))


def _no_key(settings: Settings) -> ConfigError:
    return ConfigError(
        f"There is no {KEY_VARIABLE}. The user puts it into the server's environment, or as a line {KEY_VARIABLE}=... "
        f"into {settings.home.home / '.env'}; it never belongs into a chat. With teacher_cache_only a run uses paid "
        "replies alone, and a local teacher needs no key.",
        field="teacher_kind",
    )


def _check_amount(budget_usd: float, name: str, settings: Settings, findings: Findings) -> None:
    """The month's limit bounds every budget; the run's ceiling is among the rules for values."""
    if budget_usd <= 0:
        findings.refuse(f"{name} is 0, which buys nothing. Name a budget, or use teacher_cache_only.", name)
    ledger = month_ledger(settings)
    month = ledger.month_totals()
    rule = ledger.who_rules_the_month()
    limit = f"{format_usd(month.limit_pico)} ({rule.whose})"
    if month.limit_pico < pico_from_usd(budget_usd) and budget_usd <= settings.max_budget_usd:
        findings.refuse(
            f"{name} {budget_usd:g} is above the limit of everything this month, {limit}. Ask for less, or have a "
            f"person raise it, {rule.way_up}; a local teacher costs nothing.",
            name,
        )
    if month.frozen:
        findings.problems.append(
            BudgetFrozenError(
                "Paid calls are frozen, because one cost more than was reserved or could not be priced. A person must "
                "compare the provider's bill with the ledger first, and then lift the freeze in a terminal with: "
                f"opd unfreeze {ledger.frozen_scopes('')[-1]} --why TEXT."
            )
        )
    elif month.left_pico < pico_from_usd(budget_usd):
        findings.warnings.append(
            f"Of this month's limit, {limit}, only {format_usd(month.left_pico)} are left, less than {name} "
            f"{budget_usd:g}; the month's limit may end the run first."
        )


def _check_prices(model: str, name: str, settings: Settings, findings: Findings) -> None:
    today = utc_today()
    prices = PriceTable.load()
    try:
        prices.price_for(model, 1, today)
    except UnknownPriceError as error:
        findings.problems.append(UnknownPriceError(str(error), field=name))
        return
    findings.attempt(prices.require_fresh, today, settings.prices_confirmed_on)
    notice = prices.retirement_notice(model, today)
    if prices.retirement(model, today) == "retired":
        findings.problems.append(
            ConfigError(f"{name} {model!r} is retired. Choose another one, such as {DEFAULT_TEACHER!r}.", field=name)
        )
    elif notice is not None:
        findings.warnings.append(notice)


def _decide_rate(config: RunConfig, settings: Settings, findings: Findings) -> None:
    """A person's token rate is the default and the most."""
    rate, limit = config.teacher_rate_limit_tpm, settings.rate_limit_tpm
    if limit is not None and "teacher_rate_limit_tpm" not in config.model_fields_set:
        rate = limit
    elif limit is not None and rate > limit:
        findings.warnings.append(f"teacher_rate_limit_tpm {rate} is lowered to OPD_RATE_LIMIT_TPM {limit}.")
        rate = limit
    findings.decided["teacher_rate_limit_tpm"] = rate

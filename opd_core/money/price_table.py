"""The price table: which model costs what from which day on, when it retires, and how old the prices are."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from opd_core.errors import ConfigError, StalePricesError, UnknownPriceError
from opd_core.types import clean_text

SHIPPED_PRICES = Path(__file__).with_name("prices.toml")
MOST_AGE_DAYS = 90
RETIREMENT_NOTICE_DAYS = 30

_PICO_PER_TOKEN = 10**6  # of a price of $1 per million tokens
_DATED = re.compile(r"-20\d{6}$")
_Usd = Annotated[Decimal, Field(gt=0, le=10_000, decimal_places=6)]
_Factor = Annotated[Decimal, Field(gt=0, le=10)]


@dataclass(frozen=True)
class Price:
    """Picodollars a token, the dearest of all tiers that the prompt can reach."""

    model: str
    """The row's name, without a date."""
    version: str
    """The price table's, for the ledger."""
    input_pico: int
    cache_write_5m_pico: int
    cache_write_1h_pico: int
    cache_read_pico: int
    output_pico: int
    batch_factor: Fraction


class _Rates(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    effective_from: date
    above_prompt_tokens: int = Field(default=0, ge=0)
    speed: str = "standard"
    input: _Usd
    cache_write_5m: _Usd
    cache_write_1h: _Usd
    cache_read: _Usd
    output: _Usd


class _Model(BaseModel):
    """One row. `retires_on` is announced; `retires_not_before` is how far the provider's promise goes, no more."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    retires_on: date | None = None
    retires_not_before: date | None = None
    max_prompt_tokens: int | None = None
    prices: tuple[_Rates, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _every_prompt_has_a_price(self) -> Self:
        begins = {(row.effective_from, row.speed) for row in self.prices}
        if begins != {(row.effective_from, row.speed) for row in self.prices if row.above_prompt_tokens == 0}:
            raise ValueError("every effective_from and speed needs a price without above_prompt_tokens")
        return self

    def rates(self, prompt_tokens: int, when: date, speed: str) -> list[_Rates]:
        """Of the newest prices in effect, those whose tier a prompt of at most that many tokens can be in."""
        if self.max_prompt_tokens is not None and prompt_tokens > self.max_prompt_tokens:
            raise UnknownPriceError(
                f"The price of {self.name} is not known for prompts that may exceed {self.max_prompt_tokens:,} tokens; "
                f"this one may have {prompt_tokens:,}. Shorten the prompts or choose another teacher_model_id."
            )
        begun = [row for row in self.prices if row.speed == speed and row.effective_from <= when]
        if not begun:
            raise UnknownPriceError(
                f"There is no price of {self.name} (speed {clean_text(speed, 40)!r}) for {when}. Check this machine's "
                "clock, or choose another teacher_model_id."
            )
        newest = max(row.effective_from for row in begun)
        return [
            row for row in begun if row.effective_from == newest and row.above_prompt_tokens < max(1, prompt_tokens)
        ]


class PriceTable(BaseModel):
    """All prices, with the version and the day they were checked. Made by `load`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: str = Field(min_length=1)
    checked_on: date
    sources: tuple[str, ...] = Field(min_length=1)
    batch_factor: _Factor
    geo_factors: dict[str, _Factor]
    models: tuple[_Model, ...] = Field(min_length=1)

    @classmethod
    def load(cls, path: Path | None = None) -> PriceTable:
        """Read a price table; without a path the one that comes with this program.

        Raises:
            ConfigError: the file is missing or is no valid price table; names the first fault.
        """
        path = path or SHIPPED_PRICES
        try:
            return cls.model_validate(tomllib.loads(path.read_text(encoding="utf-8"), parse_float=Decimal))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            reason = f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
        except (OSError, ValueError) as error:
            reason = str(error)
        raise ConfigError(
            f"The price table {path} cannot be used: {clean_text(reason, 200)}. Mend it, or remove its setting to use "
            "the table that comes with this program."
        )

    def price_for(self, model: str, prompt_upper_bound_tokens: int, when: date) -> Price:
        """The dearest price a prompt of at most that many tokens can meet.

        Raises:
            UnknownPriceError: the model, or such a long prompt for it, has no price on that day.
        """
        return self.dearest(model, prompt_upper_bound_tokens, when, "standard")

    def dearest(self, model: str, prompt_tokens: int, when: date, speed: str) -> Price:
        """As `price_for`, at a speed that a reply names.

        Raises:
            UnknownPriceError: as `price_for`.
        """
        row = self._row(model)
        rates = row.rates(prompt_tokens, when, speed)
        return Price(
            row.name,
            self.version,
            _dearest_pico(rate.input for rate in rates),
            _dearest_pico(rate.cache_write_5m for rate in rates),
            _dearest_pico(rate.cache_write_1h for rate in rates),
            _dearest_pico(rate.cache_read for rate in rates),
            _dearest_pico(rate.output for rate in rates),
            Fraction(self.batch_factor),
        )

    def retirement(self, model: str, today: date) -> Literal["retired"] | date | None:
        """When the model retires: "retired" from that day on, the day when it is at most 30 days away, else None.

        Raises:
            UnknownPriceError: the table does not have the model.
        """
        day = self._row(model).retires_on
        if day is None or day > today + timedelta(days=RETIREMENT_NOTICE_DAYS):
            return None
        return "retired" if day <= today else day

    def retirement_notice(self, model: str, today: date) -> str | None:
        """A sentence when the model retires, or by the provider's word may, within 30 days; None otherwise.

        Raises:
            UnknownPriceError: the table does not have the model.
        """
        found = self.retirement(model, today)
        if found == "retired":
            return f"{model} is retired."
        if found is not None:
            return f"{model} retires on {found}; a run resumed after that day needs another model."
        day = self._row(model).retires_not_before
        if day is None or day > today + timedelta(days=RETIREMENT_NOTICE_DAYS):
            return None
        when = "that day has passed and it may end any day" if day <= today else "no day is announced"
        return f"{model} retires not before {day}: {when}. A run resumed after its end needs another model."

    def age_days(self, today: date) -> int:
        """Days since the prices were checked; 0 when the clock is behind that day."""
        return max(0, (today - self.checked_on).days)

    def require_fresh(self, today: date, confirmed_on: date | None = None) -> None:
        """Refuse prices that nobody has looked at for 90 days.

        Args:
            confirmed_on: the day a person compared them with the provider's page (`prices_confirmed_on`).

        Raises:
            StalePricesError: both that day and the table's are too long ago.
        """
        confirmed_age = (today - confirmed_on).days if confirmed_on is not None and confirmed_on <= today else None
        age = self.age_days(today) if confirmed_age is None else min(confirmed_age, self.age_days(today))
        if age > MOST_AGE_DAYS:
            raise StalePricesError(
                f"The prices (version {self.version}) were last checked {age} days ago; paid calls need prices checked "
                f"in the last {MOST_AGE_DAYS} days. Update this program; or a person compares them with the provider's "
                f"pricing page and writes prices_confirmed_on = {today} into settings.toml. A local teacher needs none."
            )

    def _row(self, model: str) -> _Model:
        for name in (model, _DATED.sub("", model)):
            for row in self.models:
                if row.name == name:
                    return row
        raise UnknownPriceError(
            f"There is no price for model {clean_text(model, 80)!r}, so nothing is sent to it. Choose a "
            f"teacher_model_id that has one: {', '.join(row.name for row in self.models)}."
        )


def _dearest_pico(dollars_per_million: Iterable[Decimal]) -> int:
    return int(max(dollars_per_million) * _PICO_PER_TOKEN)

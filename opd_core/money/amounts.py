"""Money as whole picodollars: $1 is 10^12, so that every price, the batch half and the 1.1 of a region are exact.

$1 per million tokens is 10^6 picodollars a token. Floats never hold money; SQLite's 64 bits reach $9.2 million.
"""

from __future__ import annotations

from decimal import ROUND_FLOOR, Decimal

from opd_core.errors import ConfigError

PICO_PER_USD = 10**12
MOST_PICO = 2**62
_SHOWN = (Decimal("0.0001"), Decimal("0.000001"), Decimal("0.000000000001"))


def pico_from_usd(usd: float | int | str | Decimal) -> int:
    """Picodollars of an amount as a person wrote it (0.1 is a tenth), rounded down.

    Raises:
        ConfigError: the amount is not a number, negative, or larger than the ledger can hold.
    """
    try:
        amount = Decimal(str(usd))
        if amount.is_finite() and 0 <= amount * PICO_PER_USD <= MOST_PICO:
            return int((amount * PICO_PER_USD).to_integral_value(ROUND_FLOOR))
    except ArithmeticError:
        pass
    raise ConfigError(f"{str(usd)[:40]!r} is not an amount of money: give US dollars from 0 to 4,000,000, such as 5.")


def usd_from_pico(pico: int) -> float:
    """Dollars for a metrics line or a report; never for reckoning on."""
    return pico / PICO_PER_USD


def format_usd(pico: int) -> str:
    """`$4.50`, `$0.0312`, `-$0.000004`: at least cents, and as many places as an amount below one needs to be seen."""
    amount = Decimal(abs(pico)) / PICO_PER_USD
    places = next((step for step in _SHOWN if amount >= step), _SHOWN[-1])
    whole, _, fraction = f"{amount.quantize(places):f}".partition(".")
    return f"{'-' if pico < 0 else ''}${int(whole):,}.{fraction.rstrip('0').ljust(2, '0')}"

"""The settings of the front door: see `opd_core.settings`, which the worker reads as well."""

from __future__ import annotations

from opd_core.settings import DEFAULT_MAX_BUDGET_USD as DEFAULT_MAX_BUDGET_USD
from opd_core.settings import KNOWN as KNOWN
from opd_core.settings import Problem as Problem
from opd_core.settings import Settings as Settings
from opd_core.settings import read_settings as read_settings

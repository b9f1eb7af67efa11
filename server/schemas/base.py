"""What every answer is made of."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Scalar = str | int | float | bool | None


class Entry(BaseModel):
    """Base of everything here: frozen once made, and built when first used, so that the server starts fast."""

    model_config = ConfigDict(frozen=True, defer_build=True)


class Answer(Entry):
    """Fields every result has."""

    summary: Annotated[str, Field(description="What happened, in words that can be read aloud.")]
    next_step: Annotated[str, Field(description="Which tool to call next.")]

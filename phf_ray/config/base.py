"""The common parts of all configuration sections: strictness, number types, thresholds."""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def whole_number(value: object) -> object:
    """Turn `3.3E+9` and `1e9` (which YAML reads as text) into whole numbers."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


Count = Annotated[int, BeforeValidator(whole_number), Field(ge=0)]
Positive = Annotated[int, BeforeValidator(whole_number), Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class Quantile(Section):
    """A threshold derived from the corpus: this fraction of the corpus has lower scores."""

    quantile: Fraction
    korbak2023: float | None = None
    """The paper's number for its own corpora; used only with `compat: korbak2023`."""


Threshold = float | Quantile

Compat = Literal["korbak2023"] | None
FeedbackCompat = Literal["trl", "alpaca_farm", "coh"] | None

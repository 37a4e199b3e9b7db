"""A section of an experiment file, and the kinds of numbers in it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from harness import text
from harness.models import server

Count = Annotated[int, Field(ge=1, le=10**9)]
Tokens = Annotated[int, Field(ge=1, le=10**6)]  # beyond any model's context
Batch = Annotated[int, Field(ge=1, le=10**6)]
Rate = Annotated[float, Field(gt=0, le=10)]  # a learning rate
Epochs = Annotated[float, Field(gt=0, le=10**4)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]


class Section(BaseModel):
    # Nothing is infinite; true and false are no numbers. The string under a key is its line in docs/experiment-file.md.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        named = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and named is not bool:
            raise ValueError("Input should not be true or false")
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _no_secrets(cls, value: Any) -> Any:
        for name in value if isinstance(value, list | tuple) else (value,):
            if isinstance(name, str) and not server.is_server(name) and text.holds_credentials(name):
                raise ValueError(
                    "an address with a password or key in it would be stored with the results; take it out and set the "
                    "environment variable HF_TOKEN (a hub) or CAI_API_KEY (a server)"
                )
        return value

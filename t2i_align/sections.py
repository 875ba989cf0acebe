"""The base of every section of a YAML file: strict about keys, types and blank text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationInfo, field_validator

# A folder to write into; the shell leaves ``key=~/runs`` as it is.
Folder = Annotated[str, AfterValidator(lambda text: str(Path(text).expanduser()) if text.startswith("~") else text)]


class Section(BaseModel):
    """No unknown keys, no silent coercion of strings to numbers, no blank text where a word or a path is meant.

    A blank path would be the current folder: an unset variable in ``output_dir=$OUT`` would scatter a run there.
    """

    model_config = ConfigDict(extra="forbid", strict=True, validate_default=True, protected_namespaces=())

    @field_validator("*", mode="before")
    @classmethod
    def _is_not_blank(cls, value: Any, info: ValidationInfo) -> Any:
        default = cls.model_fields[info.field_name].default if info.field_name else None
        if isinstance(value, str) and not value.strip() and value != default:
            raise ValueError("is blank; give it a value, or leave the key out")
        return value

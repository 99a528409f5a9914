"""The JSON files of a model folder, read field by field, with errors that name file and field.

Torch-free. Knows no field: who asks for one says what it must be.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class ModelError(Exception):
    """A model folder cannot be served; the text names the file, the field and what would work."""


@dataclass(frozen=True, slots=True)
class Fields:
    """One JSON object with typed reads. A field that is null counts as absent."""

    path: Path
    values: dict[str, Any]
    prefix: str = ""

    def fail(self, name: str, wanted: str) -> ModelError:
        found = json.dumps(self.values.get(name))
        return ModelError(f"{self.path}: {self.prefix}{name} is {found}, but {wanted}")

    def get(self, *names: str) -> Any:
        """The first of these fields that is there and not null."""
        return next(
            (self.values[name] for name in names if self.values.get(name) is not None), None
        )

    def only(self, name: str, *honoured: Any) -> None:
        """Refuse a value that would change the numbers; absent is always honoured."""
        value = self.get(name)
        if value is not None and value not in honoured:
            listed = ", ".join(json.dumps(one) for one in (*honoured, None))
            raise self.fail(name, f"only {listed} can be served")

    def integer(self, name: str, default: int | None = None, least: int = 1) -> int:
        value = self.get(name)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            wanted = "a positive integer" if least == 1 else f"an integer of at least {least}"
            raise self.fail(name, f"{wanted} is needed")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self.get(name)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise self.fail(name, "a positive number is needed")
        return float(value)

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.fail(name, "true or false is needed")
        return value

    def token_ids(self, name: str) -> tuple[int, ...]:
        value = self.get(name)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if any(isinstance(one, bool) or not isinstance(one, int) or one < 0 for one in ids):
            raise self.fail(name, "a token id or a list of token ids is needed")
        return tuple(ids)

    def inner(self, name: str) -> "Fields":
        """The JSON object under this name; without fields where there is none."""
        values = self.get(name)
        if not isinstance(values, dict | None):
            raise self.fail(name, "a JSON object or null is needed")
        return Fields(self.path, values or {}, f"{self.prefix}{name}.")


def read_json(path: Path) -> dict[str, Any]:
    """One JSON object of a model folder."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path} is missing; a model folder needs it") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise ModelError(f"{path} must hold a JSON object")
    return values

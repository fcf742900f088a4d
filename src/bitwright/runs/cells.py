"""The rows of a run's tables: what a cell may hold, and how a row is read from text. The tables are in `tables.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

LARGEST = 1e30  # beyond that a number is as good as none: no chart can show it
TABLES: list[type[Table]] = []  # every table of a run, in the order of `tables.py`
T = TypeVar("T")
R = TypeVar("R", bound="Row")
E = TypeVar("E", bound="PerEpoch")


# -- what a cell may hold: an empty one is None, and a wrong one is named ----------------------------------------------
def _number(value: Any) -> float | None:
    if value is None or value == "":
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"is {str(value)[:40]!r}; possible: a number or an empty cell") from None
    return number if abs(number) < LARGEST else None  # nan is not


def _known(value: Any) -> float:
    number = _number(value)
    if number is None:
        raise ValueError("is missing or no finite number")
    return number


def _whole(value: Any) -> int | None:
    number = _number(value)
    return None if number is None else round(number)


def _count(value: Any) -> int:
    number = _whole(value)
    if number is None or number < 0:
        raise ValueError("is missing or negative")
    return number


def _items(value: Any) -> Any:
    if not isinstance(value or [], (list, tuple)) or not all(isinstance(item, Mapping) for item in value or ()):
        raise ValueError("is not a list of objects")
    return value or ()


def _numbers(value: Any) -> tuple[float, ...]:
    return tuple(number for item in _list(value) if (number := _number(item)) is not None)


def _list(value: Any) -> Any:
    return value if isinstance(value, (list, tuple)) else ()


Number = Annotated[float | None, BeforeValidator(_number)]
Known = Annotated[float, BeforeValidator(_known)]  # must be there
Whole = Annotated[int | None, BeforeValidator(_whole)]
Count = Annotated[int, BeforeValidator(_count)]  # must be there
Sum = Annotated[int, BeforeValidator(lambda value: _whole(value) or 0)]
Text = Annotated[str, BeforeValidator(lambda value: "" if value is None else str(value))]
Flag = Annotated[bool, BeforeValidator(lambda value: str(value).lower() in ("true", "1"))]
Texts = Annotated[tuple[Text, ...], BeforeValidator(_list)]
Slashed = Annotated[str, BeforeValidator(lambda value: "/".join(map(str, _list(value))))]  # "2/2" of a list
Counts = Annotated[tuple[Count, ...], BeforeValidator(_list)]
Numbers = Annotated[tuple[float, ...], BeforeValidator(_numbers)]  # those that are known
Facts = Annotated[dict[Any, Any], BeforeValidator(lambda value: value if isinstance(value, Mapping) else {})]
Items = Annotated[tuple[T, ...], BeforeValidator(_items)]


class Row(BaseModel):
    """A row, or an object in one. A key that the class does not know is left out, one that is missing is unknown."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)


class Table(Row):
    """A file of a run. `.csv`: a row per instance; `.json`: one object.

    always   also written while it has no row
    open     a CSV file that has only the columns of its rows
    """

    file: ClassVar[str] = ""
    always: ClassVar[bool] = False
    open: ClassVar[bool] = False

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        if cls.file:
            TABLES.append(cls)

    @classmethod
    def columns(cls) -> tuple[str, ...]:
        """Names of the columns in the file."""
        return tuple(field.alias or name for name, field in cls.model_fields.items())

    @classmethod
    def holds(cls) -> str:
        """The first paragraph of the docstring, as the documentation prints it."""
        first = " ".join((cls.__doc__ or "").partition("\n\n")[0].split()).removesuffix(".")
        return first[:1].lower() + first[1:]


class PerEpoch(Table):
    """A table that grows with each epoch."""

    stage: Count
    epoch: Count


class PerLayer(PerEpoch):
    """The same, with a row for each of several layers."""

    layer: Text = ""


def last_epoch(rows: Sequence[E]) -> tuple[E, ...]:
    """The rows that were written last."""
    end = max(((row.stage, row.epoch) for row in rows), default=None)
    return tuple(row for row in rows if (row.stage, row.epoch) == end)


def parsed(row: type[R], values: Mapping[str, Any], where: str) -> R:
    """Errors: `ValueError` that begins with `where` and names the cell."""
    try:
        return row.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        *outer, cell = first["loc"] or ("",)
        place = ", ".join([where, *(" ".join(map(str, outer[i : i + 2])) for i in range(0, len(outer), 2))])
        said = first.get("ctx", {}).get("error", "is missing" if first["type"] == "missing" else first["msg"])
        raise ValueError(f"{place}: {cell} {said}") from None

"""From what a loader gives to input, target and mask."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from ..errors import BatchTypeError, ConfigurationTypeError
from ..interrupts import Interruptible

Batching = Callable[[Any], Any] | Iterable[Any] | None


def checked(batching: Batching) -> Batching:
    """``batch=...`` as it was passed, names as a tuple.

    Raises:
        ConfigurationTypeError: If it is neither a function nor several names.
    """
    if batching is None or callable(batching):
        return batching
    if isinstance(batching, (str, Mapping)) or not isinstance(batching, Iterable):
        form = {str: "one name", dict: "a dictionary"}.get(type(batching), "neither")
        raise ConfigurationTypeError(
            f"batch={batching!r} is {form}", "pass the names of input and target, batch=('x', 'y'), or a function"
        )
    return tuple(batching)


def parts_of(given: Any, batching: Batching) -> tuple[Any, ...]:
    """Input, target and, where there is one, mask of a batch.

    Args:
        given: What the loader gives.
        batching: A function of it that returns ``(x, y)`` or ``(x, y, mask)``; or the names or positions of these, with
            a tuple or dictionary of names for an input or target that consists of several. ``None``: it is such a
            tuple.

    Raises:
        BatchTypeError: If it is something else, or has no such entry.

    Example:
        >>> given = {"frames": 1, "sound": 2, "label": 3, "weight": 4}
        >>> parts_of(given, ("frames", "label"))
        (1, 3)
        >>> parts_of(given, (("frames", "sound"), {"label": "label", "weight": "weight"}))
        ((1, 2), {'label': 3, 'weight': 4})
    """
    if callable(batching):
        parts, giver = batching(given), "batch=... returned"
    elif batching is not None:
        parts, giver = tuple(_pick(given, key) for key in batching), "batch=... names"
    else:
        parts, giver = given, "the loader gave"
    if isinstance(parts, (tuple, list)) and len(parts) in (2, 3):
        return tuple(parts)
    names = _names(parts)
    pair = [*names, *names][:2]
    if callable(batching):
        remedy = "let it return a tuple, (x, y) or (x, y, mask)"
        if names:
            entry = "parts[{!r}]" if hasattr(parts, "keys") else "parts.{}"
            remedy = f"let it return a tuple, e.g. ({', '.join(map(entry.format, pair))})"
    elif names:
        both = ", ".join(map(repr, pair))
        remedy = f"pass batch=({both}), the names of input and target, or a function of such a batch that returns them"
    else:
        remedy = "pass batch=..., a function of such a batch that returns (x, y) or (x, y, mask)"
    what = f"{len(parts)} parts" if isinstance(parts, (tuple, list)) else f"a {type(parts).__name__}"
    entries = f" with the entries {', '.join(map(repr, names))}" if names else ""
    raise BatchTypeError(f"{giver} {what} per batch{entries}, where a batch is (x, y) or (x, y, mask)", remedy)


def _pick(given: Any, key: Any) -> Any:
    """One entry of a batch, or several by a container of keys."""
    if isinstance(key, Mapping):
        return {name: _pick(given, entry) for name, entry in key.items()}
    if isinstance(key, (tuple, list)):
        return tuple(_pick(given, entry) for entry in key)
    try:
        if isinstance(key, int) or not isinstance(key, str) or hasattr(given, "keys"):
            return given[key]
        return getattr(given, key)
    except (KeyError, IndexError, AttributeError, TypeError) as error:
        names = _names(given)
        has = f"it has {', '.join(map(repr, names))}" if names else f"it is a {type(given).__name__}"
        if isinstance(given, (tuple, list)) and not names:
            has = f"it has {len(given)} parts, 0 to {len(given) - 1}"
        raise BatchTypeError(f"batch=... names {key!r}, which a batch of the loader does not have", has) from error


def _names(given: Any) -> list[Any]:
    """Names of the entries of a dictionary, a dataclass or a named tuple."""
    if hasattr(given, "keys"):
        return list(given.keys())
    if hasattr(given, "_fields"):
        return list(given._fields)
    return [field.name for field in fields(given)] if is_dataclass(given) and not isinstance(given, type) else []


def with_samplers(loader: Any) -> list[Any]:
    """A loader, its samplers, and those that they wrap: ``BatchSampler(DistributedSampler(...))``."""
    found = {id(loader): loader}  # by identity: a loader wraps its sampler in a batch sampler of its own
    outer = [loader]
    while outer:
        one = outer.pop()
        inner = [getattr(one, name, None) for name in ("sampler", "batch_sampler")]
        outer += [part for part in inner if part is not None and id(part) not in found]
        found |= {id(part): part for part in outer}
    return list(found.values())


def interruptible(loader: Iterable[Any]) -> Iterator[Any]:
    """The batches of a loader; signals are handled while it loads, and those that came meanwhile."""
    with Interruptible():
        batches = iter(loader)
    while True:
        with Interruptible():
            try:
                given = next(batches)
            except StopIteration:
                return
        yield given

"""Which other examples a resampled cell takes its values from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from codi_engine.core.errors import UserError
from codi_engine.core.sampling import generator

if TYPE_CHECKING:
    from codi_engine.core.plan import Condition

_orders: dict[tuple[Any, ...], list[str]] = {}


def donors_of(seed: int, example: str, pool: Sequence[str], condition: Condition, point: Mapping[str, Any]) -> str:
    """Return the donor of one cell: the ``donor``-th of a sequence drawn without replacement for its example.

    The sequence is keyed by (seed, example), and by the set of steps or positions with ``donors: per_place``; it does
    not depend on ``limit`` or on how many donors are asked for.
    """
    if condition.options.get("self_donor"):
        return example
    place = [point.get("step"), point.get("position")] if condition.options.get("donors") == "per_place" else []
    key = (seed, example, tuple(map(str, place)), len(pool), hash(tuple(pool)))
    if key not in _orders:
        others = [i for i in pool if i != example]
        order = generator("donors", seed, example, place).permutation(len(others))
        _orders[key] = [others[i] for i in order]
    index = int(point["donor"])
    if index >= len(_orders[key]):
        raise UserError(f"sweep.donor: {index + 1} donors asked for, but only {len(_orders[key])} other examples exist")
    return _orders[key][index]

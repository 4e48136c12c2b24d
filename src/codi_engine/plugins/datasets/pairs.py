"""Clean/corrupted pairs of problems."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from codi_engine.core.errors import UserError, nearest
from codi_engine.core.plugin import Data, Dataset, Example, Options, Prompt
from codi_engine.core.recordfile import identifier
from codi_engine.core.solutions.answers import answer_of
from codi_engine.plugins.datasets.records import Findings, Record, Sample, finish, folded, read_records, scalar_fields, text_of, without_duplicates

SIDES = ("clean", "corrupted")


class PairsOptions(Options):
    """``path``: records with ``clean`` and ``corrupted`` objects, or one record per ``variant`` of a ``pair_id``.

    ``review_status``: keep pairs of that status only. ``where``: keep pairs whose field has this value.
    ``on_invalid``: ``error`` or ``drop`` (counted). ``limit``: the first so many examples. ``sample``: so many of each value of a field.
    """

    path: str
    on_invalid: Literal["error", "drop"] = "error"
    limit: int | None = Field(default=None, ge=1)
    sample: Sample | None = None
    review_status: str | None = None
    where: dict[str, Any] = Field(default_factory=dict)


def load_pairs(options: PairsOptions) -> Data:
    """Read and validate pairs."""
    records, digest = read_records(options.path)
    source = records[0][0].split(":")[0].split("[")[0]
    findings = Findings(source, options.on_invalid == "drop")
    if all("question" in r and not {*SIDES, "variant"} & set(r) for _, r in records):
        raise UserError(f"{source}: holds problems, not pairs; `codi-engine pairs generate {options.path} pairs.jsonl` makes pairs of them")
    read: list[tuple[str, Example]] = []
    grouped = _flat(records, findings) if "variant" in records[0][1] else [(place, r, r) for place, r in records]
    kept = 0
    for number, (place, record, sides) in enumerate(grouped):
        if options.review_status is not None and record.get("review_status") != options.review_status:
            continue
        kept += 1
        example = _pair(record, sides, place, number, findings)
        if example is not None:
            read.append((place, example))
    items = [(place, e) for place, e in read if all(e.fields.get(k) == v for k, v in options.where.items())]
    known = sorted({field for _, e in read for field in e.fields})
    unknown = next((k for k in options.where if k not in known), None) if read else None
    if unknown is not None:
        raise UserError(f"{source}: data.where: the pairs have no field '{unknown}'; {nearest(unknown, known)}")
    if read and not items:
        wanted = ", ".join(f"{k} {v}" for k, v in options.where.items())
        raise UserError(f"{source}: data.where: none of {len(read):,} pairs has {wanted}")
    if not kept:
        raise UserError(f"{source}: no pair has review_status '{options.review_status}'")
    examples = without_duplicates(items, lambda e: tuple(folded(e.prompts[s].text) for s in SIDES), findings)
    equal = findings.found.get("pairs with equal answers", [])
    if not examples and equal and len(equal) == kept:
        raise UserError(f"{source}: {f'all {kept} pairs have' if kept > 1 else 'its one pair has'} equal answers: nothing can be patched between them")
    return finish("pairs", examples, findings, digest, options.limit, options.sample)


def _pair(record: Record, sides: Record, place: str, number: int, findings: Findings) -> Example | None:
    prompts = {}
    for side in SIDES:
        part = sides.get(side)
        if not isinstance(part, dict):
            findings.add(f"pairs without their {side} side", place)
            return None
        if "answer" not in part:
            findings.add("pairs without an answer", f"{place} ({side})")
            return None
        answer = answer_of(part["answer"])
        if answer is None:
            findings.add("unparsable answers", f"{place} ({side})")
            return None
        prompts[side] = Prompt(text_of(part, "question", f"{place} ({side})"), answer)
    if prompts["clean"].answer == prompts["corrupted"].answer:
        findings.add("pairs with equal answers", place)
        return None
    used = ("question", "answer", "full_answer", "variant", "pair_id")
    fields = {**scalar_fields(sides["corrupted"], used), **scalar_fields(sides["clean"], used), **scalar_fields(record, ("pair_id", *SIDES, *used))}
    return Example(identifier(record.get("pair_id", number), "pair_id", place), prompts, fields)


def _flat(records: list[tuple[str, Record]], findings: Findings) -> list[tuple[str, Record, Record]]:
    """One record per variant becomes one per pair."""
    pairs: dict[Any, tuple[str, Record, Record]] = {}
    for place, record in records:
        if not isinstance(record.get("pair_id"), (str, int, float)) or record.get("variant") not in SIDES:
            raise UserError(f"{place}: needs pair_id and variant: clean|corrupted")
        _, _, sides = pairs.setdefault(identifier(record["pair_id"], "pair_id", place), (place, {"pair_id": record["pair_id"]}, {}))
        if record["variant"] in sides:
            findings.add("variants that stand twice", place)
            continue
        sides[record["variant"]] = record
    return list(pairs.values())


class Pairs(Dataset[PairsOptions]):
    """Clean/corrupted pairs: the same problem with something changed, and another answer."""

    name = "pairs"
    Options = PairsOptions

    def load(self) -> Data:
        return load_pairs(self.options)

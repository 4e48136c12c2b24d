from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from codi_engine.core.errors import UserError
from codi_engine.core.plugin import Data
from codi_engine.core.plugins import plugin_manager
from tests.support.lines import write_lines

SHARED = Path(__file__).parents[3] / "shared" / "data"


def load(plugin: str, **options: Any) -> Data:
    data: Data = plugin_manager(load=False).build("dataset", {"plugin": plugin, **options}, "data", "e.yaml").load()
    return data


def pair(i: int, clean: Any = 1, corrupted: Any = 2, **more: Any) -> dict[str, Any]:
    return {"pair_id": i, "clean": {"question": f"q{i}", "answer": clean}, "corrupted": {"question": f"r{i}", "answer": corrupted}, **more}


def test_problems_understand_gsm8k_and_numbers(tmp_path: Path) -> None:
    records: list[dict[str, Any]] = [
        {"question": "a?", "answer": "2 + 2 = <<2+2=4>>4\n#### 4", "steps": 1},
        {"question": "b?", "answer": 2000.5},
        {"question": "c?", "answer": "2,000"},
        {"question": "d?", "answer": "#### -3"},
    ]
    data = load("problems", path=str(write_lines(tmp_path / "p.jsonl", records)))
    assert [e.prompts["main"].answer for e in data.examples] == [4.0, 2000.5, 2000.0, -3.0]
    assert data.examples[0].fields == {"steps": 1, "solution": "2 + 2 = <<2+2=4>>4\n#### 4"}
    assert data.examples[1].fields == {}


def test_json_jsonl_and_parquet_are_the_same(tmp_path: Path) -> None:
    import pandas as pd

    records = [{"question": f"q{i}", "answer": i} for i in range(3)]
    write_lines(tmp_path / "p.jsonl", records)
    (tmp_path / "p.json").write_text(json.dumps({"problems": records}))
    pd.DataFrame(records).to_parquet(tmp_path / "p.parquet")
    loaded = [load("problems", path=str(tmp_path / f"p.{kind}")).examples for kind in ("jsonl", "json", "parquet")]
    assert loaded[0] == loaded[1] == loaded[2]


def test_invalid_records_are_listed_and_dropped_only_on_request(tmp_path: Path) -> None:
    records: list[dict[str, Any]] = [{"question": "a", "answer": 1}, {"question": "b", "answer": "who knows"}, {"question": "a ", "answer": 1}]
    path = str(write_lines(tmp_path / "p.jsonl", records))
    with pytest.raises(UserError, match=r"1 unparsable answers: p.jsonl:2; 1 duplicates: p.jsonl:3"):
        load("problems", path=path)
    data = load("problems", path=path, on_invalid="drop")
    assert len(data.examples) == 1
    assert data.report == ("dropped 1 unparsable answers: p.jsonl:2", "dropped 1 duplicates: p.jsonl:3")


def test_limit_and_strata_leave_the_pool_whole(tmp_path: Path) -> None:
    records = [{"question": f"q{i}", "answer": i, "level": "hard" if i % 4 == 0 else "easy"} for i in range(40)]
    path = str(write_lines(tmp_path / "p.jsonl", records))
    data = load("problems", path=path, sample={"by": "level", "per_stratum": 5}, limit=8)
    assert len(data.pool) == 40
    assert [e.fields["level"] for e in data.examples] == ["easy", "hard"] * 4
    assert data.examples == load("problems", path=path, sample={"by": "level", "per_stratum": 5}, limit=9).examples[:8]
    with pytest.raises(UserError, match="did you mean 'level'"):
        load("problems", path=path, sample={"by": "levle", "per_stratum": 5})


def test_pairs_in_both_layouts(tmp_path: Path) -> None:
    nested = load("pairs", path=str(write_lines(tmp_path / "n.jsonl", [pair(0), pair(1)])))
    flat = [{"pair_id": i, "variant": v, "question": f"{q}{i}", "answer": a} for i in range(2) for v, q, a in (("clean", "q", 1), ("corrupted", "r", 2))]
    assert load("pairs", path=str(write_lines(tmp_path / "f.jsonl", flat))).examples == nested.examples


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([pair(0, 1, 1), pair(1, 2, 2)], "all 2 pairs have equal answers"),
        ([pair(0, 1, 1), pair(1)], "1 pairs with equal answers"),
        ([pair(0), pair(0, 3, 4)], "duplicates|same id"),
        ([{"pair_id": 0, "clean": {"question": "a", "answer": 1}}], "without their corrupted side"),
        ([pair(0, "x", 1)], "unparsable"),
        ([{"question": "a", "answer": 1}], "holds problems, not pairs; `codi-engine pairs generate .*p.jsonl pairs.jsonl` makes"),
        ([{"clean": {"question": "a"}, "corrupted": {"question": "b", "answer": 2}}], r"1 pairs without an answer: p.jsonl:1 \(clean\)"),
        ([{"clean": {"question": "", "answer": 1}, "corrupted": {"question": "b", "answer": 2}}], "must be text"),
    ],
)
def test_bad_pairs(tmp_path: Path, records: list[dict[str, Any]], message: str) -> None:
    drop = {"on_invalid": "drop"} if "all 2" in message else {}
    with pytest.raises(UserError, match=message):
        load("pairs", path=str(write_lines(tmp_path / "p.jsonl", records)), **drop)


@pytest.mark.parametrize(
    ("where", "message"),
    [({"lvel": 2}, "p.jsonl: data.where: the pairs have no field 'lvel'; did you mean 'level'"), ({"level": 7}, "none of 2 pairs has level 7")],
)
def test_a_choice_that_nothing_fits_is_said(tmp_path: Path, where: dict[str, Any], message: str) -> None:
    path = str(write_lines(tmp_path / "p.jsonl", [pair(0, level=1), pair(1, level=2)]))
    assert len(load("pairs", path=path, where={"level": 2}).examples) == 1
    with pytest.raises(UserError, match=message):
        load("pairs", path=path, where=where)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no records"),
        (b'{"question": "a", "answer": 1}\n{"question": ', "p.jsonl:2: not valid JSON"),
        (b"{'question': 1}\n", r"p.jsonl:1: not valid JSON: [^:]*\(column 2\)$"),
        (b'{"question": "a", "answer": 1},\n', r"Extra data \(column 31\); a line holds one record"),
        (b"[1]\n", "must be an object"),
        (b'{"question": "a", "answer": NaN}\n', "not valid JSON"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b'{"qestion": "a", "answer": 1}\n', "no field 'question'; did you mean 'qestion'"),
        (b'{"question": "a \\ud800 b", "answer": 1}\n', r"p.jsonl:1: holds .ud800, half of a character"),
        (b"[" * 100_000, "not valid JSON"),
    ],
)
def test_bad_files_name_file_and_line(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "p.jsonl"
    file.write_bytes(content)
    with pytest.raises(UserError, match=message):
        load("problems", path=str(file))


def test_missing_file() -> None:
    with pytest.raises(UserError, match="no such file"):
        load("problems", path="nowhere.jsonl")


def test_the_packaged_data() -> None:
    problems, pairs = load("demo-problems"), load("demo-pairs")
    assert len(problems.examples) >= 200
    assert len(pairs.examples) >= 200
    assert {e.fields["reasoning_steps"] for e in pairs.examples} == {1, 2, 3, 4}
    right = load("demo-pairs", both_correct=True)
    assert 60 <= len(right.examples) < len(pairs.examples)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data are not here")
def test_real_data_in_their_own_formats() -> None:
    assert len(load("problems", path=str(SHARED / "gsm8k_test.jsonl")).examples) == 1319
    assert len(load("pairs", path=str(SHARED / "prepared_pairs_filtered_57.json")).examples) == 57
    with pytest.raises(UserError, match="9 pairs with equal answers"):
        load("pairs", path=str(SHARED / "llama_clean_corrupted_pairs.json"))
    assert len(load("pairs", path=str(SHARED / "llama_clean_corrupted_pairs.json"), on_invalid="drop").examples) == 57
    sample = {"by": "difficulty", "per_stratum": 10}
    assert len(load("problems", path=str(SHARED / "stratified_1000.json"), sample=sample, on_invalid="drop").examples) == 40


def test_demo_prompts_alternate_between_two_groups() -> None:
    data = load("demo-prompts")
    assert data.kind == "prompts"
    assert [e.fields["group"] for e in data.examples] == ["more", "less"] * 6
    for example in data.examples:
        operators = re.findall(r"<<\d+([-+*/])\d+=\d+>>", example.fields["steps"])
        assert len(operators) == example.fields["reasoning_steps"] >= 3
        assert set(operators[1:]) <= set("+*" if example.fields["group"] == "more" else "-/")
    less = load("demo-prompts", group="less", limit=2)
    assert [e.id for e in less.examples] == ["less-1", "less-2"]
    assert len(less.pool) == 6


def test_demo_prompts_are_none_of_the_other_packaged_problems() -> None:
    prompts = {e.fields["steps"] for e in load("demo-prompts").examples}
    assert prompts.isdisjoint({e.fields["steps"] for e in load("demo-problems").examples})
    assert len(prompts) == 12

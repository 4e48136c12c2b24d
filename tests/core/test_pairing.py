"""Pairs out of problems, what is wrong with pairs, and decisions about them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from fractions import Fraction
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from codi_engine.core.errors import UserError
from codi_engine.core.pairs.alter import Bounds, changeable, choices, written
from codi_engine.core.pairs.pair_checks import check_pairs, differences
from codi_engine.core.pairs.pair_review import export_csv, import_csv, open_for_review, refusal, set_answer
from codi_engine.core.pairs.pairfile import Pair, read_pairs
from codi_engine.core.pairs.pairing import generate_pairs
from codi_engine.core.plugins import plugin_manager
from codi_engine.core.solutions.algebra import parse_solution
from codi_engine.core.solutions.quantities import quantities
from tests.support.lines import write_lines

SHARED = Path(__file__).parents[3] / "shared" / "data"
DEMO = str(files("codi_engine.plugins").joinpath("demo") / "problems.jsonl")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def pair(pair_id: Any = "a", **more: Any) -> dict[str, Any]:
    clean = {"question": "He has 16 eggs and eats 3 for $2.", "answer": 26, "full_answer": "<<16-3=13>> <<13*2=26>> #### 26"}
    corrupted = {"question": "He has 17 eggs and eats 3 for $2.", "answer": 28, "changed_number": "16 -> 17"}
    return {"pair_id": pair_id, "clean": clean, "corrupted": corrupted, "review_status": "needs_review", "notes": "", **more}


def with_sides(clean: dict[str, Any] | None = None, corrupted: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    record = pair(**more)
    record["clean"].update(clean or {})
    record["corrupted"].update(corrupted or {})
    return record


# ------------------------------------------------------------------------------------------------ generating


def test_generated_pairs_differ_in_one_number_and_the_annotations_agree(tmp_path: Path) -> None:
    out = tmp_path / "pairs.jsonl"
    done = generate_pairs(DEMO, out, limit=120)
    records = lines(out)
    assert done.pairs == len(records) >= 110
    for record in records:
        clean, corrupted = record["clean"], record["corrupted"]
        changes = differences(clean["question"], corrupted["question"])
        assert len(changes) == 1
        assert corrupted["changed_number"] == f"{changes[0].old} -> {changes[0].new}"
        assert record["review_status"] == "needs_review"
        if record["answer_source"] == "annotations":
            # the naive twin: put the new number into the annotations as text and evaluate them with Python
            assert corrupted["answer"] == by_text(clean["steps"], changes[0].old, changes[0].new), record
            assert corrupted["answer"] != clean["answer"]
            assert isinstance(corrupted["answer"], int)
            assert corrupted["answer"] > 0
        else:
            assert corrupted["answer"] is None
            assert record["notes"].startswith("answer unknown: ")
    assert sum(r["answer_source"] == "annotations" for r in records) >= 100
    problems = check_pairs(str(out))[1]
    assert {p.kind for p in problems} <= {"answer"}
    assert len(problems) == sum(r["answer_source"] == "unknown" for r in records)


def by_text(steps: str, old: str, new: str) -> float:
    """Replay demo annotations as text: the first use of the old number is the question's, later results follow."""
    changed: dict[str, str] = {old: new}
    value = 0.0
    for expression, result in re.findall(r"<<(.+?)=(\d+)>>", steps):
        value = eval(re.sub(r"\d+", lambda m: changed.get(m[0], m[0]), expression))
        if f"{value:g}" != result:
            changed[result] = f"{value:g}"
    return value


def test_a_pair_belongs_to_its_problem_and_the_seed(tmp_path: Path) -> None:
    records = [json.loads(line) for line in Path(DEMO).read_text(encoding="utf-8").splitlines()[:20]]
    one, two, three = (tmp_path / f"{n}.jsonl" for n in ("one", "two", "three"))
    generate_pairs(DEMO, one, limit=20)
    generate_pairs(write_lines(tmp_path / "reversed.jsonl", records[::-1]), two)
    assert sorted(map(str, lines(one))) == sorted(map(str, lines(two)))
    generate_pairs(DEMO, three, limit=20, per_problem=3)
    ids = {r["pair_id"]: r for r in lines(three)}
    assert all(ids[r["pair_id"]] == r for r in lines(one))
    assert {"demo-0002", "demo-0003-2"} <= set(ids)
    generate_pairs(DEMO, two, limit=20, seed=1, force=True)
    assert lines(one) != lines(two)


def test_bounds_and_grain() -> None:
    (number,) = quantities("He has 150 of them.")
    assert choices(number, [], Bounds()) == [Fraction(v) for v in range(80, 230, 10) if v != 150]
    assert choices(number, [Fraction(140)], Bounds(0.1, 0, 1000)) == [Fraction(v) for v in (120, 130, 160, 170, 180)]
    (price,) = quantities("It costs $2.75 each.")
    assert {written(v, price) for v in choices(price, [], Bounds(0.2))} == {"2.00", "2.25", "2.50", "3.00", "3.25", "3.50"}  # three grains at least
    (large,) = quantities("He won $80,000 there.")
    assert written(choices(large, [], Bounds(0.05))[0], large) == "76,000"
    (share,) = quantities("He saves 20% now.")
    assert choices(share, [], Bounds(10.0))[-1] == 95
    (point,) = quantities("It takes .5 hours.")
    assert written(choices(point, [], Bounds())[0], point) == ".2"
    assert [q.text for q in changeable(quantities("1 cat, 4 dogs, 4 cows, 0 pigs, six ducks and 6 hens, 9 geese"))] == ["9"]


def test_steps_stay_plausible(tmp_path: Path) -> None:
    problem = {"id": "x", "question": "He shares 12 pears among 4 friends and eats 2.", "answer": "<<12/4=3>> <<3-2=1>> #### 1"}
    path = write_lines(tmp_path / "p.jsonl", [problem])
    generate_pairs(path, tmp_path / "o.jsonl", per_problem=50)
    found = {r["corrupted"]["changed_number"]: r["corrupted"]["answer"] for r in lines(tmp_path / "o.jsonl")}
    # 12 / n whole, and more than 2 left before he eats; 3 − m stays positive only for m < 3
    assert found == {"12 -> 16": 2, "4 -> 3": 2}
    assert read_pairs(tmp_path / "o.jsonl").pairs[0].side("clean")["full_answer"] == problem["answer"]


def test_generate_refuses(tmp_path: Path) -> None:
    out = tmp_path / "o.jsonl"
    path = write_lines(tmp_path / "p.jsonl", [{"question": "one cat?", "answer": 1}])
    with pytest.raises(UserError, match="no question has a number"):
        generate_pairs(path, out)
    assert not out.exists()
    write_lines(path, [{"question": "5 cats?", "answer": "many"}])
    with pytest.raises(UserError, match=r"p.jsonl:1: field 'answer' must be a number"):
        generate_pairs(path, out)
    write_lines(path, [{"question": "5 cats?", "answer": 5}])
    assert generate_pairs(path, out).pairs == 1
    assert lines(out)[0]["notes"] == "answer unknown: the solution has no annotations"
    before = out.read_bytes()
    with pytest.raises(UserError, match="exists"):
        generate_pairs(path, out)
    with pytest.raises(UserError, match="file of problems itself"):
        generate_pairs(out, out, force=True)
    with pytest.raises(UserError, match="no question has"):
        generate_pairs(path, out, known_only=True, force=True)
    assert out.read_bytes() == before
    with pytest.raises(UserError, match=r"name it \.jsonl"):
        generate_pairs(path, tmp_path / "o.txt")


# -------------------------------------------------------------------------------------------------- checking


@pytest.mark.parametrize(
    ("record", "kind", "message"),
    [
        ({"pair_id": "a", "clean": {"question": "q", "answer": 1}}, "missing side", "has no corrupted side"),
        (with_sides(corrupted={"answer": "some"}), "answer", "'some' is no number"),
        (with_sides(corrupted={"answer": None}), "answer", "the corrupted answer is not set"),
        (with_sides(corrupted={"answer": 26.0}), "equal answers", "both answers are 26"),
        (with_sides(corrupted={"answer": 27}), "annotations", "the annotations give 28 for 16 → 17"),
        (with_sides(corrupted={"changed_number": "16 -> 18"}), "changed_number", "differ in 16 → 17"),
        (with_sides(corrupted={"changed_number": "sixteen"}), "changed_number", "must look like"),
        (with_sides(corrupted={"question": "He has 17 eggs and eats 4 for $2."}), "several changes", "16 → 17, 3 → 4"),
        (with_sides(corrupted={"question": "He  has 16 eggs and eats 3 for $2."}), "same question", "both questions are the same"),
        (with_sides(clean={"full_answer": "<<16-3=12>> <<13*2=26>> #### 26"}), "annotations", "clean: '16-3=12' is wrong"),
        (with_sides(clean={"answer": 25}), "annotations", "the clean answer is 25, its solution ends in 26"),
        (with_sides(clean={"question": " "}), "no question", "the clean side has no question"),
        (pair(review_status="done"), "review_status", "'done' is none of"),
        ({k: v for k, v in pair().items() if k != "pair_id"}, "pair_id", "has none"),
    ],
)
def test_everything_that_is_wrong_is_named(tmp_path: Path, record: dict[str, Any], kind: str, message: str) -> None:
    path = write_lines(tmp_path / "p.jsonl", [pair("first", clean={"question": "A 5?", "answer": 5}, corrupted={"question": "A 6?", "answer": 6}), record])
    found = [p for p in check_pairs(str(path))[1] if p.kind == kind]
    assert len(found) == 1, check_pairs(str(path))[1]
    assert message in found[0].message
    assert found[0].place == "p.jsonl:2"


def test_duplicates_and_broken_lines(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(pair()) + "\n{broken\n\n" + json.dumps(pair("b")) + "\n" + json.dumps(pair()) + "\n[1]\n")
    found = [(p.place, p.kind) for p in check_pairs(str(path))[1]]
    assert found == [("p.jsonl:2", "not JSON"), ("p.jsonl:4", "duplicate"), ("p.jsonl:5", "duplicate"), ("p.jsonl:5", "duplicate"), ("p.jsonl:6", "not JSON")]
    assert check_pairs(str(write_lines(path, [pair()])))[1] == []


@pytest.mark.parametrize(("name", "pairs", "equal"), [("llama_clean_corrupted_pairs.json", 66, True), ("prepared_pairs_filtered_57.json", 57, False)])
def test_the_pairs_of_the_original_study(name: str, pairs: int, equal: bool) -> None:
    if not (SHARED / name).exists():
        pytest.skip("the shared data are not here")
    file, problems = check_pairs(str(SHARED / name))
    assert len(file.pairs) == pairs
    assert [p.pair_id for p in problems] == (["12", "55", "229", "287", "334", "397", "465", "475", "555"] if equal else [])
    assert all(p.kind == "equal answers" for p in problems)


def test_answers_of_the_original_study_follow_from_gsm8k_or_were_rounded() -> None:
    """Where the annotations determine an answer it is the study's, or the study cut a fraction off."""
    if not (SHARED / "gsm8k_test.jsonl").exists():
        pytest.skip("the shared data are not here")
    solved = {" ".join(r["question"].split()): r["answer"] for n in ("test", "train") for r in lines(SHARED / f"gsm8k_{n}.jsonl")}
    same, cut = 0, []
    for one in read_pairs(SHARED / "llama_clean_corrupted_pairs.json").pairs:
        solution = parse_solution(solved[" ".join(one.question("clean").split())], one.question("clean"))
        (change,) = differences(one.question("clean"), one.question("corrupted"))
        assert solution is not None
        (number,) = [n for n in solution.numbers if n.start <= change.start < n.end]
        found = solution.with_number(number, float(change.new.replace(",", ""))).value
        same += found is not None and found == one.answer("corrupted")
        if found is not None and found != one.answer("corrupted"):
            cut.append((found, one.answer("corrupted")))
    assert same >= 31
    assert all(stated is not None and abs(found - stated) < 1 and not found.is_integer() for found, stated in cut)


# ------------------------------------------------------------------------------------------------- reviewing


@pytest.fixture
def reviewed(tmp_path: Path) -> Callable[..., Path]:
    def make(*records: dict[str, Any]) -> Path:
        return write_lines(tmp_path / "pairs.jsonl", list(records) or [pair("a"), with_sides(corrupted={"answer": None}, pair_id="b"), pair("c")])

    return make


def test_a_spreadsheet_goes_out_and_comes_back(reviewed: Callable[..., Path], tmp_path: Path) -> None:
    path, table = reviewed(pair("a", notes="=1+1"), with_sides(corrupted={"answer": None}, pair_id="=b"), pair("c")), tmp_path / "r.csv"
    assert export_csv(open_for_review(path), table) == 3
    text = table.read_text(encoding="utf-8-sig")
    assert "'=1+1" in text
    assert "\n'=b," in text
    with pytest.raises(UserError, match="exists"):
        export_csv(open_for_review(path), table)
    before = path.read_bytes()
    assert import_csv(open_for_review(path), table).changed == 0
    assert path.read_bytes() == before
    rows = text.splitlines()
    rows[1] = rows[1].replace(",28,,", ",28,approve,")
    rows[2] = rows[2].replace(",26,,,", ",26,28.0,Approved,as it is")
    rows[3] = rows[3].replace(",28,,", ",28,reject,")
    table.write_text("\n".join(rows))
    done = import_csv(open_for_review(path), table)
    assert (done.approved, done.rejected, done.undecided, done.changed) == (2, 1, 0, 3)
    a, b, c = (p.record for p in read_pairs(path).pairs)
    assert (a["review_status"], a["notes"], c["review_status"]) == ("approved", "=1+1", "rejected")
    assert (b["pair_id"], b["review_status"], b["corrupted"]["answer"], b["answer_source"], b["notes"]) == ("=b", "approved", 28, "review", "as it is")
    assert import_csv(open_for_review(path), table).changed == 0


def test_semicolons_and_few_columns_are_read(reviewed: Callable[..., Path], tmp_path: Path) -> None:
    table = tmp_path / "r.csv"
    table.write_text("\ufeffpair_id;decision;answer\nb;approve;28\n", encoding="utf-8")
    assert import_csv(open_for_review(reviewed()), table).approved == 1


def test_bad_decisions_are_refused_by_line_and_nothing_changes(reviewed: Callable[..., Path], tmp_path: Path) -> None:
    path, table = reviewed(), tmp_path / "r.csv"
    before = path.read_bytes()
    table.write_text("pair_id,decision,answer,corrupted_question\na,approve,,He has 17 eggs and eats 3 for $2.\nb,approve,,He has 17 eggs and eats 3 for $2.\n"
                     "c,yes,,He has 17 eggs and eats 3 for $2.\nx,reject,,q\na,reject,many,He has 17 eggs and eats 3 for $2.\nc,,,other\n")  # fmt: skip
    with pytest.raises(UserError) as error:
        import_csv(open_for_review(path), table)
    said = str(error.value)
    for part in ("line 3: cannot be approved: the corrupted answer is not set", "line 4: decision 'yes' is none of", "line 5: no pair 'x'",
                 "line 6: answer 'many' is no number", "line 7: the corrupted question differs", "Nothing was changed"):  # fmt: skip
        assert part in said
    assert "line 2" not in said
    assert path.read_bytes() == before
    table.write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="no column 'pair_id'"):
        import_csv(open_for_review(path), table)
    table.write_text("pair_id,decision\na,approve\na,reject\n")
    with pytest.raises(UserError, match="line 3: the pair stands twice"):
        import_csv(open_for_review(path), table)


def test_what_cannot_be_reviewed_is_said(reviewed: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match="pair_id of its own"):
        open_for_review(reviewed(pair("a"), pair("a")))
    with pytest.raises(UserError, match="one record per variant"):
        open_for_review(reviewed({"pair_id": 1, "variant": "clean", "question": "q", "answer": 1}))
    file = open_for_review(reviewed())
    other = open_for_review(file.path)
    other.pairs[0].record["notes"] = "mine"
    other.save()
    with pytest.raises(UserError, match="changed by somebody else"):
        file.save()


def test_answers_and_approval() -> None:
    one = Pair("", with_sides(corrupted={"answer": None}))
    assert refusal(one) == "the corrupted answer is not set"
    assert set_answer(one, "1,2,3") == "'1,2,3' is no number"
    assert set_answer(one, "$2,000.5") == ""
    assert (one.answer("corrupted"), one.record["answer_source"], refusal(one)) == (2000.5, "review", "")
    assert set_answer(one, "26") == ""
    assert refusal(one) == "both answers are the same"


def test_json_files_keep_their_shape(tmp_path: Path) -> None:
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps({"about": "x", "pairs": [pair("a")]}))
    file = open_for_review(path)
    file.pairs[0].record["review_status"] = "approved"
    file.save()
    value = json.loads(path.read_text())
    assert (value["about"], value["pairs"][0]["review_status"]) == ("x", "approved")
    data = plugin_manager(load=False).build("dataset", {"plugin": "pairs", "path": str(path), "review_status": "approved"}, "data", "e").load()
    assert [e.id for e in data.examples] == ["a"]

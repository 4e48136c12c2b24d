"""``codi-engine pairs`` from the command line, and the review session key by key."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from codi_engine import open_run
from codi_engine.cli.main import main
from codi_engine.cli.pairs import pairs as group
from codi_engine.core.pairs.pairfile import read_pairs
from codi_engine.core.plugins import plugin_manager
from tests.support.lines import write_lines

PROBLEMS = str(files("codi_engine.plugins").joinpath("demo") / "problems.jsonl")
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line in an empty folder: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        code = main(["pairs", *arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def statuses(path: str = "pairs.jsonl") -> list[str]:
    return [p.status for p in read_pairs(path).pairs]


def session(keys: str, *options: str) -> str:
    result = CliRunner().invoke(group, ["review", "pairs.jsonl", *options], input=keys)
    assert result.exception is None, result.exception
    return result.output


# -------------------------------------------------------------------------------------------------- the session


def test_a_session_saves_every_decision_and_goes_on(cli: Run) -> None:
    assert cli("generate", PROBLEMS, "pairs.jsonl", "--limit", "4", "-q") == (0, "", "")
    out = session("arq")
    assert "pair demo-0001   1 of 4" in out
    assert "for 2 days" in out
    assert "answer: 24" in out
    assert "<<6*2=12>>" in out
    assert "1 approved, 1 rejected, 2 to be reviewed" in out
    assert statuses() == ["approved", "rejected", "needs_review", "needs_review"]
    out = session("sa")
    assert "pair demo-0001" not in out
    assert "pair demo-0003   1 of 2" in out
    assert statuses() == ["approved", "rejected", "needs_review", "approved"]
    assert "pair demo-0002   2 of 4" in session("ssq", "--all")
    session("a")
    assert "nothing is left" in session("")


def test_back_notes_and_answers(cli: Run) -> None:
    cli("generate", PROBLEMS, "pairs.jsonl", "--limit", "3", "-q")
    out = session("ab" + "r" + "nlooks odd\n" + "eabc\n" + "e77\n" + "?" + "a" + "q")
    assert statuses() == ["rejected", "approved", "needs_review"]  # back: the first was decided anew
    assert "'abc' is no number" in out
    assert "no such key" in out
    assert "annotations: the corrupted answer is 77; the annotations give 15" in out
    second = read_pairs("pairs.jsonl").pairs[1]
    assert (second.answer("corrupted"), second.record["answer_source"], second.record["notes"]) == (77.0, "review", "looks odd")


def test_an_unknown_answer_must_be_set_before_approval(cli: Run, tmp_path: Path) -> None:
    write_lines(tmp_path / "p.jsonl", [{"id": "x", "question": "Has it \x1b[31m 5 legs?", "answer": 5}])
    code, out, _ = cli("generate", "p.jsonl", "pairs.jsonl")
    assert code == 0
    assert "answer to be set in review" in out
    out = session("aq")
    assert "cannot be approved: the corrupted answer is not set" in out
    assert "\x1b" not in out
    assert "\\x1b[31m" in out
    session("e6\na")
    assert statuses() == ["approved"]


# ------------------------------------------------------------------------------------------------- the whole way


def decide(path: str, decisions: dict[str, str]) -> None:
    with Path(path).open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["decision"] = decisions.get(row["pair_id"], "approve" if row["answer"] else "reject")
    with Path(path).open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


def test_from_problems_to_a_data_set(cli: Run) -> None:
    code, out, err = cli("generate", PROBLEMS, "pairs.jsonl", "--limit", "16")
    assert (code, err) == (0, "")
    assert "codi-engine pairs review pairs.jsonl" in out
    assert cli("review", "pairs.jsonl", "--export", "review.csv")[0] == 0
    decide("review.csv", {"demo-0002": "reject"})
    code, out, _ = cli("review", "pairs.jsonl", "--import", "review.csv")
    assert code == 0
    made = len(statuses())
    assert f"approved   {statuses().count('approved')}" in out
    assert 1 <= statuses().count("rejected") < made
    options = ("--approved", "--distinct-answers", "--both-correct", "--needs-latents", "--equal-length", "--model", "demo")
    code, out, err = cli("filter", "pairs.jsonl", "good.jsonl", *options, "-q")
    assert (code, out, err) == (0, "", "")
    good = read_pairs("good.jsonl").pairs
    assert 1 <= len(good) < made
    for one in good:
        facts = one.record
        assert facts["both_correct"] is facts["clean_correct"] is facts["corrupted_correct"] is facts["needs_latents"] is facts["equal_length"] is True
        assert facts["clean_correct_without_latents"] is facts["corrupted_correct_without_latents"] is False
        assert facts["clean_tokens"] == facts["corrupted_tokens"] > 10
    assert cli("validate", "good.jsonl") == (0, f"{len(good)} pairs, nothing wrong\n", "")
    data = plugin_manager(load=False).build("dataset", {"plugin": "pairs", "path": "good.jsonl", "review_status": "approved"}, "data", "e").load()
    assert [e.id for e in data.examples] == [p.id for p in good]
    assert data.examples[0].fields["changed_number"] == good[0].side("corrupted")["changed_number"]
    the_run_agrees("good.jsonl.run", good)
    # the same run answers again: nothing is computed, and the drops are counted one after the other
    ledger = Path("good.jsonl.run/ledger").read_bytes()
    code, out, _ = cli("filter", "pairs.jsonl", "both.jsonl", "--approved", "--both-correct", "--model", "demo", "--run", "good.jsonl.run")
    assert code == 0
    assert Path("good.jsonl.run/ledger").read_bytes() == ledger
    rows = dict(line.split(maxsplit=1) if not line.startswith("  ") else line.strip().rsplit("  ", 1) for line in out.splitlines() if line.strip())
    drops = [int(v.split()[0]) for k, v in rows.items() if v.endswith("dropped")]
    assert int(rows["pairs"]) - sum(drops) == int(rows["kept"]) == len(read_pairs("both.jsonl").pairs)
    code, _, err = cli("filter", "pairs.jsonl", "all.jsonl", "--model", "demo", "--run", "good.jsonl.run", "-q")
    assert code == 2
    assert "Give another --run" in err


def the_run_agrees(path: str, good: list[Any]) -> None:
    """Read the run's cells by hand: every kept pair is right unedited, and its answer changes without latents."""
    cells = open_run(path).cells
    for one in good:
        mine = cells[cells["example"] == one.id]
        golds = {side: one.answer(side) for side in ("clean", "corrupted")}
        for _, row in mine.iterrows():
            assert (row["answer"] == golds[row["variant"]]) == (row["condition"] == "baseline")
        assert len(mine) == 4


def test_filter_without_a_model(cli: Run, tmp_path: Path) -> None:
    sides = [{"pair_id": i, "variant": v, "question": f"{i} {v}?", "answer": a} for i, answers in enumerate([(1, 2), (3, 3)]) for v, a in
             zip(("clean", "corrupted"), answers, strict=True)]  # fmt: skip
    write_lines(tmp_path / "flat.jsonl", sides)
    code, out, _ = cli("filter", "flat.jsonl", "pairs.jsonl", "--distinct-answers")
    assert code == 0
    assert "1 dropped" in out
    assert json.loads(Path("pairs.jsonl").read_text(encoding="utf-8"))["clean"]["question"] == "0 clean?"
    before = Path("pairs.jsonl").read_bytes()
    for arguments, said in [
        (("flat.jsonl", "pairs.jsonl"), "exists"),
        (("flat.jsonl", "o.jsonl", "--both-correct"), "give --model"),
        (("flat.jsonl", "o.jsonl", "--approved"), "no pair is left (not approved: 2)"),
        (("flat.jsonl", "o.jsonl", "--model", "no.yaml"), "no.yaml: no such file"),
        (("flat.jsonl", "o.jsonl", "--model", "demo", "-s", "data.limit=1"), "only model, generate"),
        (("flat.jsonl", "o.jsonl", "--model", "demo", "-s", "model.latent=1"), "model.latent: unknown key 'latent'"),
    ]:
        code, _, err = cli("filter", *arguments)
        assert code == 2
        assert said in err, err
    assert Path("pairs.jsonl").read_bytes() == before
    assert not Path("o.jsonl").exists()


def test_a_model_without_latents_needs_none(cli: Run, tiny_gpt2: Path) -> None:
    Path("lm.yaml").write_text(f"name: mine\nmodel: {{plugin: causal_lm, path: {tiny_gpt2}, device: cpu}}\ngenerate: {{max_new_tokens: 4}}\n", encoding="utf-8")
    cli("generate", PROBLEMS, "pairs.jsonl", "--limit", "2", "-q")
    with Path("pairs.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"pair_id": "open", "clean": {"question": "2?", "answer": 2}, "corrupted": {"question": "3?", "answer": None}}) + "\n")
    code, _, err = cli("filter", "pairs.jsonl", "o.jsonl", "--needs-latents", "--model", "lm.yaml", "-q")
    assert (code, err) == (2, "error: --needs-latents: this model has no latents\n")
    assert cli("filter", "pairs.jsonl", "o.jsonl", "--model", "lm.yaml", "-q")[0] == 0
    facts = read_pairs("o.jsonl").pairs[0].record
    assert facts["both_correct"] is False
    assert "needs_latents" not in facts
    assert "both_correct" not in read_pairs("o.jsonl").pairs[2].record
    code, _, err = cli("filter", "pairs.jsonl", "x.jsonl", "--both-correct", "--model", "lm.yaml", "--run", "o.jsonl.run", "-q")
    assert code == 2
    assert "could not be run: 1; not both correct: 2" in err


def test_validate_exits_with_2_and_prints_json(cli: Run, tmp_path: Path) -> None:
    side = {"question": "5 eggs?", "answer": 5}
    write_lines(tmp_path / "p.jsonl", [{"pair_id": 7, "clean": side, "corrupted": side}])
    code, out, err = cli("validate", "p.jsonl")
    assert (code, err) == (2, "")
    assert out.splitlines()[0] == "p.jsonl:1: pair 7: equal answers: both answers are 5: nothing can be patched between them"
    assert out.splitlines()[-1] == "1 pair, 2 mistakes in 1 of them"
    code, out, _ = cli("validate", "p.jsonl", "--json")
    value = json.loads(out)
    assert (code, value["pairs"], [p["kind"] for p in value["problems"]]) == (2, 1, ["equal answers", "same question"])
    code, out, err = cli("validate", "nothing.jsonl")
    assert (code, out, err) == (2, "", "error: nothing.jsonl: no such file\n")


def test_export_and_import_are_two_commands(cli: Run) -> None:
    code, _, err = cli("review", "pairs.jsonl", "--export", "a.csv", "--import", "b.csv")
    assert code == 2
    assert "two commands" in err

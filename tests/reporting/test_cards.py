"""Feature cards say what the analyses' tables and the run's cells say."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from codi_engine import open_run
from codi_engine.core.runs.results import Run
from codi_engine.reporting import cards
from codi_engine.reporting.card_texts import _read, _tables
from codi_engine.reporting.text import texts_of, visible
from tests.support.results import vouch


def test_links_are_the_rows_of_pathways(planted: Run) -> None:
    table = planted.results["pathways"].table("pathways")
    found, _ = cards.collect(planted)
    assert len(found) == 6
    assert sum(len(c.down) for c in found) > 0
    for card in found:
        down = sorted((r for r in table.to_dict("records") if r["target"] == card.feature), key=lambda r: (-abs(r["hedges_g"]), r["q"]))
        assert [(x.feature, x.condition, x.effect, x.q, x.n) for x in card.down] == [
            (r["feature"], r["condition"], r["effect"], r["q"], r["n"]) for r in down[:12]
        ]
        up = [r for r in table.to_dict("records") if r["feature"] == card.feature]
        assert len(card.up) + card.more.get("up", 0) == len(up)
        assert {x.feature for x in card.up} <= {r["target"] for r in up}
    strengths = [c.strength for c in found]
    assert strengths == sorted(strengths)


def test_words_are_the_strongest_of_their_side(planted: Run) -> None:
    top = planted.results["words"].table("top")
    sure = 0
    for card in cards.collect(planted)[0]:
        for condition, _, more, fewer in card.words:
            mine = top[(top["target"] == card.feature) & (top["condition"] == condition)]
            for side, sign in ((more, 1), (fewer, -1)):
                known = mine[mine["z"] * sign > 0]
                expected = set(known[known["q"].notna()]["word"]) if known["q"].notna().sum() <= 8 else None
                certain = {w.word for w in side if w.q is not None}
                assert expected is None or certain == expected
                assert all(w.z * sign > 0 for w in side)
                sure += len(certain)
    assert sure > 0


def test_shares_have_their_intervals(planted: Run) -> None:
    table = planted.results["proportions"].table("shares").to_dict("records")
    shares = {(r["target"], r["condition"], r["metric"]): (r["ci_low"], r["ci_high"]) for r in table}
    rows = [(card, s) for card in cards.collect(planted)[0] for s in card.shares]
    assert rows
    for card, share in rows:
        assert share.ends == shares[card.feature, share.condition, share.metric]
        assert share.difference == pytest.approx(share.mean - share.mean_against)


def test_texts_stand_beside_those_of_the_same_draw(planted: Run) -> None:
    cells = planted.cells
    seen = 0
    for card in cards.collect(planted)[0]:
        for pair in card.pairs:
            mine = cells[cells["target"] == card.feature]
            base, edited = mine[mine["condition"] == "baseline"], mine[mine["condition"] == pair.condition]
            both = base.merge(edited, on=["example", "trial"], suffixes=("_b", "_e"))
            assert ((both["text_b"].map(visible) == pair.baseline) & (both["text_e"].map(visible) == pair.edited)).any()
            assert pair.differs == (pair.baseline != pair.edited)
            seen += 1
    assert seen == 6 * 2 * 2


def test_only_the_strongest_are_shown_and_it_is_said(planted: Run) -> None:
    whole, _ = cards.collect(planted)
    some, said = cards.collect(planted, most=2)
    assert [c.feature for c in some] == [c.feature for c in whole[:2]]
    assert said[0].startswith("The 2 strongest of 6 edited features")


def test_no_features_no_cards(patched: Run, tmp_path: Path, planted: Run) -> None:
    assert cards.section(patched) is None
    copy = shutil.copytree(planted.path, tmp_path / "copy")
    shutil.rmtree(copy / "results")
    assert cards.section(open_run(copy)) is None


def test_old_results_and_missing_ones_are_named(planted: Run, tmp_path: Path) -> None:
    copy = shutil.copytree(planted.path, tmp_path / "copy")
    shutil.rmtree(copy / "results" / "proportions")
    about = copy / "results" / "words" / "result.json"
    about.write_text(about.read_text(encoding="utf-8").replace(planted.digest, "0" * 64), encoding="utf-8")
    _, said = cards.collect(open_run(copy))
    assert any(s.startswith("words: made before the run grew") for s in said)
    assert any("proportions" in s and "Not analysed" in s for s in said)


def test_the_html_has_no_inline_style_or_handler_and_escapes_words(planted: Run, tmp_path: Path) -> None:
    copy = shutil.copytree(planted.path, tmp_path / "copy")
    file = copy / "results" / "words" / "top.parquet"
    table = planted.results["words"].table("top")
    table["word"] = "<img src=x onerror=alert(1)>\u202e"
    table.to_parquet(file)
    vouch(file.parent)
    section = cards.section(open_run(copy))
    assert section is not None
    assert section.id == "features"
    assert "<img" not in section.html
    assert "&lt;img src=x onerror" in section.html
    assert "\u202e" not in section.html
    assert re.search(r"<[^>]*\s(style|on\w+)=", section.html) is None


def test_descriptions_come_from_the_feature_table(tmp_path: Path) -> None:
    file = tmp_path / "features.csv"
    file.write_text("layer,id,label,more\n2,17,counts <b>eggs</b>,0.5\n3,4,other,\n", encoding="utf-8")
    found = {"L2-17": cards.Card("L2-17", 2, 17), "L9-9": cards.Card("L9-9", 9, 9)}
    _read(str(file), found)
    assert found["L2-17"].about == {"label": "counts <b>eggs</b>", "more": "0.5"}
    assert found["L9-9"].about == {}
    experiment = {"sweep": {"feature": {"from": "a.csv"}}, "capture": [{"features": {"from": "b.csv"}}], "conditions": {"x": {"sweep": {"feature": ["L1-2"]}}}}
    assert list(_tables(experiment)) == ["a.csv", "b.csv"]


def test_targets_are_named_by_their_feature() -> None:
    name = cards._Names("feature", ["L0-29", "odd label 3"])
    assert [name(t) for t in ("L0-29", "layer 0 feature L0-29", "layer 1 feature odd label 3", "layer 0")] == ["L0-29", "L0-29", "odd label 3", None]


def test_texts_of_slots(patched: Run) -> None:
    slots = patched.slots[::7]
    known = dict(zip(patched.slots.tolist(), patched.cells["text"], strict=True))
    assert texts_of(patched, slots) == {int(s): known[int(s)] for s in slots}

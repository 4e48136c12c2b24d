from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from codi_engine import At, load
from codi_engine.core.errors import UserError
from codi_engine.core.session import Session

QUESTION = "Tom has 5 pens. He buys 7 more. He loses 2. How many pens does Tom have?"
OTHER = "Tom has 5 pens. He buys 9 more. He loses 2. How many pens does Tom have?"


@pytest.fixture(scope="module")
def session() -> Session:
    return load("demo", device="cpu")


def test_generate_and_capture(session: Session) -> None:
    answer = session.generate(QUESTION)
    assert answer.text.startswith("The answer is:")
    assert answer.answer is not None
    got = session.capture(QUESTION, ["latent_out", "resid_post.1@latent[2]", "attn_z@prompt[-1]", "logits@answer[0]"])
    assert got["latent_out"].sizes == {"step": 7, "width": 128}
    assert got["attn_z@prompt[-1]"].sizes == {"layer": 4, "position": 1, "width": 128}
    assert got["logits@answer[0]"].shape[0] == 1


def test_edits_by_hand(session: Session) -> None:
    base = session.generate(QUESTION)
    same = session.edit(QUESTION, [At("resid_post.1@latent[2]", source=QUESTION), At("latent_in@latent[3]", value=lambda h: h)])
    assert torch.equal(same.logits, base.logits)
    zero = session.edit(QUESTION, [At("latent_in", "zero")])
    assert not torch.equal(zero.logits, base.logits)
    frozen = session.edit(QUESTION, [At("latent_in@latent[0]", "zero")], downstream="freeze")
    followed = session.edit(QUESTION, [At("latent_in@latent[0]", "zero")])
    assert not torch.equal(frozen.logits, followed.logits)
    head = session.edit(QUESTION, [At("attn_z.1@latent[0]", "zero", heads=(1,))])
    assert not torch.equal(head.logits, base.logits)
    moved = session.edit(QUESTION, [{"site": "resid_post@latent", "source": OTHER}])
    assert moved.answer == session.generate(OTHER).answer or not torch.equal(moved.logits, base.logits)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (At("resid_pots.1", "zero"), "did you mean"),
        (At("resid_post.1"), "a value or a source"),
        (At("resid_post.1", np.zeros(7, np.float32)), r"resid_post.1: the value \(shape \[7\]\) does not fit the site, \d+ numbers wide"),
        (At("resid_post.1", {"a": 1}), "does not fit the site"),
        (At("latent_in@latent[99]", "zero"), r"^edits\[0\].site: step must be in"),
        (At("resid_post.1", source=3), "source: give a text that is not empty; got 3"),  # type: ignore[arg-type]
        (At("resid_post.1", "half"), "neither a vector"),
        (At("logits@answer[0]", "zero"), "read, not edited"),
    ],
)
def test_bad_edits(session: Session, edit: At, message: str) -> None:
    with pytest.raises(UserError, match=message):
        session.edit(QUESTION, [edit])


@pytest.mark.parametrize("question", ["", "  ", 3, None])
def test_a_question_without_text_is_refused(session: Session, question: Any) -> None:
    with pytest.raises(UserError, match="question: give a text that is not empty"):
        session.generate(question)


def test_one_edit_and_one_site_need_no_list(session: Session) -> None:
    edit = At("latent_in@latent[0]", "zero")
    assert torch.equal(session.edit(QUESTION, edit).logits, session.edit(QUESTION, [edit]).logits)
    assert list(session.capture(QUESTION, "latent_out")) == ["latent_out"]

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codi_engine.core.errors import UserError
from codi_engine.core.sites import GLOBAL, LAYERED, Site, parse_site


@pytest.mark.parametrize(
    ("text", "site"),
    [
        ("resid_post.8@latent[3]", Site("resid_post", 8, "latent", (3,))),
        ("blocks.8.hook_resid_post", Site("resid_post", 8)),
        ("blocks.2.attn.hook_z@prompt[-1]", Site("attn_z", 2, "prompt", (-1,))),
        ("model.layers.8", Site("resid_post", 8)),
        ("transformer.h.3.mlp", Site("mlp_out", 3)),
        ("model.layers[4].self_attn", Site("attn_out", 4)),
        ("hook_embed", Site("embed")),
        ("ln_final.hook_normalized", Site("final_norm")),
        ("latent_out@bot", Site("latent_out", None, "prompt", (-1,))),
        ("logits@answer[0]", Site("logits", None, "answer", (0,))),
        ("resid_post.-1", Site("resid_post", 11)),
        ("q.0@latent[0:3]", Site("q", 0, "latent", (0, 1, 2))),
    ],
)
def test_addresses_and_aliases(text: str, site: Site) -> None:
    assert parse_site(text, layers=12) == site


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("resid_pots.3", "did you mean 'resid_post'"),
        ("resid_post.12", "layer must be in 0..11"),
        ("logits.3", "has no layer"),
        ("resid_post.3@latnt", "did you mean 'latent'"),
        ("resid_post.3@latent[x]", "is not an index"),
        ("resid_post.3@latent[2:2]", "empty range"),
        ("resid_post.3@latent[0:" + "9" * 30 + "]", "more than 100,000 values"),
        ("resid_post." + "9" * 5000, "layer of 5,000 digits"),
        ("blocks.8.hook_nothing", "unknown site"),
    ],
)
def test_errors(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_site(text, layers=12)


@given(
    st.sampled_from(LAYERED + GLOBAL),
    st.integers(0, 11),
    st.sampled_from([None, "prompt", "latent", "answer"]),
    st.lists(st.integers(0, 9), min_size=1, max_size=3),
)
def test_what_is_written_is_read_back(component: str, layer: int, phase: str | None, index: list[int]) -> None:
    site = Site(component, layer if component in LAYERED else None, phase, tuple(index) if phase else None)  # type: ignore[arg-type]
    assert parse_site(str(site), layers=12) == site

// Feature cards: search, open and close; a link to a card opens it.
(() => {
  "use strict";
  for (const root of document.querySelectorAll(".fcards-root")) {
    const cards = [...root.querySelectorAll(".fcard")];
    const texts = new Map();
    const text = (card) => {
      if (!texts.has(card)) texts.set(card, card.textContent.toLowerCase());
      return texts.get(card);
    };
    const count = root.querySelector(".fcards-count");
    const none = root.querySelector(".fcards-none");
    const search = root.querySelector(".fcards-search");
    const show = () => {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const card of cards) {
        const fits = words.every((word) => text(card).includes(word));
        card.hidden = !fits;
        shown += fits;
      }
      count.textContent = shown === cards.length ? `${shown} cards` : `${shown} of ${cards.length} cards`;
      none.hidden = shown > 0;
    };
    search.addEventListener("input", show);
    const all = (open) => () => cards.forEach((card) => { if (!card.hidden) card.open = open; });
    root.querySelector(".fcards-open").addEventListener("click", all(true));
    root.querySelector(".fcards-close").addEventListener("click", all(false));
    const reveal = () => {
      const card = cards.find((one) => `#${one.id}` === decodeURIComponent(location.hash));
      if (!card) return;
      if (card.hidden) { search.value = ""; show(); }
      card.open = true;
      card.scrollIntoView();
    };
    addEventListener("hashchange", reveal);
    reveal();
  }
})();

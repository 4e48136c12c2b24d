// Latent films: one strip per example, unedited and edited one under the other. All text goes in as text, never as markup.
(() => {
  "use strict";
  const SVG = "http://www.w3.org/2000/svg";
  const make = (name, cls, text) => {
    const made = document.createElement(name);
    if (cls) made.className = cls;
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const shownToken = (text) => (text === "" ? "(empty)" : text.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replace(/^ /, "␣"));

  const bar = (permille) => {
    const svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("viewBox", "0 0 1000 10");
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("aria-hidden", "true");
    for (const [width, cls] of [[1000, "fcard-track"], [permille, "fcard-fill"]]) {
      const rect = document.createElementNS(SVG, "rect");
      rect.setAttribute("width", String(width));
      rect.setAttribute("height", "10");
      rect.setAttribute("class", cls);
      svg.append(rect);
    }
    return svg;
  };

  const frame = (tokens, cells, before, label, edited) => {
    const box = make("div", "film-frame");
    const head = make("div", "film-label");
    head.append(make("span", "", label));
    box.append(head);
    if (!cells) { box.append(make("span", "film-note", "no state")); return box; }
    const known = new Map();
    for (let i = 0; before && i < before.length; i += 2) known.set(before[i], i);
    for (let i = 0; i < cells.length; i += 2) {
      const row = make("div", "film-token");
      const text = shownToken(tokens[cells[i]]);
      const code = make("code", "", text);
      code.title = text;
      row.append(code, make("span", "", cells[i + 1] < 1 ? "<0.1%" : `${(cells[i + 1] / 10).toFixed(cells[i + 1] < 100 ? 1 : 0)}%`), bar(cells[i + 1]));
      if (before && !known.has(cells[i])) row.classList.add("film-new");
      else if (before && known.get(cells[i]) !== i) row.classList.add("film-moved");
      box.append(row);
    }
    if (before && cells[0] !== before[0]) {
      box.classList.add("film-changed");
      head.append(make("span", "", "changed"));
    }
    if (edited) box.classList.add("film-at");
    return box;
  };

  const option = (label, value) => { const made = make("option", "", label); made.value = String(value); return made; };

  for (const root of document.querySelectorAll(".film-root")) {
    const data = JSON.parse(root.querySelector(".film-data").textContent);
    const at = (name) => root.querySelector(`.film-${name}`);
    const draw = () => {
      const one = data.examples[at("example").value];
      if (!one) return;
      const edit = one.edits[at("edit").value];
      at("question").textContent = one.question || "not known here";
      at("answer").textContent = one.answer || "–";
      at("edited").textContent = edit ? edit.answer || "–" : "–";
      const before = new Map(one.strip);
      const after = new Map(edit ? edit.strip : []);
      const steps = [...new Set([...before.keys(), ...after.keys()])].sort((a, b) => a - b);
      const frames = at("frames");
      frames.replaceChildren();
      for (const step of steps) {
        frames.append(make("div", "film-head", step < 0 ? "bot" : `step ${step}`), frame(data.tokens, before.get(step), null, "unedited", false));
        frames.append(edit ? frame(data.tokens, after.get(step), before.get(step), "edited", step === edit.step) : make("div"));
      }
    };
    const choose = () => {
      const one = data.examples[at("example").value];
      const kept = at("edit").selectedOptions[0]?.textContent;
      at("edit").replaceChildren(...(one ? one.edits : []).map((edit, i) => option(edit.label, i)));
      const same = [...at("edit").options].findIndex((o) => o.textContent === kept);
      at("edit").selectedIndex = Math.max(same, 0);
      at("edit").disabled = at("edit").options.length === 0;
      draw();
    };
    at("example").append(...data.examples.map((one, i) => option(one.label, i)));
    at("example").addEventListener("change", choose);
    at("edit").addEventListener("change", draw);
    choose();
  }
})();

"use strict";
// theme, contents, sortable tables, heatmaps, copying, printing; the values are in the page, nothing is fetched
const Report = (() => {
  const one = (selector, from) => (from || document).querySelector(selector);
  const all = (selector, from) => Array.from((from || document).querySelectorAll(selector));
  function make(tag, className, text) {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  }

  function theme() {
    const button = one("[data-theme-toggle]"), names = ["auto", "light", "dark"];
    let at = 0;
    try { at = Math.max(0, names.indexOf(localStorage.getItem("codi-engine-theme"))); } catch (error) { /* no storage: the system's theme */ }
    const show = () => {
      if (names[at] === "auto") delete document.documentElement.dataset.theme; else document.documentElement.dataset.theme = names[at];
      one("[data-theme-name]").textContent = names[at];
      button.setAttribute("aria-label", "colours: " + names[at]);
    };
    button.hidden = false;
    button.addEventListener("click", () => {
      at = (at + 1) % names.length;
      try { localStorage.setItem("codi-engine-theme", names[at]); } catch (error) { /* stays for this visit */ }
      show();
    });
    show();
  }

  function contents() {
    const links = new Map(all(".toc a").map(a => [decodeURIComponent(a.hash.slice(1)), a]));
    const sections = all("main > section");
    let waiting = false;
    const follow = () => {
      waiting = false;
      const edge = window.innerHeight * 0.3;
      let current = sections.filter(s => s.getBoundingClientRect().top < edge).pop();
      if (window.innerHeight + window.scrollY >= document.documentElement.scrollHeight - 4) current = sections[sections.length - 1];
      for (const [id, link] of links) if (current && id === current.id) link.setAttribute("aria-current", "true"); else link.removeAttribute("aria-current");
    };
    addEventListener("scroll", () => { if (!waiting) { waiting = true; requestAnimationFrame(follow); } }, { passive: true });
    all(".jump a").forEach(a => a.addEventListener("click", () => { one(".jump").open = false; }));
    follow();
  }

  // empty keys are missing and always last
  function compare(a, b, numeric, sign) {
    if (a === "" || b === "") return a === b ? 0 : a === "" ? 1 : -1;
    return sign * (numeric ? Number(a) - Number(b) : a.localeCompare(b, undefined, { numeric: true }));
  }

  function sortable(table) {
    const body = table.tBodies[0], original = Array.from(body.rows);
    all("thead th", table).forEach((head, column) => {
      const button = make("button", "", head.textContent);
      button.type = "button";
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const numeric = head.classList.contains("num"), was = head.getAttribute("aria-sort");
        const next = was === null ? (numeric ? "descending" : "ascending") : was === (numeric ? "descending" : "ascending") ? (numeric ? "ascending" : "descending") : null;
        all("thead th", table).forEach(h => h.removeAttribute("aria-sort"));
        if (next) head.setAttribute("aria-sort", next);
        const key = row => { const cell = row.cells[column]; return cell.dataset.key !== undefined ? cell.dataset.key : cell.textContent; };
        body.append(...(next ? original.slice().sort((a, b) => compare(key(a), key(b), numeric, next === "ascending" ? 1 : -1)) : original));
      });
    });
  }

  function tips() {
    const tip = one("#tip");
    let held = null;
    const hide = () => { tip.hidden = true; if (held) held.removeAttribute("aria-describedby"); held = null; };
    const show = cell => {
      const list = make("dl");
      for (const line of cell.dataset.facts.split("\n")) {
        const [label, ...value] = line.split("\t");
        list.append(make("dt", "", label), make("dd", "", value.join(" ")));
      }
      tip.replaceChildren(list);
      tip.hidden = false;
      const box = cell.getBoundingClientRect(), size = tip.getBoundingClientRect();
      const left = Math.min(Math.max(8, box.left + box.width / 2 - size.width / 2), document.documentElement.clientWidth - size.width - 8);
      tip.style.left = left + "px";
      tip.style.top = (box.top - size.height - 8 > 60 ? box.top - size.height - 8 : box.bottom + 8) + "px";
      if (held) held.removeAttribute("aria-describedby");
      cell.setAttribute("aria-describedby", "tip");
      held = cell;
    };
    // what is pointed at or focused keeps its tip, at its new place
    addEventListener("scroll", () => { if (held && (held === document.activeElement || held.matches(":hover"))) show(held); else hide(); }, { passive: true, capture: true });
    addEventListener("keydown", event => { if (event.key === "Escape") hide(); });
    return { show, hide };
  }

  function heatmap(figure, tip) {
    all("table.map", figure).forEach(table => {
      const rows = Array.from(table.tBodies[0].rows).map(r => Array.from(r.cells).slice(1));
      const first = all("td[data-facts]", table)[0];
      if (first) first.tabIndex = 0;
      const go = cell => { if (cell.dataset.go && Report.filterCells) { tip.hide(); Report.filterCells(new URLSearchParams(cell.dataset.go)); } };
      table.addEventListener("pointerover", event => { const cell = event.target.closest("td[data-facts]"); if (cell) tip.show(cell); });
      table.addEventListener("pointerleave", tip.hide);
      table.addEventListener("focusin", event => {
        if (!event.target.matches("td[data-facts]")) return;
        all("td[tabindex='0']", table).forEach(cell => { cell.tabIndex = -1; });  // Tab comes back to the cell that was left
        event.target.tabIndex = 0;
        tip.show(event.target);
      });
      table.addEventListener("focusout", tip.hide);
      table.addEventListener("click", event => { const cell = event.target.closest("td[data-facts]"); if (cell) { cell.focus({ preventScroll: true }); tip.show(cell); } });
      table.addEventListener("dblclick", event => { const cell = event.target.closest("td[data-facts]"); if (cell) go(cell); });
      table.addEventListener("keydown", event => {
        const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
        if (event.key === "Enter") { go(event.target); return; }
        if (!step) return;
        event.preventDefault();
        let y = rows.findIndex(r => r.includes(event.target)), x = y < 0 ? -1 : rows[y].indexOf(event.target);
        do { y += step[0]; x += step[1]; } while (rows[y] && rows[y][x] && !rows[y][x].dataset.facts);
        if (!rows[y] || !rows[y][x]) return;
        rows[y][x].focus();
      });
    });
  }

  function copying() {
    all("[data-copy]").forEach(button => {
      button.hidden = false;
      button.addEventListener("click", async () => {
        const source = document.getElementById(button.dataset.copy);
        try { await navigator.clipboard.writeText(source.textContent); } catch (error) {
          const range = document.createRange(), selection = getSelection();  // a file has no clipboard in some browsers: select, and copy the old way
          range.selectNodeContents(source); selection.removeAllRanges(); selection.addRange(range);
          if (!document.execCommand("copy")) { button.textContent = "Selected"; return; }
          selection.removeAllRanges();
        }
        button.textContent = "Copied";
        setTimeout(() => { button.textContent = "Copy"; }, 1600);
      });
    });
  }

  function printing() {
    let closed = [];
    addEventListener("beforeprint", () => { closed = all("main details:not([open])"); closed.forEach(d => { d.open = true; }); });
    addEventListener("afterprint", () => closed.forEach(d => { d.open = false; }));
  }

  // what can be scrolled is reached by Tab, to be scrolled by keys; what is seen as a whole is no stop
  function scrolling() {
    const look = box => { box.tabIndex = box.scrollWidth > box.clientWidth + 1 || box.scrollHeight > box.clientHeight + 1 ? 0 : -1; };
    const seen = new ResizeObserver(entries => entries.forEach(entry => look(entry.target)));
    all("main .box, main pre").forEach(box => { look(box); seen.observe(box); });
  }

  function enlarging(image) {
    const toggle = () => { image.setAttribute("aria-pressed", image.parentElement.classList.toggle("whole")); image.classList.toggle("whole"); };
    image.tabIndex = 0;
    image.setAttribute("role", "button");
    image.setAttribute("aria-pressed", "false");
    image.setAttribute("aria-label", image.alt + ", whole width");
    image.addEventListener("click", toggle);
    image.addEventListener("keydown", event => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); toggle(); } });
  }

  function start() {
    theme(); contents(); copying(); printing(); scrolling();
    all("table.sortable").forEach(sortable);
    const tip = tips();
    all("[data-heatmap]").forEach(figure => heatmap(figure, tip));
    all(".figures img").forEach(enlarging);
  }
  return { one, all, make, start };
})();
Report.start();

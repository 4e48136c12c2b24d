// the browser of single cells: columns as typed arrays, filters over codes, only the rows in view are nodes
(() => {
  const { one, make } = Report;
  const source = document.getElementById("cells-data");
  if (!source) return;
  const data = JSON.parse(source.textContent), n = data.n;
  const CHANGED = 1, BROKEN = 2, MENDED = 4, RIGHT = 8, WRONG = 16, TALLEST = 8e6;

  function bytes(text) {
    const raw = atob(text), out = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) out[i] = raw.charCodeAt(i);
    return out.buffer;
  }
  const kinds = { u1: Uint8Array, u2: Uint16Array, u4: Uint32Array };
  const whole = packed => new kinds[packed.t](bytes(packed.b));
  function numeric(column) {
    const values = new Float64Array(bytes(column.values));
    if (!column.codes) return values;
    const codes = whole(column.codes), out = new Float64Array(n);
    for (let i = 0; i < n; i++) out[i] = values[codes[i]];
    return out;
  }
  const columns = data.columns.map(c => c.kind === "metric" ? { ...c, values: numeric(c) } : { ...c, codes: whole(c.codes) });
  const labelled = columns.filter(c => c.kind !== "metric"), metrics = columns.filter(c => c.kind === "metric");
  const slot = whole(data.slot), base = whole(data.base), flags = whole(data.flags), text = whole(data.text), question = whole(data.question);
  const answer = data.answer ? numeric(data.answer) : null;
  const textOf = i => i < 0 || !text[i] ? "" : data.texts[text[i] - 1];
  const asked = i => question[i] ? data.questions[question[i] - 1] : null;
  const before = i => base[i] - 1;
  const minus = t => t.replace("-", "−");
  function number(value, digits) {
    if (Number.isNaN(value)) return "–";
    if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
    if (Number.isInteger(value) && Math.abs(value) < 1e9) return minus(String(value));
    const size = Math.abs(value);
    return minus(size < 1e-4 || size >= 1e7 ? value.toExponential((digits || 3) - 1) : String(Number(value.toPrecision(digits || 3))));
  }
  const label = (column, i) => { const code = column.codes[i]; return code ? (column.numeric ? number(column.labels[code - 1], 6) : column.labels[code - 1]) : "–"; };

  // ---------------------------------------------------------------------------------------------- filters
  const state = { equal: new Map(), range: new Map(), text: "", outcome: "", metric: "", low: NaN, high: NaN, sort: null, down: true };
  let shown = new Uint32Array(0), chosen = -1, words = null;

  // which texts and questions hold the words: each distinct one is looked at once
  function found(query) {
    const wanted = query.toLowerCase();
    return { texts: data.texts.map(t => t.toLowerCase().includes(wanted)), questions: data.questions.map(q => q[0].toLowerCase().includes(wanted)) };
  }
  function matches(i) {
    return (text[i] && words.texts[text[i] - 1]) || (question[i] && words.questions[question[i] - 1]) || (base[i] && text[base[i] - 1] && words.texts[text[base[i] - 1] - 1]);
  }
  const outcomes = { changed: CHANGED, broken: BROKEN, mended: MENDED, right: RIGHT, wrong: WRONG };
  function apply() {
    const kept = new Uint32Array(n), tests = [];
    let count = 0;
    for (const [column, code] of state.equal) tests.push(i => column.codes[i] === code);
    for (const [column, [low, high]] of state.range) tests.push(i => { const c = column.codes[i]; if (!c) return false; const v = column.labels[c - 1]; return !(v < low) && !(v > high); });
    if (outcomes[state.outcome]) tests.push(i => (flags[i] & outcomes[state.outcome]) !== 0);
    if (state.outcome === "same") tests.push(i => base[i] && !(flags[i] & CHANGED));
    const metric = metrics.find(m => m.name === state.metric);
    if (metric && !(Number.isNaN(state.low) && Number.isNaN(state.high))) tests.push(i => { const v = metric.values[i]; return !Number.isNaN(v) && !(v < state.low) && !(v > state.high); });
    words = state.text ? found(state.text) : null;
    if (words) tests.push(matches);
    next: for (let i = 0; i < n; i++) {
      for (const test of tests) if (!test(i)) continue next;
      kept[count++] = i;
    }
    shown = kept.subarray(0, count);
    if (state.sort) sort();
    grid.scrollTop = 0;
    draw(true);
    const share = count === n ? n.toLocaleString("en") + " cells" : count.toLocaleString("en") + " of " + n.toLocaleString("en") + " cells";
    one("#count").textContent = share + summary(metric);
    one("#clear").disabled = count === n && !tests.length;
  }
  function summary(metric) {
    const column = metric || (state.sort && state.sort.kind === "metric" ? state.sort : null);
    let known = 0, sum = 0;
    if (!column || !shown.length) return "";
    for (const i of shown) if (!Number.isNaN(column.values[i])) { known++; sum += column.values[i]; }
    return known ? " · mean " + column.name + " " + number(sum / known) + " over " + known.toLocaleString("en") : "";
  }
  function sort() {
    const column = state.sort, sign = state.down ? -1 : 1, keys = new Float64Array(n);
    if (column.kind === "metric") keys.set(column.values);
    else if (column.kind === "text") { // alphabetical ranks of the distinct texts
      const list = column.list, order = list.map((_, i) => i).sort((a, b) => list[a] < list[b] ? -1 : list[a] > list[b] ? 1 : 0), rank = new Float64Array(list.length);
      order.forEach((at, i) => { rank[at] = i; });
      for (let i = 0; i < n; i++) { const c = column.code(i); keys[i] = c ? rank[c - 1] : NaN; }
    } else for (let i = 0; i < n; i++) keys[i] = column.codes[i] || NaN;
    const known = shown.filter(i => !Number.isNaN(keys[i])), missing = shown.filter(i => Number.isNaN(keys[i]));
    known.sort((a, b) => sign * (keys[a] - keys[b]) || a - b);
    const all = new Uint32Array(shown.length);
    all.set(known); all.set(missing, known.length);
    shown = all;
  }

  // ------------------------------------------------------------------------------------------------- rows
  const grid = one("#grid"), rows = one("#rows"), head = one("#hrow"), pool = new Map();
  const questioned = data.questions.length > 0, answered = data.texts.length > 0;
  const long = (name, list, code, extra) => ({ name, kind: "text", list, code, extra });
  const layout = [
    ...labelled.filter(c => c.kind === "axis" && !(c.labels.length < 2 && c.name !== "example")),
    ...(questioned ? [long("question", data.questions.map(q => q[0]), i => question[i], "q")] : []),
    ...(answered && base.some(b => b) ? [long("unedited answer", data.texts, i => base[i] ? text[base[i] - 1] : 0, "b")] : []),
    ...(answered ? [long("answer", data.texts, i => text[i], "e")] : []),
    ...metrics,
  ];
  const wordy = data.texts.reduce((sum, t) => sum + t.length, 0) > 32 * data.texts.length;  // answers are solutions, not numbers
  const width = c => c.kind === "text" ? (c.extra === "q" ? "minmax(" + 11 + "rem, 2.2fr)" : wordy ? "minmax(10.5rem, 2fr)" : "minmax(7.5rem, 1fr)") : c.kind === "metric" ? "minmax(" + Math.max(5.1, c.name.length * 0.46 + 1.5) + "rem, .3fr)" : "minmax(" + Math.min(Math.max(3.4, c.name.length * 0.46 + 1.5, Math.max(...c.labels.slice(0, 200).map(l => String(l).length)) * 0.52 + 1.5), 9) + "rem, .3fr)";
  const template = layout.map(width).join(" ");
  const least = layout.map(width).reduce((sum, w) => sum + parseFloat(w.slice(7)), 0) + "rem";  // all rows are as wide as their columns need
  function heading() {
    head.style.gridTemplateColumns = template;
    head.style.minWidth = least;
    head.replaceChildren(...layout.map(c => {
      const cell = make("div", c.kind === "metric" ? "num" : ""), button = make("button", "", c.name);
      cell.setAttribute("role", "columnheader");
      button.type = "button";
      cell.title = c.name;
      cell.append(button);
      button.addEventListener("click", () => {
        if (state.sort !== c) { state.sort = c; state.down = c.kind === "metric"; }
        else if (state.down === (c.kind === "metric")) state.down = !state.down;
        else state.sort = null;
        Array.from(head.children).forEach(h => h.removeAttribute("aria-sort"));
        if (state.sort) cell.setAttribute("aria-sort", state.down ? "descending" : "ascending");
        apply();
      });
      return cell;
    }));
  }
  function fill(row, at) {
    const i = shown[at];
    row.dataset.i = i;
    row.id = "at-" + i;
    row.setAttribute("aria-rowindex", at + 2);
    row.classList.toggle("at", i === chosen);
    row.replaceChildren(...layout.map(c => {
      let cell;
      if (c.kind === "text") {
        const code = c.code(i), value = code ? c.list[code - 1] : "–";
        cell = make("div", "long " + c.extra, value.length > 400 ? value.slice(0, 400) + "…" : value);
        cell.dir = "auto";
        if (c.extra === "e" && flags[i] & (RIGHT | WRONG)) cell.classList.add(flags[i] & RIGHT ? "right" : "wrong");
      } else if (c.kind === "metric") cell = make("div", "num", number(c.values[i]));
      else { cell = make("div", c.name === "condition" ? "cond" : "label"); cell.append(make("bdi", "", label(c, i))); }
      cell.dataset.name = c.name;
      cell.setAttribute("role", "gridcell");
      return cell;
    }));
  }
  function point(i) {
    for (const row of pool.values()) row.classList.toggle("at", Number(row.dataset.i) === i);
    grid.setAttribute("aria-activedescendant", "at-" + i);
  }
  let height = 56;
  const narrow = matchMedia("(max-width: 46rem)");
  function draw(anew) {
    const total = shown.length * height, tall = Math.min(total, TALLEST), scale = total > tall ? (total - grid.clientHeight) / (tall - grid.clientHeight) : 1;
    rows.style.height = tall + "px";
    const top = grid.scrollTop * scale, first = Math.max(0, Math.floor(top / height) - 6), last = Math.min(shown.length, Math.ceil((top + grid.clientHeight) / height) + 6);
    if (anew) { pool.clear(); rows.replaceChildren(); }
    for (const [at, row] of pool) if (at < first || at >= last) { row.remove(); pool.delete(at); }
    for (let at = first; at < last; at++) {
      let row = pool.get(at);
      if (!row) {
        row = make("div", "row");
        row.setAttribute("role", "row");
        row.style.gridTemplateColumns = template;
        if (!narrow.matches) row.style.minWidth = least;
        fill(row, at);
        pool.set(at, row);
        rows.append(row);
      }
      row.style.transform = "translateY(" + (at * height - top + grid.scrollTop) + "px)";
    }
    if (!shown.length && anew) rows.append(make("p", "none-found", "No cell is like that. Clear a filter."));
    grid.setAttribute("aria-rowcount", shown.length + 1);
  }
  function measure() {
    height = parseFloat(getComputedStyle(grid).getPropertyValue("--row")) || 56;
    draw(true);
  }

  // ---------------------------------------------------------------------------------------------- controls
  const controls = new Map();
  function field(name, className, ...nodes) {
    const wrapper = make("label", className || "");
    wrapper.append(make("span", "", name), ...nodes);
    one("#filters").append(wrapper);
    return wrapper;
  }
  function select(name, options, change) {
    const node = make("select");
    for (const [value, shownText] of options) { const option = make("option", "", shownText); option.value = value; node.append(option); }
    node.addEventListener("change", () => { node.classList.toggle("set", node.value !== ""); change(node.value); apply(); });
    node.dataset.filter = name;
    controls.set(name, node);
    return node;
  }
  function bound(name, change) {
    const node = make("input");
    node.type = "number"; node.step = "any"; node.placeholder = name; node.setAttribute("aria-label", name);
    node.addEventListener("input", () => { node.classList.toggle("set", node.value !== ""); change(node.value === "" ? NaN : Number(node.value)); apply(); });
    return node;
  }
  function build() {
    const search = make("input");
    search.type = "search"; search.placeholder = "in questions and answers"; search.dataset.filter = "text";
    let waiting = 0;
    search.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(() => { state.text = search.value.trim(); apply(); }, n > 20000 ? 160 : 40); });
    field("search", "search", search);
    controls.set("text", search);
    if (base.some(b => b)) {
      const graded = flags.some(f => f & (RIGHT | WRONG));
      field("answer", "", select("outcome", [["", "any"], ["changed", "changed"], ["same", "unchanged"], ...(graded ? [["broken", "right → wrong"], ["mended", "wrong → right"], ["right", "right"], ["wrong", "wrong"]] : [])], value => { state.outcome = value; }));
    }
    for (const column of labelled) {
      if (!column.filter || column.labels.length < 2) continue;
      if (column.range) {
        const ends = [NaN, NaN], wrap = make("div", "range");
        const set = (at, value) => { ends[at] = value; if (ends.every(Number.isNaN)) state.range.delete(column); else state.range.set(column, ends); };
        wrap.append(bound("from", v => set(0, v)), bound("to", v => set(1, v)));
        field(column.name, "ranged", wrap);
      } else if (column.labels.length > 400) { // too many for a list: its start, typed
        const input = make("input");
        input.placeholder = "any"; input.dataset.filter = column.name;
        input.addEventListener("input", () => { const at = column.labels.indexOf(input.value); if (input.value === "") state.equal.delete(column); else state.equal.set(column, at + 1 || -1); input.classList.toggle("set", input.value !== ""); apply(); });
        controls.set(column.name, input);
        field(column.name, "", input);
      } else {
        const options = [["", "all"], ...column.labels.map((l, i) => [String(i + 1), column.numeric ? number(l, 6) : l.slice(0, 60)])];
        field(column.name, "", select(column.name, options, value => { if (value) state.equal.set(column, Number(value)); else state.equal.delete(column); }));
      }
    }
    if (metrics.length) {
      const wrap = make("div", "range");
      wrap.append(select("metric", [["", "any metric"], ...metrics.map(m => [m.name, m.name])], value => { state.metric = value; }), bound("from", v => { state.low = v; }), bound("to", v => { state.high = v; }));
      field("metric between", "ranged", wrap);
    }
    one("#clear").addEventListener("click", clear);
  }
  function clear() {
    state.equal.clear(); state.range.clear();
    Object.assign(state, { text: "", outcome: "", metric: "", low: NaN, high: NaN });
    Report.all("input, select", one("#filters")).forEach(c => { c.value = ""; c.classList.remove("set"); });
    apply();
  }
  Report.filterCells = wanted => {
    clear();
    for (const [name, value] of wanted) {
      const column = labelled.find(c => c.name === name), control = controls.get(name);
      const at = column ? column.labels.findIndex(l => String(l) === value) : -1;
      if (at < 0) continue;
      state.equal.set(column, at + 1);
      if (control) { control.value = control.tagName === "SELECT" ? String(at + 1) : value; control.classList.add("set"); }
    }
    apply();
    document.getElementById("cells").scrollIntoView();
    grid.focus({ preventScroll: true });
  };

  // ------------------------------------------------------------------------------------------------ detail
  const dialog = one("#cell"), inside = one("#inside");
  // words that differ: common ends first, then the longest common subsequence where it is affordable
  function differences(a, b) {
    const split = t => t.slice(0, 40000).match(/\s+|[\p{L}\p{N}_]+|[^]/gu) || [];
    const x = split(a), y = split(b);
    let start = 0, end = 0;
    while (start < x.length && start < y.length && x[start] === y[start]) start++;
    while (end < x.length - start && end < y.length - start && x[x.length - 1 - end] === y[y.length - 1 - end]) end++;
    const p = x.slice(start, x.length - end), q = y.slice(start, y.length - end), inX = new Uint8Array(p.length), inY = new Uint8Array(q.length);
    if (p.length * q.length <= 4e6 && p.length && q.length) {
      const w = q.length + 1, best = new Uint16Array((p.length + 1) * w);
      for (let i = p.length - 1; i >= 0; i--) for (let j = q.length - 1; j >= 0; j--) best[i * w + j] = p[i] === q[j] ? best[(i + 1) * w + j + 1] + 1 : Math.max(best[(i + 1) * w + j], best[i * w + j + 1]);
      for (let i = 0, j = 0; i < p.length && j < q.length;) if (p[i] === q[j]) { inX[i++] = 1; inY[j++] = 1; } else if (best[(i + 1) * w + j] >= best[i * w + j + 1]) i++; else j++;
    }
    const build = (all, middle, common, tag) => {
      const out = document.createDocumentFragment(), tail = all.length - end;
      out.append(all.slice(0, start).join(""));
      for (let i = 0; i < middle.length;) {
        let j = i;
        while (j < middle.length && common[j] === common[i]) j++;
        const piece = middle.slice(i, j).join("");
        out.append(common[i] ? piece : make(tag, "", piece));
        i = j;
      }
      out.append(all.slice(tail).join(""));
      return out;
    };
    return [build(x, p, inX, "del"), build(y, q, inY, "ins")];
  }
  function paragraph(content) {
    const node = make("p", "text");
    node.dir = "auto";
    node.append(content);
    return node;
  }
  function block(title, className, content) {
    const node = make("div", className);
    node.append(make("p", "over", title), paragraph(content));
    return node;
  }
  function open(i, quiet) {
    chosen = i;
    const then = before(i), q = asked(i), top = make("div", "top"), sides = make("div", "sides"), at = shown.indexOf(i);
    top.append(make("h3", "", labelled.filter(c => c.kind === "axis" && c.codes[i]).map(c => c.name === "condition" ? label(c, i) : c.name + " " + label(c, i)).join(" · ")));
    for (const [name, where] of [["Previous", at - 1], ["Next", at + 1]]) {
      const button = make("button", "", name);
      button.type = "button";
      button.disabled = at < 0 || where < 0 || where >= shown.length;
      button.addEventListener("click", () => open(shown[where]));
      top.append(button);
    }
    const close = make("button", "", "Close");
    close.type = "button";
    close.addEventListener("click", () => dialog.close());
    top.append(close);
    const said = t => (flags[t] & RIGHT ? ", right" : flags[t] & WRONG ? ", wrong" : "") + (answer && !Number.isNaN(answer[t]) ? " (number found: " + number(answer[t], 10) + ")" : "");
    if (then >= 0) {
      const [a, b] = differences(textOf(then), textOf(i));
      sides.append(block("unedited answer" + said(then), "", a), block("edited answer" + said(i), "", b));
    } else if (answered) sides.append(block("answer" + said(i), "", textOf(i) || "–"));
    inside.replaceChildren(top, ...(q ? [block("question" + (q[1] ? " · right answer " + q[1] : ""), "asked", q[0])] : []), sides, ...measured(i, then), ...facts(i));
    inside.firstChild.nextSibling && inside.firstChild.nextSibling.classList.contains("asked") && (inside.firstChild.style.marginBottom = "1rem");
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
    if (!quiet) history.replaceState(null, "", "#cell-" + slot[i]);
    point(i);
  }
  function measured(i, then) {
    if (!metrics.length) return [];
    const table = make("table", "plain"), body = make("tbody"), line = (tag, cells) => { const tr = make("tr"); cells.forEach((c, k) => tr.append(make(k ? tag : "th", k ? "num" : "", c))); return tr; };
    const headed = make("thead");
    headed.append(line("th", then >= 0 ? ["metric", "this cell", "unedited", "difference"] : ["metric", "this cell"]));
    for (const m of metrics) {
      const v = m.values[i], w = then >= 0 ? m.values[then] : NaN;
      body.append(line("td", then >= 0 ? [m.name, number(v, 6), number(w, 6), number(v - w, 4)] : [m.name, number(v, 6)]));
    }
    table.append(headed, body);
    return [table];
  }
  function facts(i) {
    const list = make("dl", "facts");
    const add = (k, v) => { const dd = make("dd"); dd.append(make("bdi", "", v)); list.append(make("dt", "", k), dd); };
    for (const c of labelled) if (c.kind === "field" && c.codes[i]) add(c.name, label(c, i));
    add("in Python", "run.cells[run.slots == " + slot[i] + "]");
    const title = make("h3", "", "More");
    return [title, list];
  }
  dialog.addEventListener("close", () => { if (/^#cell-/.test(location.hash)) history.replaceState(null, "", "#cells"); grid.focus({ preventScroll: true }); });
  dialog.addEventListener("click", event => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("keydown", event => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key], at = shown.indexOf(chosen);
    if (step && at >= 0 && at + step >= 0 && at + step < shown.length) open(shown[at + step]);
  });
  grid.addEventListener("click", event => { const row = event.target.closest(".row"); if (row) open(Number(row.dataset.i)); });
  grid.addEventListener("keydown", event => {
    if (event.target !== grid) return;
    const at = shown.indexOf(chosen), step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (event.key === "Enter" && at >= 0) open(chosen);
    if (!step || !shown.length) return;
    event.preventDefault();
    const next = Math.min(Math.max(at + step, 0), shown.length - 1), top = next * height;
    chosen = shown[next];
    if (shown.length * height <= TALLEST) { // beyond, the scroll position stands for more than a row
      if (top < grid.scrollTop) grid.scrollTop = top;
      else if (top + height * 2 > grid.scrollTop + grid.clientHeight) grid.scrollTop = top + height * 2 - grid.clientHeight;
    }
    point(chosen);
  });
  function follow() {
    const linked = /^#cell-(\d+)$/.exec(location.hash), at = linked ? slot.indexOf(Number(linked[1])) : -1;
    if (at >= 0) { document.getElementById("cells").scrollIntoView(); open(at, true); }
  }

  grid.classList.toggle("wordy", wordy);
  one("#excerpt").hidden = true;
  one("#browser").hidden = false;
  heading(); build();
  let waiting = false;
  grid.addEventListener("scroll", () => { if (!waiting) { waiting = true; requestAnimationFrame(() => { waiting = false; draw(false); }); } }, { passive: true });
  addEventListener("resize", measure);
  addEventListener("hashchange", follow);
  height = parseFloat(getComputedStyle(grid).getPropertyValue("--row")) || 56;
  apply(); follow();
  source.textContent = "";  // read; the page need not keep it twice
})();

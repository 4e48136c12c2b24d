// The live view: asks each second how far the run is; loads the report once, and again only when it is told to.
(() => {
  "use strict";
  const at = (id) => document.getElementById(id);
  const number = new Intl.NumberFormat("en-US");
  const rate = (value) => value === null ? "" : `${number.format(value < 10 ? Math.round(value * 10) / 10 : Math.round(value))} cells/s`;
  const STATES = { running: "running", finished: "finished", computed: "computed, not analysed", partial: "not finished, and not running", waiting: "waiting", damaged: "damaged", gone: "the server has ended" };
  let shown = null; // what the report in the frame was made of: version and cells
  let failures = 0;

  const stage = (one) => {
    const row = document.createElement("div");
    row.className = one.cells >= one.planned ? "stage done" : "stage";
    const name = document.createElement("span");
    name.textContent = one.stage;
    const bar = document.createElement("progress");
    bar.max = Math.max(one.planned, 1);
    bar.value = one.cells;
    bar.setAttribute("aria-label", one.stage);
    const text = document.createElement("span");
    const parts = [`${number.format(one.cells)} of ${number.format(one.planned)} cells`];
    if (one.rate !== null) parts.push(rate(one.rate));
    if (one.left && one.cells < one.planned) parts.push(`${one.left} left`);
    text.textContent = parts.join(" · ");
    row.append(name, bar, text);
    return row;
  };

  const load = (now) => {
    shown = { version: now.version, cells: now.cells };
    at("making").hidden = !at("report").hidden; // later, the old page stands until the new one is there
    at("report").hidden = false;
    at("report").src = "/report"; // the same address again: the frame loads it anew
    at("waiting").hidden = true;
    at("reload").hidden = true;
  };

  const offer = (now) => {
    const button = at("reload");
    const fresh = now.cells - shown.cells;
    button.textContent = fresh > 0 ? `${number.format(fresh)} new ${fresh === 1 ? "cell" : "cells"}: reload` : "new results: reload";
    button.onclick = () => load(now);
    button.hidden = false;
  };

  const show = (now) => {
    at("live").dataset.state = now.state;
    at("name").textContent = now.name || now.path;
    document.title = `${now.state === "running" ? `${Math.floor(100 * now.share)}% ` : ""}${now.name || "codi-engine"}`;
    at("state").textContent = now.state === "running" ? `running, ${Math.floor(100 * now.share)}%` : STATES[now.state] || now.state;
    at("facts").textContent = [now.rate ? rate(now.rate) : "", now.left ? `about ${now.left} left` : ""].filter(Boolean).join(" · ");
    at("stages").replaceChildren(...now.stages.map(stage));
    const commit = now.state === "running" && now.commit !== null && now.commit !== undefined ? `last commit ${Math.round(now.commit)} s ago` : "";
    const details = [now.unit, now.memory ? `memory ${now.memory}` : "", now.disk ? `disk ${now.disk}` : "", now.device, commit, now.finished ? `finished ${now.finished}` : ""];
    at("details").textContent = details.filter(Boolean).join(" · ");
    at("hypothesis").hidden = !now.hypothesis;
    at("hypothesis").textContent = now.hypothesis ? `Hypothesis: ${now.hypothesis}` : "";
    at("events").hidden = !now.events.length;
    at("events").replaceChildren(...now.events.map((text) => { const li = document.createElement("li"); li.textContent = text; return li; }));
    if (now.cells > 0) {
      if (shown === null) load(now);
      else if (shown.version !== now.version) offer(now);
      else at("reload").hidden = true;
    } else if (shown === null) {
      at("waiting").hidden = false;
      at("why").textContent = now.problem || (now.state === "waiting" ? `${now.path} does not hold a run yet.` : "The run has begun; no cell is committed yet.");
    }
  };

  const ask = async () => {
    let pause = 1000;
    try {
      const answer = await fetch("/live.json", { cache: "no-store" });
      const now = await answer.json();
      failures = 0;
      if (shown === null && now.state === "finished") folded(true); // nothing is to be followed
      show(now);
      if (now.state === "finished") pause = 4000;
    } catch {
      failures += 1;
      pause = Math.min(1000 * failures, 10000);
      if (failures > 1) {
        at("live").dataset.state = "gone";
        at("state").textContent = "no answer; repeat codi-engine view to go on";
      }
    }
    setTimeout(ask, document.hidden ? Math.max(pause, 5000) : pause);
  };

  at("report").addEventListener("load", () => { at("making").hidden = true; });

  const fold = at("fold");
  const folded = (yes) => {
    at("more").hidden = yes;
    fold.textContent = yes ? "more" : "less";
    fold.setAttribute("aria-expanded", String(!yes));
  };
  fold.addEventListener("click", () => folded(!at("more").hidden));
  folded(innerWidth < 640 && innerHeight < 500);
  ask();
})();

"use strict";
{
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const UNITS = { k: 1e3, M: 1e6, B: 1e9 };
  // What a cell is sorted by; NaN where it holds no number.
  const valueOf = (cell, kind) => {
    const text = cell.textContent.trim().replace("−", "-");
    if (kind === "text") return text.toLowerCase();
    return parseFloat(text) * (kind === "size" ? UNITS[text.slice(-1)] || 1 : 1);
  };
  const compare = (a, b) => {
    if (typeof a === "string") return a.localeCompare(b);
    if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b);
    return a - b;
  };
  const sort = (head) => {
    const [kind, before] = [head.dataset.sort, head.getAttribute("aria-sort")];
    // Names begin with A, numbers with the largest.
    const falls = kind === "text" ? before === "ascending" : before !== "descending";
    all("th[aria-sort]", head.parentNode).forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", falls ? "descending" : "ascending");
    const body = head.closest("table").tBodies[0];
    const keyed = [...body.rows].map((row) => [valueOf(row.cells[head.cellIndex], kind), row]);
    keyed.sort(([a], [b]) => {
      // What has no number stays last both ways.
      if (Number.isNaN(a) || Number.isNaN(b)) return compare(a, b);
      return falls ? compare(b, a) : compare(a, b);
    });
    body.append(...keyed.map(([, row]) => row));
  };
  all(".sortable th[data-sort]").forEach((head) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sort(head));
    head.append(button);
  });

  all(".tools").forEach((tools) => { tools.hidden = false; });
  all("[data-filter]").forEach((input) => {
    const rows = [...document.getElementById(input.dataset.filter).tBodies[0].rows];
    const count = document.querySelector(`[data-count="${input.dataset.filter}"]`);
    const show = () => {
      const wanted = input.value.trim().toLowerCase();
      rows.forEach((row) => { row.hidden = !row.textContent.toLowerCase().includes(wanted); });
      count.value = wanted ? `${rows.filter((row) => !row.hidden).length} of ${rows.length}` : "";
    };
    input.addEventListener("input", show);
    show();
  });

  // Flips: chosen by model, task, way and text, a page at a time.
  const PAGE = 10;
  const flips = all(".flip");
  if (flips.length > 0) {
    const picks = all("#flip-tools select");
    const text = document.getElementById("flip-text");
    const count = document.getElementById("flip-count");
    const more = document.getElementById("flip-more");
    let pages = 1;
    const show = () => {
      const wanted = text.value.trim().toLowerCase();
      const chosen = flips.filter((flip) =>
        picks.every((pick) => !pick.value || flip.dataset[pick.dataset.pick] === pick.value) &&
        (!wanted || flip.textContent.toLowerCase().includes(wanted)));
      const shown = new Set(chosen.slice(0, pages * PAGE));
      flips.forEach((flip) => { flip.hidden = !shown.has(flip); });
      count.value = `${shown.size} of ${chosen.length} shown`;
      more.hidden = shown.size === chosen.length;
    };
    const again = () => { pages = 1; show(); };
    picks.forEach((pick) => pick.addEventListener("change", again));
    text.addEventListener("input", again);
    more.querySelector("button").addEventListener("click", () => { pages += 1; show(); });
    show();
  }
}

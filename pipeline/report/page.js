"use strict";
// Small things that make the page pleasant; all of its content is there without them, but for the neuron browser.

const make = (tag, attributes = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), attributes);
  element.append(...children);
  return element;
};

// Tables: a click on a heading sorts by it; numbers sort by their exact value.
function sortable(table) {
  const rows = [...table.tBodies[0].rows];
  const headings = [...table.tHead.rows].at(-1).cells;
  const skipped = rows[0] ? rows[0].cells.length - headings.length : 0; // columns whose heading spans both rows
  const all = skipped > 0 ? [...[...table.tHead.rows[0].cells].slice(0, skipped), ...headings] : [...headings];
  all.forEach((heading, column) => {
    const button = make("button", { type: "button", textContent: heading.textContent });
    heading.replaceChildren(button);
    heading.scope = "col";
    button.addEventListener("click", () => {
      const descending = heading.getAttribute("aria-sort") !== "descending";
      all.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
      const value = (row) => row.cells[column].dataset.sort ?? row.cells[column].textContent.trim();
      const empty = (v) => v === "";
      rows.sort((a, b) => {
        const [x, y] = [value(a), value(b)];
        if (empty(x) || empty(y)) return empty(x) - empty(y);
        const order = isNaN(x) || isNaN(y) ? x.localeCompare(y, undefined, { numeric: true }) : x - y;
        return descending ? -order : order;
      });
      table.tBodies[0].append(...rows);
    });
  });
}

function csvButton(table) {
  const text = (cell) => '"' + (cell.dataset.sort || cell.textContent.trim()).replaceAll('"', '""') + '"';
  const button = make("button", { type: "button", className: "tool", textContent: "Save as CSV" });
  button.addEventListener("click", () => {
    const lines = [...table.rows].map((row) => [...row.cells].map(text).join(","));
    const url = URL.createObjectURL(new Blob([lines.join("\n") + "\n"], { type: "text/csv" }));
    make("a", { href: url, download: table.id + ".csv" }).click();
    URL.revokeObjectURL(url);
  });
  table.parentElement.after(button);
}

// Figures: the text of a mark under the pointer or the keyboard's focus.
function tips() {
  const tip = document.getElementById("tip");
  const show = (event) => {
    const mark = event.target.closest?.(".mark");
    if (!mark) { tip.hidden = true; return; }
    tip.textContent = mark.dataset.tip;
    tip.hidden = false;
    const box = mark.getBoundingClientRect();
    const left = Math.min(Math.max(8, box.x + box.width / 2 - tip.offsetWidth / 2), innerWidth - tip.offsetWidth - 8);
    const top = box.y - tip.offsetHeight - 8;
    tip.style.left = left + "px";
    tip.style.top = (top < 8 ? box.bottom + 8 : top) + "px";
  };
  for (const name of ["pointerover", "focusin"]) document.addEventListener(name, show);
  document.addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });
}

// Links to a cell open its settings.
function openTarget() {
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target?.tagName === "DETAILS") { target.open = true; target.scrollIntoView(); }
}

// The contents say where the reader is.
function whereAmI() {
  const links = new Map([...document.querySelectorAll(".contents a")].map((a) => [a.hash.slice(1), a]));
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      links.forEach((link) => link.classList.remove("here"));
      links.get(entry.target.id)?.classList.add("here");
    }
  }, { rootMargin: "-30% 0px -60% 0px" });
  document.querySelectorAll("main > section").forEach((section) => seen.observe(section));
}

document.querySelectorAll("table.sortable").forEach((table) => { sortable(table); csvButton(table); });
tips();
whereAmI();
addEventListener("hashchange", openTarget);
openTarget();

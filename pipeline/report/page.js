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
  const all = [...table.tHead.rows[0].cells];
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
  let mark = null;
  const show = (element) => {
    mark = element?.closest?.(".mark");
    if (!mark) { tip.hidden = true; return; }
    tip.textContent = mark.dataset.tip;
    tip.hidden = false;
    const box = mark.getBoundingClientRect();
    const left = Math.min(Math.max(8, box.x + box.width / 2 - tip.offsetWidth / 2), innerWidth - tip.offsetWidth - 8);
    const top = box.y - tip.offsetHeight - 8;
    tip.style.left = left + "px";
    tip.style.top = (top < 8 ? box.bottom + 8 : top) + "px";
  };
  for (const name of ["pointerover", "focusin"]) document.addEventListener(name, (event) => show(event.target));
  document.addEventListener("scroll", () => show(mark), { passive: true }); // taking the focus scrolls, too
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

// The neuron browser: numbers of every neuron as packed columns, excerpts of the shown ones. A cell is unpacked when chosen.
const NO_SCORE = -32768, NO_TOKEN = 65535, ROW = 30;

async function unpack(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
}
const unpackJson = async (base64) => JSON.parse(new TextDecoder().decode(await unpack(base64)));

class Units {
  constructor(element) {
    this.element = element;
    this.head = JSON.parse(element.dataset.head);
    this.count = this.head.neurons.reduce((a, b) => a + b, 0);
  }
  async load() {
    if (this.scores) return this;
    const data = await unpack(this.element.textContent);
    let at = 0;
    const take = (Type, length) => {
      const column = new Type(data.slice(at, at + length * Type.BYTES_PER_ELEMENT));
      at += length * Type.BYTES_PER_ELEMENT;
      return column;
    };
    const n = this.count;
    this.scores = Object.fromEntries(this.head.metrics.map((metric) => [metric, take(Int16Array, n)]));
    this.active = take(Uint16Array, n);
    this.tokens = take(Uint16Array, n * this.head.topTokens);
    this.maximum = take(Float32Array, n);
    this.layer = new Uint16Array(n);
    this.neuron = new Uint32Array(n);
    let index = 0;
    this.head.layers.forEach((layer, place) => {
      for (let i = 0; i < this.head.neurons[place]; i++, index++) { this.layer[index] = layer; this.neuron[index] = i; }
    });
    const shown = await unpackJson(this.element.dataset.shown);
    this.shown = new Map(shown.map((entry) => [entry.layer + "/" + entry.neuron, entry]));
    return this;
  }
}

const visible = (token) => token.replaceAll("\n", "⏎").replaceAll("\t", "⇥");
const share = (value) => { const p = 100 * value / 65535; return (p >= 10 ? p.toFixed(0) : p >= 0.1 ? p.toFixed(1) : p.toFixed(2)) + " %"; };
const points = (value) => (value === NO_SCORE ? "–" : (value / 10).toFixed(1));

class NeuronBrowser {
  constructor(root) {
    this.root = root;
    this.all = [...document.querySelectorAll("script.units")].map((element) => new Units(element));
    this.picked = -1;
    this.build();
  }

  build() {
    const option = (value, text) => make("option", { value, textContent: text });
    const field = (label, input) => make("label", {}, make("span", { textContent: label }), input);
    this.unit = make("select", { id: "browser-units" }, ...this.all.map((units, i) => option(i, units.head.label)));
    this.metric = make("select", { id: "browser-metric" });
    this.layer = make("select", { id: "browser-layer" });
    this.sort = make("select", { id: "browser-sort" },
      option("best", "best score first"), option("worst", "worst score first"), option("active", "most active first"),
      option("quiet", "least active first"), option("number", "by number"));
    this.lowest = make("input", { id: "browser-lowest", type: "number", step: 1, placeholder: "any", size: 4 });
    this.search = make("input", { id: "browser-search", type: "search", placeholder: "token, or neuron number" });
    this.only = make("input", { id: "browser-only", type: "checkbox" });
    const controls = make("form", { className: "controls" }, field("model", this.unit), field("score", this.metric), field("layer", this.layer),
      field("order", this.sort), field("score at least", this.lowest), field("fires on", this.search),
      make("label", { className: "check" }, this.only, make("span", { textContent: "with excerpts only" })));
    controls.addEventListener("submit", (event) => event.preventDefault());
    this.count = make("p", { className: "count", ariaLive: "polite" });
    this.cloud = make("canvas", { className: "cloud", height: 200 });
    this.cloud.setAttribute("role", "img");
    this.space = make("div", { className: "space" });
    this.list = make("div", { className: "list", tabIndex: 0 }, this.space);
    this.list.setAttribute("role", "listbox");
    this.list.setAttribute("aria-label", "Neurons");
    this.detail = make("div", { className: "detail", ariaLive: "polite" });
    this.root.replaceChildren(make("h3", { textContent: "All neurons" }), controls, this.cloud, this.count, make("div", { className: "panes" }, this.list, this.detail));
    this.root.hidden = false;

    this.unit.addEventListener("change", () => this.open());
    for (const input of [this.metric, this.layer, this.sort, this.only]) input.addEventListener("change", () => this.filter());
    for (const input of [this.lowest, this.search]) input.addEventListener("input", () => this.filter());
    this.list.addEventListener("scroll", () => this.drawRows(), { passive: true });
    this.list.addEventListener("click", (event) => {
      const row = event.target.closest("[data-place]");
      if (row) this.pick(Number(row.dataset.place));
    });
    this.list.addEventListener("keydown", (event) => {
      const step = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10 }[event.key];
      if (!step) return;
      event.preventDefault();
      this.pick(Math.min(Math.max(0, this.picked + step), this.found.length - 1), true);
    });
    this.cloud.addEventListener("click", (event) => this.pickInCloud(event));
    addEventListener("resize", () => this.units && this.drawCloud());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.units && this.drawCloud());
    const deepest = this.all.reduce((best, units, i) => units.head.layers.length > this.all[best].head.layers.length ? i : best, 0);
    this.unit.value = deepest;
    this.open();
  }

  async open() {
    this.root.classList.add("loading");
    this.vocabulary ??= await unpackJson(document.getElementById("vocabulary").textContent);
    this.units = await this.all[this.unit.value].load();
    const head = this.units.head;
    const kept = this.metric.value;
    this.metric.replaceChildren(...head.metrics.map((metric) => make("option", { value: metric, textContent: METRIC_NAMES[metric] ?? metric })));
    if (head.metrics.includes(kept)) this.metric.value = kept;
    this.layer.replaceChildren(make("option", { value: "", textContent: "all" }), ...head.layers.map((layer) => make("option", { value: layer, textContent: layer })));
    this.root.className = head.architecture;
    this.filter();
  }

  score(index) {
    return this.units.scores[this.metric.value]?.[index] ?? NO_SCORE;
  }

  wantedTokens(text) {
    const query = text.trim().toLowerCase();
    return new Set(Object.entries(this.vocabulary)
      .filter(([, token]) => { const t = token.trim().toLowerCase(); return t === query || (query.length > 1 && t.includes(query)); })
      .map(([id]) => Number(id)));
  }

  filter() {
    const { units } = this, text = this.search.value, top = units.head.topTokens;
    const layer = this.layer.value === "" ? null : Number(this.layer.value);
    const lowest = this.lowest.value === "" ? null : 10 * Number(this.lowest.value);
    const number = /^\s*#?\d+\s*$/.test(text) ? Number(text.replace("#", "")) : null;
    const tokens = text.trim() && number === null ? this.wantedTokens(text) : null;
    const found = [];
    for (let i = 0; i < units.count; i++) {
      if (layer !== null && units.layer[i] !== layer) continue;
      if (lowest !== null && (this.score(i) === NO_SCORE || this.score(i) < lowest)) continue;
      if (number !== null && units.neuron[i] !== number) continue;
      if (tokens) {
        let fires = false;
        for (let t = 0; t < top && !fires; t++) fires = tokens.has(units.tokens[i * top + t]);
        if (!fires) continue;
      }
      if (this.only.checked && !units.shown.has(units.layer[i] + "/" + units.neuron[i])) continue;
      found.push(i);
    }
    const by = {
      best: (a, b) => this.score(b) - this.score(a),
      worst: (a, b) => (this.score(a) === NO_SCORE) - (this.score(b) === NO_SCORE) || this.score(a) - this.score(b),
      active: (a, b) => units.active[b] - units.active[a],
      quiet: (a, b) => units.active[a] - units.active[b],
      number: () => 0,
    }[this.sort.value];
    this.found = found.sort((a, b) => by(a, b) || a - b);
    const unit = units.head.family === "code" ? "neurons" : "features";
    this.count.textContent = `${found.length.toLocaleString("en")} of ${units.count.toLocaleString("en")} ${unit}`;
    this.space.style.height = found.length * ROW + "px";
    this.list.scrollTop = 0;
    this.drawCloud();
    const first = this.found.findIndex((i) => units.shown.has(units.layer[i] + "/" + units.neuron[i]));
    this.pick(this.found.length && first >= 0 && first < 8 ? first : this.found.length ? 0 : -1);
    this.root.dataset.ready = "true";
  }

  drawRows() {
    const { units } = this;
    const first = Math.max(0, Math.floor(this.list.scrollTop / ROW) - 4);
    const last = Math.min(this.found.length, first + Math.ceil(this.list.clientHeight / ROW) + 8);
    const rows = [];
    for (let place = first; place < last; place++) {
      const i = this.found[place], top = units.head.topTokens;
      const words = Array.from(units.tokens.subarray(i * top, (i + 1) * top)).filter((t) => t !== NO_TOKEN);
      const row = make("div", { className: "row" },
        make("span", { className: "id", textContent: `L${units.layer[i]} · ${units.neuron[i]}` }),
        make("span", { className: "score", textContent: points(this.score(i)) }),
        make("span", { className: "share", textContent: share(units.active[i]) }),
        make("span", { className: "tops" }, ...words.map((t) => make("i", { textContent: visible(this.vocabulary[t]) }))));
      row.style.top = place * ROW + "px";
      row.dataset.place = place;
      row.id = "row-" + place;
      row.setAttribute("role", "option");
      row.setAttribute("aria-selected", place === this.picked);
      if (units.shown.has(units.layer[i] + "/" + units.neuron[i])) row.classList.add("has");
      rows.push(row);
    }
    this.space.replaceChildren(...rows);
  }

  pick(place, scroll = false) {
    this.picked = place;
    if (scroll) {
      const top = place * ROW;
      if (top < this.list.scrollTop) this.list.scrollTop = top;
      if (top + ROW > this.list.scrollTop + this.list.clientHeight) this.list.scrollTop = top + ROW - this.list.clientHeight;
    }
    this.drawRows();
    this.list.setAttribute("aria-activedescendant", "row-" + place);
    if (place < 0) { this.detail.replaceChildren(make("p", { textContent: "No neuron is like that." })); return; }
    const i = this.found[place], { units } = this, head = units.head;
    const entry = units.shown.get(units.layer[i] + "/" + units.neuron[i]);
    const scores = head.metrics.map((metric) => make("span", {}, `${METRIC_NAMES[metric] ?? metric} `, make("b", { textContent: points(units.scores[metric][i]) })));
    const children = [
      make("p", { className: "head" }, make("b", { textContent: `Layer ${units.layer[i]}, ${head.family === "code" ? "neuron" : "feature"} ${units.neuron[i]}` }),
        make("a", { href: "#cell-" + head.cell, className: "cell-name", textContent: head.cell })),
      make("p", { className: "facts" }, ...scores, make("span", {}, "fires on ", make("b", { textContent: share(units.active[i]) })),
        make("span", {}, "at most ", make("b", { textContent: units.maximum[i].toPrecision(3) }))),
    ];
    if (entry) {
      children.push(make("p", { className: "facts", textContent: `${entry.moments}; ${entry.histogram}` }));
      if (entry.explanation) children.push(make("p", { className: "explanation", textContent: entry.explanation }));
      children.push(...entry.excerpts.map((excerpt) => this.excerpt(excerpt)));
      children.push(make("p", { className: "why", textContent: `Shown as one of the layer's ${entry.why}.` }));
    } else {
      const command = `python -m pipeline neuron --run ${RUN_NAME} --cell ${head.cell} --layer ${units.layer[i]} --neuron ${units.neuron[i]}` +
        (head.family === "code" ? "" : " --features");
      children.push(make("p", { textContent: "Its excerpts are in the store, one command away:" }), make("pre", { className: "command", textContent: command }));
    }
    this.detail.replaceChildren(...children);
  }

  excerpt(excerpt) {
    const paragraph = make("p", { className: "excerpt" });
    excerpt.ids.forEach((id, place) => {
      const span = make("span", { textContent: visible(this.vocabulary[id]) });
      span.style.setProperty("--a", excerpt.activations[place]);
      if (excerpt.activations[place] > 0) span.title = excerpt.activations[place].toFixed(2) + " of its maximum";
      paragraph.append(span);
    });
    return paragraph;
  }

  // Every neuron as a dot: layers beside each other, scores upwards; what is filtered out stays as a shadow.
  drawCloud() {
    const { units, cloud } = this, scale = devicePixelRatio || 1, width = cloud.clientWidth, height = 200;
    cloud.width = width * scale;
    cloud.height = height * scale;
    const ink = cloud.getContext("2d"), style = getComputedStyle(this.root);
    ink.scale(scale, scale);
    const layers = units.head.layers, pad = { left: 34, right: 6, top: 8, bottom: 20 };
    let [low, high] = [0, 100];
    for (let i = 0; i < units.count; i++) {
      const score = this.score(i);
      if (score !== NO_SCORE) { low = Math.min(low, score); high = Math.max(high, score); }
    }
    const x = (i) => pad.left + (width - pad.left - pad.right) * (layers.indexOf(units.layer[i]) + 0.08 + 0.84 * ((units.neuron[i] * 0.6180339887) % 1)) / layers.length;
    const y = (score) => height - pad.bottom - (height - pad.top - pad.bottom) * (score - low) / (high - low);
    ink.font = "11px system-ui, sans-serif";
    ink.fillStyle = style.getPropertyValue("--muted");
    ink.strokeStyle = style.getPropertyValue("--rule");
    ink.textAlign = "right";
    for (let value = Math.ceil(low / 250) * 250; value <= high; value += 250) {
      ink.fillText(value / 10, pad.left - 6, y(value) + 4);
      ink.beginPath(); ink.moveTo(pad.left, y(value)); ink.lineTo(width, y(value)); ink.stroke();
    }
    ink.textAlign = "center";
    layers.forEach((layer, place) => ink.fillText((layers.length > 16 || width < 500 ? "" : "layer ") + layer, pad.left + (width - pad.left - pad.right) * (place + 0.5) / layers.length, height - 5));
    const size = units.count > 8000 ? 1.5 : units.count > 2000 ? 2 : 2.6;
    const dots = (indices, colour, alpha) => {
      ink.fillStyle = colour;
      ink.globalAlpha = alpha;
      for (const i of indices) if (this.score(i) !== NO_SCORE) ink.fillRect(x(i) - size / 2, y(this.score(i)) - size / 2, size, size);
      ink.globalAlpha = 1;
    };
    if (this.found.length < units.count) dots(Array(units.count).keys(), style.getPropertyValue("--rule"), 0.8);
    dots(this.found, style.getPropertyValue("--tone"), units.count > 8000 ? 0.45 : 0.7);
    this.spots = { x, y };
    cloud.setAttribute("aria-label", `Scores of ${this.found.length} neurons by layer; the list below holds the same neurons.`);
  }

  pickInCloud(event) {
    const box = this.cloud.getBoundingClientRect(), [px, py] = [event.clientX - box.x, event.clientY - box.y];
    let best = -1, nearest = 400;
    this.found.forEach((i, place) => {
      if (this.score(i) === NO_SCORE) return;
      const distance = (this.spots.x(i) - px) ** 2 + (this.spots.y(this.score(i)) - py) ** 2;
      if (distance < nearest) { nearest = distance; best = place; }
    });
    if (best >= 0) this.pick(best, true);
  }
}

document.querySelectorAll("table.sortable").forEach((table) => { sortable(table); csvButton(table); });
tips();
whereAmI();
addEventListener("hashchange", openTarget);
openTarget();

const browserRoot = document.getElementById("browser");
if (browserRoot) {
  const near = new IntersectionObserver((entries) => {
    if (entries.some((entry) => entry.isIntersecting)) { near.disconnect(); new NeuronBrowser(browserRoot); }
  }, { rootMargin: "800px" });
  near.observe(document.getElementById("neurons"));
}

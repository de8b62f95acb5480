// A grid of frames that holds only the rows in sight: ten thousand results scroll like ten.
import { clock } from "./api.js";

const GAP = 10, AHEAD = 600;

export class Grid {
  // open(index): a frame was chosen. pick(hit): it was marked. more(): the end comes near.
  constructor(root, { open, pick, more, isPicked }) {
    Object.assign(this, { root, open, pick, more, isPicked, hits: [], cells: new Map(), focus: 0 });
    addEventListener("scroll", () => this.draw(), { passive: true });
    new ResizeObserver(() => this.layout()).observe(root);
    root.addEventListener("keydown", (event) => this.key(event));
  }

  set(hits, keepScroll = false) {
    this.hits = hits;
    if (!keepScroll) {
      for (const cell of this.cells.values()) cell.remove();
      this.cells.clear();
      this.focus = 0;
      scrollTo(0, 0);
    }
    this.layout();
  }

  layout() {
    const width = this.root.clientWidth;
    if (!width) return;
    this.columns = Math.max(2, Math.floor((width + GAP) / (230 + GAP)));
    this.width = (width - GAP * (this.columns - 1)) / this.columns;
    this.height = Math.round(this.width * 0.75);
    this.root.style.height = `${Math.ceil(this.hits.length / this.columns) * (this.height + GAP)}px`;
    for (const [index, cell] of this.cells) this.place(cell, index);
    this.draw();
  }

  place(cell, index) {
    cell.style.width = `${this.width}px`;
    cell.style.height = `${this.height}px`;
    const x = (index % this.columns) * (this.width + GAP), y = Math.floor(index / this.columns) * (this.height + GAP);
    cell.style.transform = `translate(${x}px, ${y}px)`;
  }

  draw() {
    if (!this.columns || !this.root.clientWidth) return;
    const top = this.root.getBoundingClientRect().top, row = this.height + GAP;
    const first = Math.max(0, Math.floor((-top - AHEAD) / row)) * this.columns;
    const last = Math.min(this.hits.length, Math.ceil((innerHeight - top + AHEAD) / row) * this.columns);
    for (const [index, cell] of this.cells) {
      if ((index < first || index >= last) && cell !== document.activeElement) {
        cell.remove();
        this.cells.delete(index);
      }
    }
    for (let index = first; index < last; index++) {
      if (!this.cells.has(index)) this.add(index);
    }
    if (this.hits.length && last >= this.hits.length - this.columns * 2) this.more();
  }

  add(index) {
    const hit = this.hits[index], cell = document.createElement("button");
    cell.className = "cell";
    cell.tabIndex = index === this.focus ? 0 : -1;
    cell.setAttribute("role", "gridcell");
    const time = hit.media_type === "video" ? clock(hit.pts_s ?? 0) : "";
    cell.setAttribute("aria-label", [hit.name, time, hit.score == null ? "" : `score ${hit.score.toFixed(3)}`].filter(Boolean).join(", "));
    const image = new Image();
    image.alt = "";
    image.decoding = "async";
    image.onload = () => image.classList.add("ready");
    image.src = hit.thumbnail;
    const meta = element("div", "meta", element("span", "", hit.name), hit.score == null ? "" : element("b", "", hit.score.toFixed(3)));
    const tick = element("span", "tick", "✓");
    tick.title = "Select (X)";
    cell.append(image, ...(time ? [element("span", "badge", time)] : []), tick, meta);
    cell.onclick = (event) => (event.target === tick ? this.toggle(index) : this.open(index));
    cell.onfocus = () => { this.focus = index; };
    cell.classList.toggle("picked", this.isPicked(hit));
    this.place(cell, index);
    this.cells.set(index, cell);
    this.root.append(cell);
  }

  toggle(index) {
    this.pick(this.hits[index]);
    this.mark();
  }

  mark() {
    for (const [index, cell] of this.cells) cell.classList.toggle("picked", this.isPicked(this.hits[index]));
  }

  focusOn(index) {
    this.focus = Math.max(0, Math.min(this.hits.length - 1, index));
    const top = this.root.getBoundingClientRect().top + Math.floor(this.focus / this.columns) * (this.height + GAP);
    if (top < 130) scrollBy(0, top - 140);
    if (top + this.height > innerHeight) scrollBy(0, top + this.height - innerHeight + 20);
    this.draw();
    for (const [at, cell] of this.cells) cell.tabIndex = at === this.focus ? 0 : -1;
    this.cells.get(this.focus)?.focus({ preventScroll: true });
  }

  key(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: this.columns, ArrowUp: -this.columns, PageDown: 4 * this.columns, PageUp: -4 * this.columns }[event.key];
    if (step) this.focusOn(this.focus + step);
    else if (event.key === "Home") this.focusOn(0);
    else if (event.key === "End") this.focusOn(this.hits.length - 1);
    else if (event.key.toLowerCase() === "x") this.toggle(this.focus);
    else return;
    event.preventDefault();
  }
}

export function element(tag, name, ...children) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  made.append(...children);
  return made;
}

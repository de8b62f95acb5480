// Embeddings in the plane: points that can be zoomed, looked at, and caught with a lasso.
import { call, frameUrl, toast } from "./api.js";
import { colourOf } from "./mask.js";

export class EmbeddingMap {
  // open(frameId): a point was clicked. caught(frameIds): the lasso closed; all frames inside, those that are not drawn too.
  constructor(root, { open, caught, isPicked }) {
    Object.assign(this, { root, open, caught, isPicked, points: null, zoom: 1, centre: [0, 0], lasso: null, drag: null, hover: -1 });
    this.canvas = root.querySelector("canvas");
    this.tip = root.querySelector(".tip");
    new ResizeObserver(() => this.draw()).observe(this.canvas);
    for (const name of ["down", "move", "up", "leave"]) this.canvas.addEventListener(`pointer${name}`, (event) => this[name](event));
    this.canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    this.canvas.addEventListener("keydown", (event) => this.key(event));
  }

  async load(model) {
    if (this.points && this.model === model) return this.draw();
    await this.busy("Laying out the map …", async () => {
      this.points = await call(`map${model ? `?model=${encodeURIComponent(model)}` : ""}`);
      this.model = model;
    });
    this.draw();
  }

  // Says what is being done instead of how the map is used.
  async busy(words, work) {
    const help = this.root.querySelector(".help");
    this.usage ??= help.textContent;
    help.textContent = words;
    try {
      return await work();
    } finally {
      const shown = this.points?.frame_ids.length ?? 0, total = this.points?.total ?? 0;
      const sample = total > shown ? ` · ${shown.toLocaleString()} of ${total.toLocaleString()} frames are drawn; a lasso takes all inside` : "";
      help.textContent = this.usage + sample;
    }
  }

  // All frames inside a polygon of the screen: the server knows those that are not drawn.
  async take(corners) {
    if (corners.length < 3) return this.caught([]);
    const polygon = thinned(corners).map((corner) => this.unproject(corner));
    const { version, frame_ids } = this.points;
    try {
      const body = { polygon, version, model: this.model || undefined };
      const found = await this.busy("Looking inside …", () => call("map/inside", { method: "POST", body }));
      this.caught(found.frame_ids);
    } catch (error) {
      toast(error.message);
      if (error.status !== 409 || this.points.frame_ids !== frame_ids) return;
      this.points = null;
      await this.load(this.model).catch((again) => toast(again.message));
    }
  }

  // Pixels of the screen for one unit of the map, across and down; a wide screen is filled.
  scales() {
    const { clientWidth: w, clientHeight: h } = this.canvas, down = Math.min(w, h) * 0.47 * this.zoom;
    return [down * Math.max(1, Math.min(1.7, w / h)), down];
  }

  project(i) {
    const { clientWidth: w, clientHeight: h } = this.canvas, [across, down] = this.scales();
    return [w / 2 + (this.points.x[i] - this.centre[0]) * across, h / 2 + (this.points.y[i] - this.centre[1]) * down];
  }

  unproject([x, y]) {
    const { clientWidth: w, clientHeight: h } = this.canvas, [across, down] = this.scales();
    return [(x - w / 2) / across + this.centre[0], (y - h / 2) / down + this.centre[1]];
  }

  at(event) {
    const bounds = this.canvas.getBoundingClientRect();
    return [event.clientX - bounds.left, event.clientY - bounds.top];
  }

  nearest([x, y]) {
    let best = -1, least = 13 ** 2;
    for (let i = 0; i < this.points.x.length; i++) {
      const [px, py] = this.project(i), d = (px - x) ** 2 + (py - y) ** 2;
      if (d < least) [best, least] = [i, d];
    }
    return best;
  }

  down(event) {
    if (!this.points) return;
    this.canvas.setPointerCapture(event.pointerId);
    if (event.shiftKey) this.drag = this.at(event);
    else this.lasso = [this.at(event)];
    this.tip.hidden = true;
  }

  move(event) {
    if (!this.points) return;
    const at = this.at(event);
    if (this.drag) {
      const [across, down] = this.scales();
      this.centre = [this.centre[0] - (at[0] - this.drag[0]) / across, this.centre[1] - (at[1] - this.drag[1]) / down];
      this.drag = at;
      this.draw();
    } else if (this.lasso) {
      this.lasso.push(at);
      this.draw();
    } else {
      this.show(this.nearest(at), at);
    }
  }

  up(event) {
    const { lasso } = this;
    this.drag = this.lasso = null;
    if (!lasso) return;
    const xs = lasso.map((p) => p[0]), ys = lasso.map((p) => p[1]);
    if (Math.max(...xs) - Math.min(...xs) < 5 && Math.max(...ys) - Math.min(...ys) < 5) {
      const i = this.nearest(this.at(event));
      if (i >= 0) this.open(this.points.frame_ids[i]);
    } else {
      this.take(lasso);
    }
    this.draw();
  }

  leave() { this.show(-1); }

  show(i, at) {
    if (i === this.hover) return;
    this.hover = i;
    this.tip.hidden = i < 0;
    if (i >= 0) {
      this.tip.querySelector("img").src = frameUrl(this.points.frame_ids[i], true);
      const right = at[0] > this.canvas.clientWidth - 200, below = at[1] > this.canvas.clientHeight - 160;
      this.tip.style.transform = `translate(${at[0] + (right ? -190 : 14)}px, ${at[1] + (below ? -150 : 14)}px)`;
      this.tip.style.left = this.tip.style.top = "0";
    }
    this.draw();
  }

  wheel(event) {
    event.preventDefault();
    this.zoom = Math.max(0.7, Math.min(40, this.zoom * Math.exp(-event.deltaY / 400)));
    this.draw();
  }

  key(event) {
    const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (move) this.centre = this.centre.map((v, i) => v + (move[i] * 0.15) / this.zoom);
    else if (event.key === "+" || event.key === "=") this.zoom *= 1.25;
    else if (event.key === "-") this.zoom /= 1.25;
    else if (event.key === "Enter" && this.points) {
      // Without a pointer: all that is in sight.
      const { clientWidth: w, clientHeight: h } = this.canvas;
      this.take([[0, 0], [w, 0], [w, h], [0, h]]);
    } else return;
    event.preventDefault();
    this.draw();
  }

  draw() {
    const { canvas } = this, ratio = devicePixelRatio || 1;
    if (!canvas.clientWidth || !this.points) return;
    canvas.width = canvas.clientWidth * ratio;
    canvas.height = canvas.clientHeight * ratio;
    const context = canvas.getContext("2d"), style = getComputedStyle(canvas);
    context.scale(ratio, ratio);
    const size = Math.max(2.2, Math.min(6, 190 / Math.sqrt(this.points.x.length))) * Math.min(2, this.zoom ** 0.35);
    for (let i = 0; i < this.points.x.length; i++) {
      const [x, y] = this.project(i), id = this.points.frame_ids[i];
      context.beginPath();
      context.arc(x, y, i === this.hover ? size * 1.8 : size, 0, 7);
      context.fillStyle = colourOf(id.split(":")[0]);
      context.globalAlpha = 0.85;
      context.fill();
      context.globalAlpha = 1;
      if (this.isPicked(id)) {
        context.strokeStyle = style.color;
        context.lineWidth = 2.5;
        context.stroke();
      }
    }
    if (this.lasso) {
      context.beginPath();
      this.lasso.forEach(([x, y], i) => (i ? context.lineTo(x, y) : context.moveTo(x, y)));
      context.closePath();
      context.fillStyle = "#5c7cfa33";
      context.fill();
      context.strokeStyle = "#5c7cfa";
      context.lineWidth = 2;
      context.stroke();
    }
  }
}

// A lasso has a corner for every move of the pointer; a server need not see them all.
function thinned(corners) {
  const step = Math.ceil(corners.length / 300);
  const kept = corners.filter((_, i) => i % step === 0);
  return kept.length < 3 ? corners : kept;
}

// Embeddings in the plane: points that can be zoomed, looked at, and caught with a lasso.
import { call, frameUrl } from "./api.js";
import { colourOf } from "./mask.js";

export class EmbeddingMap {
  // open(frameId): a point was clicked. caught(frameIds): the lasso closed.
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
    const help = this.root.querySelector(".help"), text = help.textContent;
    help.textContent = "Laying out the map …";
    try {
      this.points = await call(`map${model ? `?model=${encodeURIComponent(model)}` : ""}`);
      this.model = model;
    } finally {
      help.textContent = text;
    }
    this.draw();
  }

  project(i) {
    const { clientWidth: w, clientHeight: h } = this.canvas, scale = Math.min(w, h) * 0.47 * this.zoom;
    const stretch = Math.min(1.7, w / h);  // the map fills a wide screen
    return [w / 2 + (this.points.x[i] - this.centre[0]) * scale * Math.max(1, stretch), h / 2 + (this.points.y[i] - this.centre[1]) * scale];
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
      const scale = Math.min(this.canvas.clientWidth, this.canvas.clientHeight) * 0.47 * this.zoom;
      this.centre = [this.centre[0] - (at[0] - this.drag[0]) / scale, this.centre[1] - (at[1] - this.drag[1]) / scale];
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
      this.caught(this.points.frame_ids.filter((_, i) => inside(this.project(i), lasso)));
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
      this.caught(this.points.frame_ids.filter((_, i) => inside(this.project(i), [[0, 0], [w, 0], [w, h], [0, h]])));
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

// Even-odd rule.
function inside([x, y], polygon) {
  let odd = false;
  for (let i = 0, j = polygon.length - 1; i < polygon.length; j = i++) {
    const [xi, yi] = polygon[i], [xj, yj] = polygon[j];
    if ((yi > y) !== (yj > y) && x < ((xj - xi) * (y - yi)) / (yj - yi) + xi) odd = !odd;
  }
  return odd;
}

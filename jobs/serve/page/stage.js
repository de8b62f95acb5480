// The picture or video of the viewer with what is drawn over it: boxes, masks, clicks, a box being drawn.
import { COLOURS, colourOf, maskCanvas } from "./mask.js";

export class Stage {
  // clicked({x, y, on}): in pixels of the frame. boxed([x1, y1, x2, y2]).
  constructor(canvas, { clicked, boxed }) {
    Object.assign(this, { canvas, clicked, boxed, tool: null, size: [1, 1], boxes: [], masks: [], points: [], drag: null });
    new ResizeObserver(() => this.draw()).observe(canvas);
    canvas.addEventListener("pointerdown", (event) => this.down(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    canvas.addEventListener("pointerup", (event) => this.up(event));
    canvas.addEventListener("contextmenu", (event) => this.tool && event.preventDefault());
  }

  clear(width, height) {
    Object.assign(this, { size: [width, height], boxes: [], masks: [], points: [], drag: null });
    this.draw();
  }

  use(tool) {
    this.tool = tool;
    this.canvas.classList.toggle("active", Boolean(tool));
  }

  // Where the picture lies inside the canvas (object-fit: contain), CSS pixels.
  fit() {
    const [width, height] = this.size, { clientWidth: w, clientHeight: h } = this.canvas;
    const scale = Math.min(w / width, h / height);
    return { scale, left: (w - width * scale) / 2, top: (h - height * scale) / 2 };
  }

  at(event) {
    const bounds = this.canvas.getBoundingClientRect(), { scale, left, top } = this.fit();
    const x = (event.clientX - bounds.left - left) / scale, y = (event.clientY - bounds.top - top) / scale;
    return [Math.min(Math.max(x, 0), this.size[0] - 0.5), Math.min(Math.max(y, 0), this.size[1] - 0.5)];
  }

  down(event) {
    if (!this.tool) return;
    this.canvas.setPointerCapture(event.pointerId);
    this.drag = { from: this.at(event), to: this.at(event) };
  }

  move(event) {
    if (!this.drag) return;
    this.drag.to = this.at(event);
    if (this.tool === "box") this.draw();
  }

  up(event) {
    if (!this.drag) return;
    const { from, to } = this.drag;
    this.drag = null;
    if (this.tool === "box") {
      const box = [Math.min(from[0], to[0]), Math.min(from[1], to[1]), Math.max(from[0], to[0]), Math.max(from[1], to[1])];
      if (box[2] - box[0] > 4 && box[3] - box[1] > 4) this.boxed(box);
    } else {
      // Shift, Alt or the right button: this is not the object.
      this.clicked({ x: to[0], y: to[1], on: !(event.shiftKey || event.altKey || event.button === 2) });
    }
    this.draw();
  }

  draw() {
    const { canvas } = this, ratio = devicePixelRatio || 1;
    canvas.width = canvas.clientWidth * ratio;
    canvas.height = canvas.clientHeight * ratio;
    const context = canvas.getContext("2d"), { scale, left, top } = this.fit();
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.translate(left, top);
    const [width, height] = this.size;
    this.masks.forEach(({ mask, colour }) => context.drawImage(maskCanvas(mask, colour), 0, 0, width * scale, height * scale));
    context.font = "600 12.5px system-ui, sans-serif";
    for (const { box, label, colour, hidden } of this.boxes) {
      if (hidden) continue;
      const [x1, y1, x2, y2] = box.map((v) => v * scale);
      context.strokeStyle = colour;
      context.lineWidth = 2;
      context.strokeRect(x1, y1, x2 - x1, y2 - y1);
      const text = context.measureText(label).width + 10, ty = Math.max(0, y1 - 19);
      context.fillStyle = colour;
      context.fillRect(x1 - 1, ty, text, 19);
      context.fillStyle = "#000";
      context.fillText(label, x1 + 4, ty + 14);
    }
    for (const { x, y, on } of this.points) {
      context.beginPath();
      context.arc(x * scale, y * scale, 6, 0, 7);
      context.fillStyle = on ? "#40c057" : "#fa5252";
      context.fill();
      context.strokeStyle = "#fff";
      context.stroke();
    }
    if (this.drag && this.tool === "box") {
      const [[x1, y1], [x2, y2]] = [this.drag.from, this.drag.to];
      context.setLineDash([6, 4]);
      context.strokeStyle = "#fff";
      context.strokeRect(x1 * scale, y1 * scale, (x2 - x1) * scale, (y2 - y1) * scale);
    }
  }
}

export function detectionBox(detection) {
  const label = `${detection.label ?? detection.prompt} ${(detection.score ?? 0).toFixed(2)}`;
  return { box: detection.box, label, colour: colourOf(detection.label), hidden: false };
}

// Whether two boxes, xyxy, are of one thing: their intersection is more than half of their union.
export function same(a, b) {
  const area = ([x1, y1, x2, y2]) => Math.max(0, x2 - x1) * Math.max(0, y2 - y1);
  const both = area([Math.max(a[0], b[0]), Math.max(a[1], b[1]), Math.min(a[2], b[2]), Math.min(a[3], b[3])]);
  return both > 0.5 * (area(a) + area(b) - both);
}

export function objectColour(id) {
  return COLOURS[(id - 1 + COLOURS.length) % COLOURS.length];
}

// A video's time as lanes: shots, stored frames, the lake's tracks, and what is being followed now.
import { clock } from "./api.js";
import { colourOf } from "./mask.js";

const SHOTS = 26, LANE = 13, LANES = 8;

export class Timeline {
  // seek(seconds) is called for clicks, drags and arrow keys.
  constructor(canvas, seek) {
    Object.assign(this, { canvas, seek, duration: 1, now: 0, shots: [], frames: [], tracks: [], live: [] });
    new ResizeObserver(() => this.draw()).observe(canvas);
    const at = (event) => {
      const bounds = canvas.getBoundingClientRect();
      seek(Math.max(0, Math.min(1, (event.clientX - bounds.left) / bounds.width)) * this.duration);
    };
    canvas.addEventListener("pointerdown", (event) => { canvas.setPointerCapture(event.pointerId); at(event); });
    canvas.addEventListener("pointermove", (event) => event.buttons && at(event));
    canvas.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!step) return;
      event.preventDefault();
      event.stopPropagation();
      // With Shift from shot to shot, else by a tenth of a second.
      if (!event.shiftKey) return seek(Math.max(0, Math.min(this.duration, this.now + step / 10)));
      const starts = this.shots.map((s) => s.start_s);
      const next = step > 0 ? starts.find((s) => s > this.now + 0.05) : starts.filter((s) => s < this.now - 0.05).pop();
      if (next !== undefined) seek(next);
    });
  }

  set(values) {
    Object.assign(this, values);
    const lanes = this.tracks.length + this.live.length;
    this.canvas.style.height = `${SHOTS + 10 + Math.min(lanes, LANES + 1) * LANE + 4}px`;
    this.canvas.setAttribute("aria-valuemax", this.duration.toFixed(1));
    this.draw();
  }

  move(now) {
    this.now = now;
    this.canvas.setAttribute("aria-valuenow", now.toFixed(1));
    this.canvas.setAttribute("aria-valuetext", clock(now));
    this.draw();
  }

  draw() {
    const { canvas } = this, ratio = devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
    if (!width) return;
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    const context = canvas.getContext("2d"), x = (seconds) => (seconds / this.duration) * width;
    context.scale(ratio, ratio);
    context.fillStyle = "#1b212c";
    context.fillRect(0, 0, width, height);
    this.shots.forEach((shot, i) => {
      const left = x(shot.start_s), right = x(Math.min(shot.end_s, this.duration));
      const inside = this.now >= shot.start_s && this.now < shot.end_s;
      context.fillStyle = inside ? "#5c7cfa" : i % 2 ? "#364f7d" : "#2b3f66";
      context.fillRect(left, 0, Math.max(1, right - left - 1.5), SHOTS);
      if (right - left > 26) {
        context.fillStyle = "#fff";
        context.font = "11px system-ui";
        context.fillText(String(i + 1), left + 6, 17);
      }
    });
    context.fillStyle = "#98a2b3";
    for (const frame of this.frames) context.fillRect(x(frame.pts_s) - 0.75, SHOTS + 2, 1.5, 5);
    const lanes = [...this.live, ...this.tracks];
    lanes.slice(0, LANES).forEach((track, i) => this.lane(context, track, SHOTS + 11 + i * LANE, x));
    if (lanes.length > LANES) {
      context.fillStyle = "#98a2b3";
      context.font = "11px system-ui";
      context.fillText(`and ${lanes.length - LANES} more`, 6, SHOTS + 20 + LANES * LANE);
    }
    context.fillStyle = "#ffd43b";
    context.fillRect(x(this.now) - 1, 0, 2, height);
  }

  lane(context, { id, label, times, colour }, y, x) {
    if (!times.length) return;
    context.fillStyle = colour ?? colourOf(id);
    const left = x(Math.min(...times)), right = x(Math.max(...times));
    context.beginPath();
    context.roundRect(left, y, Math.max(4, right - left), LANE - 3, 4);
    context.fill();
    if (right - left > 60) {
      context.fillStyle = "#000";
      context.font = "600 9.5px system-ui";
      context.fillText(label, left + 6, y + 8.5);
    }
  }
}

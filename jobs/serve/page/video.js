// A video in the viewer: playing, its timeline, and following an object: click it, track it, correct it on the way.
import { call, clock, lines, toast } from "./api.js";
import { objectColour } from "./stage.js";
import { Timeline } from "./timeline.js";

export class VideoView {
  // shown(seconds): called whenever another moment is in view.
  constructor(stage, shown) {
    Object.assign(this, { stage, shown, session: null, results: new Map(), abort: null, objects: new Set(), playable: false });
    this.video = document.getElementById("video");
    this.bar = document.getElementById("timeline");
    this.state = document.getElementById("track-state");
    this.button = document.getElementById("track");
    this.timeline = new Timeline(document.getElementById("lanes"), (seconds) => this.seek(seconds));
    document.getElementById("play").onclick = () => this.play();
    this.button.onclick = () => this.follow();
    this.video.addEventListener("timeupdate", () => this.moment(this.video.currentTime));
    this.video.addEventListener("seeked", () => this.moment(this.video.currentTime));
    this.video.addEventListener("loadeddata", () => this.ready());
    this.video.addEventListener("error", () => { this.video.hidden = true; });
  }

  open(asset, tracks, pts_s) {
    this.close();
    this.asset = asset;
    const lanes = new Map();
    for (const row of tracks) {
      if (!lanes.has(row.track_id)) lanes.set(row.track_id, { id: row.track_id, label: row.label ?? "track", times: [], rows: [] });
      lanes.get(row.track_id).times.push(row.pts_s);
      lanes.get(row.track_id).rows.push(row);
    }
    this.tracks = [...lanes.values()];
    const ends = [...asset.shots.map((s) => s.end_s), ...asset.frames.map((f) => f.pts_s), 0.1];
    const duration = asset.probe?.duration_s ?? Math.max(...ends);
    this.bar.hidden = false;
    this.timeline.set({ duration, shots: asset.shots, frames: asset.frames, tracks: this.tracks, live: [] });
    this.start = pts_s;
    this.video.src = `/v1/assets/${asset.asset_id}`;
    this.moment(pts_s);
  }

  // A file that the browser can't play stays a series of stored stills: the timeline steps through them.
  ready() {
    this.playable = true;
    this.video.currentTime = this.start;
    this.video.hidden = false;
    if (Number.isFinite(this.video.duration)) this.timeline.set({ duration: this.video.duration });
    this.watch();
  }

  watch() {
    this.video.requestVideoFrameCallback?.((_, { mediaTime }) => {
      if (this.asset) this.moment(mediaTime);
      if (this.playable) this.watch();
    });
  }

  close() {
    this.abort?.abort();
    if (this.session) call(`track/sessions/${this.session}`, { method: "DELETE" }).catch(() => null);
    Object.assign(this, { asset: null, session: null, opening: null, facts: null, abort: null, results: new Map(), objects: new Set(), playable: false });
    this.video.pause();
    this.video.removeAttribute("src");
    this.video.load();
    this.video.hidden = true;
    this.bar.hidden = true;
    this.button.hidden = true;
    this.state.textContent = "";
  }

  play() {
    if (!this.playable) toast("This browser can't play the file; drag along the timeline instead.");
    else if (this.video.paused) this.video.play();
    else this.video.pause();
  }

  seek(seconds) {
    if (this.playable) this.video.currentTime = seconds;
    this.moment(seconds);
  }

  moment(seconds) {
    this.now = seconds;
    document.getElementById("clock").textContent = clock(seconds);
    this.timeline.move(seconds);
    const result = this.resultAt(seconds);
    if (result) {
      this.stage.points = [];
      this.stage.masks = result.objects.filter((o) => o.visible).map((o) => ({ mask: o.mask, colour: objectColour(o.object_id) }));
    } else if (this.results.size) this.stage.masks = [];
    this.shown(seconds, this.tracksAt(seconds));
  }

  // Boxes of the lake's tracks near a moment.
  tracksAt(seconds) {
    return this.tracks.flatMap(({ id, label, rows }) => {
      const row = rows.reduce((a, b) => (Math.abs(b.pts_s - seconds) < Math.abs(a.pts_s - seconds) ? b : a));
      return Math.abs(row.pts_s - seconds) < 0.3 && row.visible ? [{ id, label, box: row.box }] : [];
    });
  }

  resultAt(seconds) {
    const result = this.results.get(this.index(seconds));
    return result ?? this.results.get(this.index(seconds) - 1);
  }

  index(seconds) {
    return Math.max(0, Math.min(this.facts?.frames - 1 || Infinity, Math.round(seconds * (this.facts?.fps || 25))));
  }

  // A click on the video: the object's prompt, on the frame in view. Points of one frame add up.
  async prompt(points) {
    this.video.pause();
    this.abort?.abort();
    await this.session_();
    const body = { frame_index: this.index(this.now), object_id: 1, points: points.map((p) => [p.x, p.y]), labels: points.map((p) => Number(p.on)) };
    await call(`track/sessions/${this.session}/prompts`, { method: "POST", body });
    this.button.hidden = false;
    this.button.textContent = "Track";
  }

  // The tracking session, opened once.
  session_() {
    const { asset } = this;
    this.opening ??= call("track/sessions", { method: "POST", body: { asset_id: asset.asset_id } }).then((facts) => {
      if (this.asset === asset) Object.assign(this, { facts, session: facts.session });
    }).catch((error) => { this.opening = null; throw error; });
    return this.opening;
  }

  async follow() {
    if (this.abort) return this.abort.abort();
    this.abort = new AbortController();
    this.button.textContent = "Stop";
    let count = 0;
    try {
      for await (const result of lines(`track/sessions/${this.session}/stream`, this.abort.signal)) {
        this.results.set(result.frame_index, result);
        count += 1;
        this.state.textContent = `following · frame ${result.frame_index + 1} of ${this.facts.frames}`;
        if (!(count % 4)) this.show(result);
      }
      this.state.textContent = `followed over ${count} frames`;
    } catch (error) {
      if (error.name === "AbortError") this.state.textContent = `stopped after ${count} frames; click again to correct`;
      else toast(error.message);
    } finally {
      this.abort = null;
      this.button.textContent = "Track";
      this.lanes();
    }
  }

  show(result) {
    this.lanes();
    this.seek(result.pts_s);
  }

  lanes() {
    const times = [...this.results.values()].filter((r) => r.objects.some((o) => o.visible)).map((r) => r.pts_s);
    this.timeline.set({ live: [{ id: "live", label: "followed", times, colour: objectColour(1) }] });
  }
}

// A video in the viewer: playing, its timeline, and following an object: click it, track it, correct it on the way.
import { call, clock, lines, toast } from "./api.js";
import { objectColour } from "./stage.js";
import { Timeline } from "./timeline.js";

// How far the page's clock may be from a frame's own: browsers round times, and seek to the frame that has begun.
const SLACK_S = 0.004;
// Boxes between two rows of a track are drawn on the way from one to the other, where they are no farther apart.
const BETWEEN_S = 0.7;

export class VideoView {
  // shown(seconds, tracks): called whenever another frame is in view, with its own time, and the tracks' boxes on it.
  constructor(stage, shown) {
    Object.assign(this, { stage, shown, session: null, results: new Map(), abort: null, objects: new Set(), playable: false, slack: SLACK_S, tracks: [] });
    this.video = document.getElementById("video");
    this.bar = document.getElementById("timeline");
    this.state = document.getElementById("track-state");
    this.button = document.getElementById("track");
    this.timeline = new Timeline(document.getElementById("lanes"), (seconds) => this.seek(seconds));
    document.getElementById("play").onclick = () => this.play();
    this.button.onclick = () => this.follow();
    this.exact = "requestVideoFrameCallback" in this.video;
    if (!this.exact) for (const name of ["timeupdate", "seeked"]) this.video.addEventListener(name, () => this.playable && this.moment(this.video.currentTime - this.origin));
    this.video.addEventListener("loadeddata", () => this.ready());
    this.video.addEventListener("error", () => { this.video.hidden = true; });
  }

  open(asset, { rows, total }, pts_s) {
    this.close();
    this.asset = asset;
    const lanes = new Map();
    for (const row of rows) {
      if (!lanes.has(row.track_id)) lanes.set(row.track_id, { id: row.track_id, label: row.label ?? "track", times: [], rows: [] });
      lanes.get(row.track_id).times.push(row.pts_s);
      lanes.get(row.track_id).rows.push(row);
    }
    this.tracks = [...lanes.values()];
    if (rows.length < total) this.state.textContent = `tracks: the first ${rows.length.toLocaleString()} of ${total.toLocaleString()} rows`;
    const ends = [...asset.shots.map((s) => s.end_s), ...asset.frames.map((f) => f.pts_s), 0.1];
    const duration = asset.probe?.duration_s ?? Math.max(...ends);
    // Two frames are one when their times are nearer than this.
    this.slack = Math.min(SLACK_S, 0.25 / (asset.probe?.fps || 25));
    this.bar.hidden = false;
    this.timeline.set({ duration, shots: asset.shots, frames: asset.frames, tracks: this.tracks, live: [] });
    this.start = pts_s;
    this.begin();
    this.video.src = `/v1/assets/${asset.asset_id}`;
    this.moment(pts_s);
  }

  // A file that the browser can't play stays a series of stored stills: the timeline steps through them.
  ready() {
    if (this.playable || !this.asset) return;
    this.playable = true;
    if (Number.isFinite(this.video.duration)) this.timeline.set({ duration: this.video.duration });
    if (!this.exact) this.seek(this.start);
  }

  // The lake counts from the first frame, the browser from where the file says it begins: the first frame tells them apart.
  begin() {
    const { asset } = this;
    this.origin = 0;
    this.video.style.opacity = this.exact ? 0 : 1;  // the still is seen until its frame is there
    this.video.hidden = false;
    if (!this.exact) return;
    this.video.requestVideoFrameCallback((_, { mediaTime }) => {
      if (this.asset !== asset) return;
      this.ready();
      this.origin = mediaTime;
      this.watch();
      this.seek(this.start);
      if (this.start <= this.slack) this.video.style.opacity = 1;  // no other frame will come
    });
  }

  watch() {
    const { asset } = this;
    this.video.requestVideoFrameCallback((_, { mediaTime }) => {
      if (this.asset !== asset || !this.playable) return;
      this.video.style.opacity = 1;
      this.moment(mediaTime - this.origin);
      this.watch();
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
    this.video.style.opacity = 1;
    this.bar.hidden = true;
    this.button.hidden = true;
    this.state.textContent = "";
  }

  play() {
    if (!this.playable) toast("This browser can't play the file; drag along the timeline instead.");
    else if (this.video.paused) this.video.play();
    else this.video.pause();
  }

  // To the frame that is in view at a time. Its exact time comes with the frame, by `watch`.
  seek(seconds) {
    if (!this.playable) return this.moment(this.stillAt(seconds)?.pts_s ?? seconds);
    // A little inside of the frame: at its very beginning, rounding may show the one before.
    this.video.currentTime = this.origin + seconds + this.slack;
    if (this.exact) this.timeline.move(seconds);
    else this.moment(seconds);
  }

  // The stored frame nearest to a time: what is shown where the file can't be played.
  stillAt(seconds) {
    return this.asset?.frames.reduce((a, b) => (Math.abs(b.pts_s - seconds) < Math.abs(a.pts_s - seconds) ? b : a), this.asset.frames[0]);
  }

  // Whether two times are of one frame.
  same(a, b) { return Math.abs(a - b) <= this.slack; }

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

  // Boxes of the lake's tracks on the frame in view: its own, or between two that are near.
  tracksAt(seconds) {
    return this.tracks.flatMap(({ id, label, rows }) => {
      const at = rows.findIndex((row) => row.pts_s >= seconds - this.slack), after = rows[at], before = rows[at - 1];
      if (after && this.same(after.pts_s, seconds)) return after.visible ? [{ id, label, box: after.box }] : [];
      if (!after?.visible || !before?.visible || after.pts_s - before.pts_s > BETWEEN_S) return [];
      const share = (seconds - before.pts_s) / (after.pts_s - before.pts_s);
      return [{ id, label, box: before.box.map((v, i) => v + share * (after.box[i] - v)) }];
    });
  }

  // What was followed on the frame in view.
  resultAt(seconds) {
    for (const result of this.results.values()) if (this.same(result.pts_s, seconds)) return result;
    return undefined;
  }

  // A click on the video: the object's prompt, on the frame in view. Points of one frame add up.
  async prompt(points) {
    this.video.pause();
    this.abort?.abort();
    await this.session_();
    // By its time: a number made of a rate is a frame off wherever the rate varies.
    const body = { pts_s: this.now, object_id: 1, points: points.map((p) => [p.x, p.y]), labels: points.map((p) => Number(p.on)) };
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

  // What was followed so far becomes annotations of the lake: how many frames they are on.
  async store(author, label) {
    const labels = label ? { 1: label } : {};
    return (await call(`track/sessions/${this.session}/store`, { method: "POST", body: { author, labels } })).stored;
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

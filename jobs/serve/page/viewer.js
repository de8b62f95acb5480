// One frame, large: its facts, boxes, masks and neighbours; tools that segment, detect, search a box; a video's timeline.
import { call, clock, frameUrl, toast } from "./api.js";
import { element } from "./grid.js";
import { colourOf } from "./mask.js";
import { detectionBox, objectColour, same, Stage } from "./stage.js";
import { VideoView } from "./video.js";

const $ = (id) => document.getElementById(id);

export class Viewer {
  // turn(step): the next or previous result. search(query, chip): a new search from here.
  constructor({ turn, search, pick, isPicked, closed }) {
    Object.assign(this, { turn, search, pick, isPicked, frame: null, session: null, points: [] });
    this.dialog = $("viewer");
    this.stage = new Stage($("overlay"), { clicked: (point) => this.click(point), boxed: (box) => this.box(box) });
    this.video = new VideoView(this.stage, (seconds, tracks) => this.moment(seconds, tracks));
    this.dialog.addEventListener("close", () => { this.leave(); closed(); });
    this.dialog.addEventListener("keydown", (event) => this.key(event));
    this.dialog.addEventListener("click", (event) => event.target === this.dialog && this.dialog.close());
    $("close").onclick = () => this.dialog.close();
    this.dialog.querySelector(".prev").onclick = () => turn(-1);
    this.dialog.querySelector(".next").onclick = () => turn(1);
    $("similar").onclick = () => this.like({ frame_id: this.frame.frame_id }, "like this");
    $("select-frame").onclick = () => { pick(this.frame); this.marked(); };
    $("store-author").value = localStorage.getItem("author") ?? "";
    $("store-form").onsubmit = (event) => { event.preventDefault(); this.store(); };
    $("detect-form").onsubmit = (event) => { event.preventDefault(); this.detect(); };
    for (const button of this.dialog.querySelectorAll("[data-tool]")) button.onclick = () => this.use(button.dataset.tool);
  }

  async open(hit) {
    this.leave();
    this.frame = hit;
    if (!this.dialog.open) this.dialog.showModal();
    $("still").src = hit.image ?? frameUrl(hit.frame_id);
    $("title").textContent = hit.name ?? "";
    for (const part of ["numbers", "objects", "neighbours"]) $(part).replaceChildren();
    this.stage.clear(hit.width || 1, hit.height || 1);
    this.marked();
    try {
      const frame = await call(`frames/${encodeURIComponent(hit.frame_id)}/details`);
      if (this.frame !== hit) return;
      this.frame = Object.assign(hit, frame);
      this.stage.clear(frame.width, frame.height);
      this.facts(frame);
      this.objects(frame.detections.map(detectionBox), frame.tracks, frame.annotations);
      this.neighbours(hit);
      if (frame.media_type === "video") await this.openVideo(hit);
    } catch (error) {
      toast(error.message);
    }
  }

  async openVideo(hit) {
    const [asset, tracks] = await Promise.all([call(`assets/${hit.asset_id}/details`), call(`assets/${hit.asset_id}/tracks?counted=true`)]);
    if (this.frame === hit) this.video.open(asset, tracks, hit.pts_s ?? 0);
  }

  leave() {
    this.video.close();
    this.forget();
    this.use(null);
    this.frame = null;
    $("store-label").value = "";
  }

  forget() {
    if (this.session) this.session.then((s) => call(`segment/sessions/${s.session}`, { method: "DELETE" })).catch(() => null);
    this.session = null;
    this.points = [];
    this.offer();
  }

  // To store what is there: a mask that was clicked, or a track.
  offer() {
    $("store-form").hidden = !this.canStore || !(this.points.length || this.video.results.size);
  }

  facts(frame) {
    $("title").textContent = frame.name;
    const rows = [["size", `${frame.width} × ${frame.height}`], ["score", frame.score?.toFixed(4)], ["caption", frame.caption], ["label", frame.label]];
    if (frame.media_type === "video") rows.unshift(["time", `${clock(frame.pts_s)} · frame ${frame.frame_index}`]);
    if (frame.quality) rows.push(["sharpness", frame.quality.sharpness?.toFixed(0)], ["luminance", frame.quality.luminance?.toFixed(2)]);
    for (const said of frame.annotations) if (!said.box && !said.mask) rows.push([said.kind, `${said.label} · ${said.author}`]);
    $("numbers").replaceChildren(...rows.filter(([, v]) => v).flatMap(([k, v]) => [element("dt", "", k), element("dd", "", v)]));
  }

  objects(boxes, tracks = [], annotations = []) {
    // A detection that a track has taken up is that track's: one colour, one box.
    for (const box of boxes) {
      const track = tracks.find((t) => t.box && same(t.box, box.box));
      if (track) box.colour = colourOf(track.track_id);
    }
    const masks = tracks.filter((t) => t.mask).map((t) => ({ mask: t.mask, colour: colourOf(t.track_id) }));
    for (const { box, mask, label, kind, author, object_id, annotation_id } of annotations) {
      const colour = colourOf(object_id ?? annotation_id);
      if (mask) masks.push({ mask, colour });
      if (box) boxes.push({ box, label: `${label ?? kind} · ${author}`, colour, hidden: false });
    }
    this.detections = boxes;
    this.stage.boxes = boxes;
    this.stage.masks = masks;
    const buttons = boxes.map((box) => {
      const swatch = element("i");
      swatch.style.background = box.colour;
      const button = element("button", "object", swatch, element("span", "", box.label));
      button.setAttribute("aria-pressed", "true");
      button.onclick = () => {
        box.hidden = !box.hidden;
        button.setAttribute("aria-pressed", String(!box.hidden));
        this.stage.draw();
      };
      return button;
    });
    $("objects").replaceChildren(...(buttons.length ? [element("h3", "", "Objects"), ...buttons] : []));
    this.stage.draw();
  }

  async neighbours(hit) {
    const page = await call("search", { method: "POST", body: { frame_id: hit.frame_id, limit: 12 } }).catch(() => null);
    if (!page || this.frame !== hit) return;
    $("neighbours").replaceChildren(...page.hits.map((other) => {
      const image = new Image();
      image.src = other.thumbnail;
      image.alt = other.name;
      const button = element("button", "", image, element("small", "", other.score.toFixed(2)));
      button.title = other.name;
      button.onclick = () => this.open(other);
      return button;
    }));
  }

  marked() {
    $("select-frame").setAttribute("aria-pressed", String(Boolean(this.frame && this.isPicked(this.frame))));
  }

  use(tool) {
    const chosen = this.stage.tool === tool ? null : tool;
    this.stage.use(chosen);
    for (const button of this.dialog.querySelectorAll("[data-tool]")) button.setAttribute("aria-pressed", String(button.dataset.tool === chosen));
    const notes = { segment: "Click an object · Shift-click what is not it", box: "Drag a box around what to look for" };
    this.note(notes[chosen]);
    if (chosen === "segment") this.prepare(notes.segment);
  }

  // Encoding begins with the tool, not with the first click, which then is answered at once.
  async prepare(words) {
    const { frame } = this;
    this.video.video.pause();
    this.note("Preparing the picture …");
    try {
      this.session ??= this.openSession();
      if (this.canTrack && frame.media_type === "video") await this.video.session_();
      await this.session;
      if (this.frame === frame && this.stage.tool === "segment" && !this.points.length) this.note(words);
    } catch (error) {
      this.forget();
      toast(error.message);
    }
  }

  note(text) {
    $("stage-note").hidden = !text;
    $("stage-note").textContent = text ?? "";
  }

  // The moment in view of a video: stored stills stand in where it can't be played.
  moment(seconds, tracks) {
    if (!this.frame) return;
    if (!this.video.playable && this.video.asset) {
      const still = this.video.stillAt(seconds), url = still && frameUrl(still.frame_id);
      if (still && !$("still").src.endsWith(url)) $("still").src = url;
    }
    if (this.points.length && !this.video.same(seconds, this.clickedAt)) this.forget();
    this.offer();
    const own = this.video.same(seconds, this.frame.pts_s) ? this.detections ?? [] : [];
    const others = tracks.filter((t) => !own.some((d) => same(d.box, t.box)));
    this.stage.boxes = [...own, ...others.map((t) => ({ box: t.box, label: t.label, colour: colourOf(t.id) }))];
    if (!own.length && !this.points.length && !this.video.results.size) this.stage.masks = [];
    this.stage.draw();
  }

  async click(point) {
    this.points = [...this.points, point];
    this.clickedAt = this.video.now;
    this.stage.points = this.points;
    this.stage.draw();
    const { frame, points } = this;
    try {
      this.session ??= this.openSession();
      const { session } = await this.session;
      const body = { points: points.map((p) => [p.x, p.y]), labels: points.map((p) => Number(p.on)), multimask: points.length === 1 };
      const { candidates } = await call(`segment/sessions/${session}`, { method: "POST", body });
      if (this.frame !== frame || this.points !== points) return;
      this.asked = body;
      this.offer();
      this.stage.masks = [{ mask: candidates[0].mask, colour: objectColour(1) }];
      this.note(`${candidates[0].area.toLocaleString()} pixels · score ${candidates[0].score.toFixed(2)} · Shift-click what is not it`);
      this.stage.draw();
      if (this.canTrack && frame.media_type === "video") await this.video.prompt(points);
    } catch (error) {
      this.forget();
      toast(error.message);
    }
  }

  // What was clicked, or followed from there, becomes an annotation of the lake.
  async store() {
    const { frame } = this, author = $("store-author").value.trim(), label = $("store-label").value.trim() || undefined;
    try {
      if (this.video.results.size) {
        toast(`Stored on ${await this.video.store(author, label)} frames`);
      } else {
        const { session } = await this.session;
        await call(`segment/sessions/${session}`, { method: "POST", body: { ...this.asked, store: { author, label } } });
        toast("Stored in the lake's annotations");
      }
      localStorage.setItem("author", author);
      const { annotations, detections, tracks } = await call(`frames/${encodeURIComponent(frame.frame_id)}/details`);
      if (this.frame !== frame) return;
      this.objects(detections.map(detectionBox), tracks, annotations);
      if (this.video.asset) this.video.moment(this.video.now);  // another frame may be in view
    } catch (error) {
      toast(error.message);
    }
  }

  // The picture in view: the stored frame, or the very frame at which a video stands.
  async openSession() {
    const { video, frame } = this, { video: element_ } = video;
    if (!video.playable || video.same(video.now, frame.pts_s)) {
      return call("segment/sessions", { method: "POST", body: { frame_id: frame.frame_id } });
    }
    const canvas = document.createElement("canvas");
    canvas.width = frame.width;
    canvas.height = frame.height;
    canvas.getContext("2d").drawImage(element_, 0, 0, frame.width, frame.height);
    const image = canvas.toDataURL("image/jpeg", 0.95).split(",")[1];
    return call("segment/sessions", { method: "POST", body: { image } });
  }

  box(box) {
    this.like({ frame_id: this.frame.frame_id, box }, "this box");
  }

  like(query, words) {
    const thumbnail = this.frame.thumbnail ?? frameUrl(this.frame.frame_id, true);
    this.dialog.close();
    this.search(query, { words, thumbnail });
  }

  async detect() {
    const prompts = $("prompts").value.split(",").map((p) => p.trim()).filter(Boolean);
    if (!prompts.length) return $("prompts").focus();
    this.note("Looking …");
    try {
      const { detections } = await call("detect", { method: "POST", body: { frame_id: this.frame.frame_id, prompts, limit: 1000 } });
      this.objects(detections.map(detectionBox));
      this.note(detections.length ? null : `Nothing found for ${prompts.join(", ")}`);
    } catch (error) {
      this.note(null);
      toast(error.message);
    }
  }

  key(event) {
    if (["INPUT", "SELECT"].includes(event.target.tagName)) return;
    const press = { s: () => this.use("segment"), b: () => this.use("box"), n: () => $("similar").click(), x: () => $("select-frame").click(), t: () => !$("track").hidden && this.video.follow(), k: () => !$("timeline").hidden && this.video.play(), arrowleft: () => this.turn(-1), arrowright: () => this.turn(1) }[event.key.toLowerCase()];
    if (!press || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    press();
  }
}

// The page: what is searched for, which frames are shown, which are marked. The parts draw; this file decides.
import { base64, call, frameUrl, toast } from "./api.js";
import { Grid } from "./grid.js";
import { EmbeddingMap } from "./map.js";
import { Viewer } from "./viewer.js";

const $ = (id) => document.getElementById(id);
const PAGE = 200;
const state = { query: null, kind: "", hits: [], next: 0, total: null, picked: new Map(), turn: 0, loading: false, opened: -1 };

const isPicked = (hit) => state.picked.has(hit.frame_id ?? hit);
const grid = new Grid($("grid"), { open: (index) => open(index), pick, more, isPicked });
const map = new EmbeddingMap($("map"), { open: (id) => viewer.open({ frame_id: id, asset_id: id.slice(0, id.lastIndexOf(":")) }), caught, isPicked });
const viewer = new Viewer({
  turn: (step) => state.hits[state.opened + step] && open(state.opened + step),
  search: (query, chip) => find(query, chip),
  pick, isPicked,
  // The event comes late: who types already keeps the focus.
  closed: () => state.opened >= 0 && document.activeElement !== $("text") && grid.focusOn(state.opened),
});

// -- searching --------------------------------------------------------------------------------------------------------

function filter() {
  const parts = [];
  if (state.kind) parts.push(`media_type = '${state.kind}'`);
  if ($("where").value.trim()) parts.push(`(${$("where").value.trim()})`);
  return parts.join(" AND ") || undefined;
}

function find(query, chip) {
  state.query = query;
  showChip(chip);
  if (!query?.text) $("text").value = "";
  $("text").placeholder = query ? "" : "Search by words, or drop a picture";
  show("grid");
  return restart();
}

async function restart() {
  Object.assign(state, { hits: [], next: 0, total: null, capped: false, opened: -1, turn: state.turn + 1, loading: false });
  grid.set([]);
  $("empty").hidden = true;
  await more();
}

async function more() {
  if (state.next === null || state.loading) return;
  state.loading = true;
  const { turn } = state;
  try {
    const page = await fetchPage();
    if (turn !== state.turn) return;
    state.hits = state.hits.concat(page.hits);
    state.next = page.next_offset;
    state.total = page.total ?? state.total;
    state.capped = page.capped;
    $("where").classList.remove("wrong");
    grid.set(state.hits, true);
  } catch (error) {
    if (turn !== state.turn) return;
    state.next = null;
    $("where").classList.toggle("wrong", /filter/.test(error.message));
    toast(error.message);
  } finally {
    if (turn === state.turn) state.loading = false;
  }
  if (turn === state.turn) count();
}

function fetchPage() {
  const where = filter();
  if (state.query) {
    const model = state.query.text ? undefined : $("model").value || undefined;
    return call("search", { method: "POST", body: { ...state.query, where, model, limit: PAGE, offset: state.next } });
  }
  const query = new URLSearchParams({ limit: PAGE, offset: state.next, ...(where && { where }) });
  return call(`frames?${query}`);
}

function count() {
  const n = state.hits.length, many = (count) => `${count.toLocaleString()} ${state.query ? "results" : "frames"}`;
  const more_ = state.next !== null ? "+" : "";
  $("count").textContent = state.capped ? `the nearest ${many(n)}` : state.total !== null ? many(state.total) : many(n).replace(" ", `${more_} `);
  $("empty").hidden = n > 0;
  $("empty").textContent = state.query || filter() ? "Nothing matches. Try other words, or a wider filter." : "This lake has no frames yet. Run vfm process, and reload.";
}

function showChip(chip) {
  $("chip").hidden = !chip;
  if (!chip) return;
  const image = new Image();
  image.src = chip.thumbnail;
  image.alt = "";
  const clear = document.createElement("button");
  clear.type = "button";
  clear.textContent = "×";
  clear.setAttribute("aria-label", "Clear");
  clear.onclick = () => find(null);
  $("chip").replaceChildren(image, chip.words, clear);
}

async function searchPicture(file) {
  if (!file) return;
  if (!file.type.startsWith("image/")) return toast(`${file.name} is not a picture.`);
  await find({ image: await base64(file) }, { words: file.name.slice(0, 18), thumbnail: URL.createObjectURL(file) });
}

// -- opening and marking ----------------------------------------------------------------------------------------------

function open(index) {
  state.opened = index;
  document.querySelector(".prev").disabled = !state.hits[index - 1];
  document.querySelector(".next").disabled = !state.hits[index + 1];
  if (index > state.hits.length - 20) more();
  return viewer.open(state.hits[index]);
}

function pick(hit) {
  if (!state.picked.delete(hit.frame_id)) state.picked.set(hit.frame_id, hit);
  tray();
}

function caught(ids) {
  for (const id of ids) state.picked.set(id, { frame_id: id });
  tray();
  if (!ids.length) toast("No frame lies inside.");
}

function tray() {
  const ids = [...state.picked.keys()];
  $("tray").hidden = !ids.length;
  $("tray-count").textContent = `${ids.length.toLocaleString()} selected`;
  $("tray-thumbs").replaceChildren(...ids.slice(-5).map((id) => {
    const image = new Image();
    image.src = frameUrl(id, true);
    image.alt = "";
    return image;
  }));
  grid.mark();
  map.draw();
}

$("tray-clear").onclick = () => { state.picked.clear(); tray(); };
$("tray-form").onsubmit = async (event) => {
  event.preventDefault();
  try {
    const made = await call("selections", { method: "POST", body: { name: $("tray-name").value, frame_ids: [...state.picked.keys()] } });
    toast(`Saved ${made.frames.toLocaleString()} frames as ${made.name}.`);
    state.picked.clear();
    $("tray-name").value = "";
    tray();
  } catch (error) {
    toast(error.message);
  }
};

// -- controls ---------------------------------------------------------------------------------------------------------

function show(view) {
  for (const [name, panel] of [["grid", "results"], ["map", "map"]]) {
    $(panel).hidden = name !== view;
    $(`tab-${name}`).setAttribute("aria-selected", String(name === view));
  }
  if (view === "map") map.load($("model").value).catch((error) => toast(error.message));
  else grid.layout();
}

$("tab-grid").onclick = () => show("grid");
$("tab-map").onclick = () => show("map");
$("search").onsubmit = (event) => {
  event.preventDefault();
  const text = $("text").value.trim();
  find(text ? { text } : null);
};
$("home").onclick = (event) => { event.preventDefault(); $("where").value = ""; kind(""); find(null); };
$("pick").onclick = () => $("file").click();
$("file").onchange = () => { searchPicture($("file").files[0]); $("file").value = ""; };
$("where").onchange = restart;
$("model").onchange = () => ($("map").hidden ? restart() : show("map"));

function kind(chosen) {
  state.kind = chosen;
  for (const other of document.querySelectorAll("[data-kind]")) other.setAttribute("aria-pressed", String(other.dataset.kind === chosen));
}
for (const button of document.querySelectorAll("[data-kind]")) button.onclick = () => { kind(button.dataset.kind); restart(); };

let depth = 0;
addEventListener("dragenter", (event) => { event.preventDefault(); depth += 1; $("drop").hidden = false; });
addEventListener("dragleave", () => { depth -= 1; $("drop").hidden = depth > 0 ? false : true; });
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  depth = 0;
  $("drop").hidden = true;
  searchPicture(event.dataTransfer.files[0]);
});
addEventListener("paste", (event) => event.clipboardData?.files.length && searchPicture(event.clipboardData.files[0]));
addEventListener("keydown", (event) => {
  if (event.key === "/" && !["INPUT", "SELECT"].includes(document.activeElement.tagName) && !document.querySelector("dialog[open]")) {
    event.preventDefault();
    $("text").focus();
  }
});

const dark = matchMedia("(prefers-color-scheme: dark)");
function theme(chosen) {
  document.documentElement.dataset.theme = chosen ?? localStorage.getItem("theme") ?? (dark.matches ? "dark" : "light");
  map.draw();
}
$("theme").onclick = () => {
  const other = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  localStorage.setItem("theme", other);
  theme(other);
};
dark.addEventListener("change", () => theme());
theme();

async function begin() {
  try {
    const [lake, models] = await Promise.all([call("lake"), call("models")]);
    $("columns").replaceChildren(...[...lake.filters.frames, ...lake.filters.assets].map((name) => new Option(name)));
    const columns = models.embed.filter((m) => m.column);
    $("model").replaceChildren(...columns.map((m) => new Option(m.model.split("/").pop(), m.model)));
    document.querySelector(".model").hidden = columns.length < 2;
    $("detect-form").hidden = !models.detect.length;
    document.querySelector('[data-tool="segment"]').hidden = !models.segment;
    viewer.canTrack = Boolean(models.track);
    viewer.canStore = lake.writable;
    document.documentElement.dataset.ready = "true";
  } catch (error) {
    toast(error.message);
  }
  await restart();
}
begin();

"use strict";
// Everything on the page is built from the JSON in #data. Text only ever enters as text, never as markup.
const D = JSON.parse(document.getElementById("data").textContent);
const main = document.getElementById("main"), tip = document.getElementById("tip"), nav = document.getElementById("nav");
const HUES = ["#4269d0","#e08a2e","#2f9e6e","#d2495b","#8a63c9","#18a0b8","#b5762a","#d9669f","#6f8f2d","#5d7fa3","#c24fc2","#3c8f5a","#9a6b4f","#7479d8","#cf6a3d","#4a9c9c"];
const SVG = "http://www.w3.org/2000/svg";
const num = n => Number(n).toLocaleString("en-US");
const words = s => String(s).replaceAll("_", " ");

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children.filter(c => c !== null && c !== undefined).map(c => c instanceof Node ? c : String(c)));
  return node;
}
function svg(tag, attributes, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}
function section(id, title, about, ...children) {
  nav.append(el("a", { href: "#" + id }, title));
  const node = el("section", { id }, el("h2", {}, title), el("p", {}, about), ...children);
  main.append(node);
  return node;
}
function thumb(number, title, kind = "") {
  const url = number >= 0 && D.thumbs ? D.thumbs[number] : null;
  const node = url ? el("img", { src: url, alt: title, decoding: "async", class: kind }) : el("span", { class: "none " + kind, title });
  node.addEventListener("pointerenter", e => showTip(e.clientX, e.clientY, url, title, ""));
  node.addEventListener("pointerleave", hideTip);
  return node;
}
function showTip(x, y, url, title, note) {
  tip.replaceChildren(...[url ? el("img", { src: url, alt: "", width: "176" }) : null, el("span", {}, title), note ? el("em", {}, note) : null].filter(Boolean));
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  tip.style.left = Math.max(8, Math.min(x + 16, innerWidth - box.width - 8)) + "px";
  tip.style.top = Math.max(8, Math.min(y + 16, innerHeight - box.height - 8)) + "px";
}
function hideTip() { tip.hidden = true; }
function bar(label, value, most, kind, note) {
  const fill = el("div", { class: "fill " + kind });
  fill.style.width = 100 * value / Math.max(1, most) + "%";
  return el("div", { class: "row", title: note || "" }, el("span", {}, label), el("div", { class: "track" }, fill), el("span", { class: "n" }, num(value)));
}

function opening() {
  const m = D.manifest;
  document.getElementById("brand").textContent = D.lake.split("/").filter(Boolean).pop() || D.lake;
  main.append(el("h1", {}, m ? "Selection " + m.selection : "Lake " + D.lake.split("/").pop()));
  const about = m && m.mode === "by hand" ? "Picked by hand. " : m ? `Generation ${m.generation} (${m.mode}), from frames version ${m.versions.frames}, embeddings of ${m.model.spec}, seed ${m.seed}. ` : "";
  main.append(el("p", {}, about + D.lake + " · " + D.made));
  const figures = D.counts.filter(c => c.rows).map(c => el("div", { class: "figure" }, el("b", {}, num(c.rows)), el("span", {}, c.table)));
  if (m) figures.push(el("div", { class: "figure hero" }, el("b", {}, num(m.kept)), el("span", {}, `kept, ${(100 * m.share).toFixed(1)} % of ${num(m.items)}`)));
  main.append(el("div", { class: "figures" }, ...figures));
}

function funnel() {
  const m = D.manifest;
  if (!m) return;
  const most = Math.max(...m.funnel.map(f => f[1]), 1);
  const steps = m.funnel.filter((f, i) => i === 0 || i === m.funnel.length - 1 || f[1] !== m.funnel[i - 1][1]);
  const kept = new Set(["balanced", "representative", "retrieved", "seed_class", "seed_cluster", "passed"]);
  const reasons = Object.entries(m.tally).sort((a, b) => b[1] - a[1]);
  const top = Math.max(...reasons.map(r => r[1]), 1);
  const changes = Object.entries(m.changes);
  section("funnel", "Funnel", "What each step left over, and the reason that every item got in the end." + (m.mode === "incremental" ? " The steps are those of the newest run, over new items; the reasons are of all." : ""),
    el("div", { class: "two" },
      el("div", {}, el("h3", {}, "Items left after each step"), ...steps.map(f => bar(f[0], f[1], most, ""))),
      el("div", {}, el("h3", {}, "Items by reason"), ...reasons.map(r => bar(words(r[0]), r[1], top, kept.has(r[0]) ? "kept" : "drop")))),
    changes.length ? el("p", { style: "margin:12px 0 0" }, "Since the generation before: " + changes.map(c => num(c[1]) + " " + words(c[0])).join(", ") + ".") : null,
    el("details", {}, el("summary", {}, "Recipe and lineage"), el("pre", {}, m.recipe_yaml + "\n" + JSON.stringify({ key: m.key, recipe: m.recipe, versions: m.versions, tag: m.tag, model: m.model, sets: m.sets, code: m.code_version }, null, 1))));
}

function embeddingMap() {
  const M = D.map;
  if (!M || !M.x) return;
  const canvas = el("canvas", { tabindex: "0", role: "img", "aria-label": "Map of the embeddings; drag to move, scroll or press + and - to zoom" });
  const legend = el("div", { class: "legend" }), tools = el("div", { class: "tools" });
  const n = M.x.length, view = { x: 0, y: 0, scale: 1 }, shown = { mode: M.kept ? "decision" : "cluster", only: "all" };
  let hot = -1;
  const choices = [["cluster", "Cluster"]].concat(M.kept ? [["decision", "Kept and dropped"], ["reason", "Reason"]] : []);
  const buttons = choices.map(([mode, text]) => [mode, el("button", { type: "button" }, text)]);
  buttons.forEach(([mode, b]) => { b.addEventListener("click", () => { shown.mode = mode; refresh(); }); tools.append(b); });
  tools.append(el("span", { class: "gap" }));
  const filters = (M.kept ? ["all", "kept", "dropped"] : []).map(only => [only, el("button", { type: "button" }, only)]);
  filters.forEach(([only, b]) => { b.addEventListener("click", () => { shown.only = only; refresh(); }); tools.append(b); });
  const reset = el("button", { type: "button" }, "Reset view");
  reset.addEventListener("click", () => { Object.assign(view, { x: 0, y: 0, scale: 1 }); draw(); });
  tools.append(reset);
  const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const visible = i => !M.kept || shown.only === "all" || (shown.only === "kept") === (M.kept[i] === 1);
  function colour(i) {
    if (shown.mode === "cluster") return M.cluster[i] < 0 ? css("--soft") : HUES[M.cluster[i] % HUES.length];
    if (shown.mode === "reason") return M.kind[i] < 0 ? css("--soft") : HUES[M.kind[i] % HUES.length];
    return M.kept[i] ? css("--kept") : css("--drop");
  }
  const size = () => [canvas.clientWidth, canvas.clientHeight];
  function place(i) {
    const [w, h] = size(), r = 0.47 * Math.min(w * 0.75, h) * view.scale;
    return [w / 2 + (M.x[i] + view.x) * r * 1.3, h / 2 + (M.y[i] + view.y) * r];
  }
  let colours = [];
  function draw() {
    const [w, h] = size(), ratio = devicePixelRatio || 1, context = canvas.getContext("2d");
    if (canvas.width !== Math.round(w * ratio)) { canvas.width = Math.round(w * ratio); canvas.height = Math.round(h * ratio); }
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, w, h);
    const radius = Math.min(9, (n > 2000 ? 2.4 : n > 400 ? 3.2 : 5) * Math.sqrt(view.scale));
    const big = view.scale > 5 && D.thumbs;
    for (const pass of [0, 1]) for (let i = 0; i < n; i++) {
      if (!visible(i) || (M.kept && M.kept[i] !== pass) || (!M.kept && pass)) continue;
      const [x, y] = place(i);
      if (x < -40 || y < -40 || x > w + 40 || y > h + 40) continue;
      context.globalAlpha = pass || !M.kept || shown.mode === "reason" ? 0.85 : 0.5;
      if (big && M.thumb[i] >= 0 && picture(M.thumb[i])) {
        const image = picture(M.thumb[i]), s = Math.min(84, Math.max(26, 4.5 * view.scale)), k = s / Math.max(image.width, image.height);
        context.globalAlpha = 1;
        context.drawImage(image, x - image.width * k / 2, y - image.height * k / 2, image.width * k, image.height * k);
        context.strokeStyle = colours[i]; context.lineWidth = 2;
        context.strokeRect(x - image.width * k / 2, y - image.height * k / 2, image.width * k, image.height * k);
        continue;
      }
      context.fillStyle = colours[i];
      context.beginPath(); context.arc(x, y, radius, 0, 7); context.fill();
    }
    context.globalAlpha = 1;
    if (hot >= 0) { const [x, y] = place(hot); context.strokeStyle = css("--ink"); context.lineWidth = 2; context.beginPath(); context.arc(x, y, radius + 3, 0, 7); context.stroke(); }
  }
  const pictures = new Map();
  function picture(number) {
    let image = pictures.get(number);
    if (!image) { image = new Image(); image.onload = () => requestAnimationFrame(draw); image.src = D.thumbs[number]; pictures.set(number, image); }
    return image.complete && image.width ? image : null;
  }
  function refresh() {
    buttons.forEach(([mode, b]) => b.setAttribute("aria-pressed", mode === shown.mode));
    filters.forEach(([only, b]) => b.setAttribute("aria-pressed", only === shown.only));
    colours = Array.from({ length: n }, (_, i) => colour(i));
    const key = shown.mode === "decision" ? [["kept", css("--kept")], ["dropped", css("--drop")]]
      : shown.mode === "reason" ? M.kinds.map((k, i) => [words(k), HUES[i % HUES.length]])
      : [...new Set(M.cluster)].filter(c => c >= 0).sort((a, b) => a - b).slice(0, 60).map(c => ["cluster " + c, HUES[c % HUES.length]]);
    legend.replaceChildren(...key.map(([text, c]) => { const dot = el("i"); dot.style.background = c; return el("span", {}, dot, text); }));
    draw();
  }
  function zoom(factor, px, py) {
    const [w, h] = size(), before = 0.47 * Math.min(w * 0.75, h) * view.scale;
    const scale = Math.min(60, Math.max(0.6, view.scale * factor)), after = before * scale / view.scale;
    view.x += (px - w / 2) * (1 / after - 1 / before) / 1.3; view.y += (py - h / 2) * (1 / after - 1 / before); view.scale = scale;
    draw();
  }
  const held = new Map();
  canvas.addEventListener("wheel", e => { e.preventDefault(); const b = canvas.getBoundingClientRect(); zoom(Math.exp(-e.deltaY / 400), e.clientX - b.left, e.clientY - b.top); }, { passive: false });
  canvas.addEventListener("pointerdown", e => { canvas.setPointerCapture(e.pointerId); held.set(e.pointerId, [e.clientX, e.clientY]); hideTip(); });
  for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, e => held.delete(e.pointerId));
  canvas.addEventListener("pointermove", e => {
    const b = canvas.getBoundingClientRect(), before = held.get(e.pointerId);
    if (!before) return hover(e.clientX, e.clientY, b);
    if (held.size === 1) {
      const [w, h] = size(), r = 0.47 * Math.min(w * 0.75, h) * view.scale;
      view.x += (e.clientX - before[0]) / (1.3 * r); view.y += (e.clientY - before[1]) / r;
      draw();
    } else {
      const other = [...held.entries()].find(([id]) => id !== e.pointerId)[1];
      const spread = p => Math.hypot(p[0] - other[0], p[1] - other[1]);
      zoom(spread([e.clientX, e.clientY]) / Math.max(1, spread(before)), (e.clientX + other[0]) / 2 - b.left, (e.clientY + other[1]) / 2 - b.top);
    }
    held.set(e.pointerId, [e.clientX, e.clientY]);
  });
  function hover(cx, cy, box) {
    let best = -1, least = 196;
    for (let i = 0; i < n; i++) {
      if (!visible(i)) continue;
      const [x, y] = place(i), d = (x - cx + box.left) ** 2 + (y - cy + box.top) ** 2;
      if (d < least) { least = d; best = i; }
    }
    if (best !== hot) { hot = best; draw(); }
    if (best < 0) return hideTip();
    const note = [M.cluster[best] >= 0 ? "cluster " + M.cluster[best] : "", M.reason ? M.reason[best] : ""].filter(Boolean).join(" · ");
    showTip(cx, cy, M.thumb[best] >= 0 ? D.thumbs[M.thumb[best]] : null, M.name[best], note);
  }
  canvas.addEventListener("pointerleave", () => { hot = -1; hideTip(); draw(); });
  canvas.addEventListener("keydown", e => {
    const [w, h] = size(), step = 0.12 / view.scale, moves = { ArrowLeft: [step, 0], ArrowRight: [-step, 0], ArrowUp: [0, step], ArrowDown: [0, -step] };
    if (e.key === "+" || e.key === "=") zoom(1.3, w / 2, h / 2); else if (e.key === "-") zoom(1 / 1.3, w / 2, h / 2);
    else if (moves[e.key]) { view.x += moves[e.key][0]; view.y += moves[e.key][1]; draw(); } else return;
    e.preventDefault();
  });
  const sampled = n < M.of ? `${num(n)} of ${num(M.of)} items, sampled` : `${num(n)} items`;
  section("map", "Map", `Near points look alike to ${M.model}: ${sampled}. Drag to move, scroll to zoom; pictures appear from close by.`, tools, el("div", { class: "stage" }, canvas), legend);
  new ResizeObserver(draw).observe(canvas);
  document.addEventListener("theme", refresh);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", refresh);
  refresh();
}

function clusters() {
  if (!D.clusters || !D.clusters.length) return;
  section("clusters", "Clusters", "The largest coarse clusters: kept items in full colour, dropped ones faded.", el("div", { class: "grid" }, ...D.clusters.map(c => {
    const share = el("i");
    share.style.width = 100 * c.kept / c.size + "%";
    return el("div", { class: "card" }, el("header", {}, el("b", {}, "Cluster " + c.cluster), el("span", {}, `${num(c.kept)} of ${num(c.size)} kept` + (c.finer > 1 ? `, ${num(c.finer)} finer` : ""))),
      el("div", { class: "meter" }, share),
      el("div", { class: "thumbs" }, ...c.thumbs.map((t, i) => thumb(t, c.shown[i] ? "kept" : "dropped", c.shown[i] ? "" : "out"))));
  })));
}
function duplicates() {
  if (!D.duplicates || !D.duplicates.length) return;
  section("duplicates", "Duplicates", "What stayed (framed) beside what was dropped for it. Point at a picture for its reason.", el("div", { class: "grid" }, ...D.duplicates.map(g =>
    el("div", { class: "card" }, el("header", {}, el("b", {}, words(g.kind)), el("span", {}, num(g.count) + " dropped")),
      el("div", { class: "thumbs" }, ...g.thumbs.map((t, i) => thumb(t, g.names[i] + " — " + g.reasons[i], i < g.led ? "lead" : "")))))));
}
function timelines() {
  if (!D.timelines || !D.timelines.length) return;
  const clock = s => Math.floor(s / 60) + ":" + String(Math.round(s % 60)).padStart(2, "0");
  section("shots", "Shots", "Videos with the most shots. Each block is a shot; ticks are sampled frames" + (D.manifest ? ", tall where they were kept." : "."), ...D.timelines.map(v => {
    const end = Math.max(...v.shots.map(s => s[1]), 0.1), x = t => 1000 * t / end;
    const blocks = v.shots.map((s, i) => svg("rect", { x: x(s[0]), y: 0, width: Math.max(1, x(s[1]) - x(s[0]) - 1.5), height: 22, rx: 3, fill: HUES[i % HUES.length], opacity: 0.75 }, svg("title", {}, `shot ${i + 1}: ${clock(s[0])} to ${clock(s[1])}`)));
    const ticks = v.frames.map((t, i) => svg("line", { x1: x(t), x2: x(t), y1: 27, y2: v.kept && !v.kept[i] ? 31 : 37, stroke: v.kept && v.kept[i] ? "var(--kept)" : "var(--soft)", "stroke-width": 1.5 }));
    return el("div", { class: "time" }, el("header", {}, el("b", {}, v.name), el("span", {}, `${num(v.shots.length)} shots, ${clock(end)}`)),
      svg("svg", { viewBox: "0 0 1000 38", preserveAspectRatio: "none", height: "38", role: "img", "aria-label": `${v.shots.length} shots of ${v.name}` }, ...blocks, ...ticks),
      el("div", { class: "thumbs" }, ...v.faces.map((t, i) => thumb(t, `shot ${i + 1}`))));
  }));
}
function quality() {
  if (!D.quality || !D.quality.length) return;
  section("quality", "Quality", "How the frames measure" + (D.manifest ? "; the kept ones in front, in green." : ".") + " The outermost bins hold all beyond them.", el("div", { class: "charts" }, ...D.quality.map(q => {
    const most = Math.max(...q.all, 1), w = 320 / q.all.length;
    const bars = (counts, fill, opacity) => counts.map((c, i) => svg("rect", { x: i * w, y: 100 - 100 * c / most, width: w - 1, height: 100 * c / most, fill, opacity }));
    return el("div", {}, el("h3", {}, q.measure), svg("svg", { viewBox: "0 0 320 100", preserveAspectRatio: "none", role: "img", "aria-label": "histogram of " + q.measure }, ...bars(q.all, "var(--soft)", 0.4), ...(q.kept ? bars(q.kept, "var(--kept)", 0.95) : [])),
      el("div", { class: "axis" }, el("span", {}, num(Number(q.low.toPrecision(3)))), el("span", {}, q.measure === "sharpness" ? "logarithmic" : ""), el("span", {}, num(Number(q.high.toPrecision(3))))));
  })));
}
function listing(heads, rows) {
  return el("div", { class: "scroll" }, el("table", {}, el("thead", {}, el("tr", {}, ...heads.map(h => el("th", { class: h[1] || "" }, h[0])))),
    el("tbody", {}, ...rows.map(r => el("tr", {}, ...r.map((c, i) => el("td", { class: heads[i][1] || "" }, c)))))));
}
function quarantine() {
  if (!D.quarantine.length) return;
  section("quarantine", "Quarantine", "Items that failed, by cause. vfm retry runs them again.", listing([["items", "n"], ["stage"], ["error"], ["for example", "wide"], ["frames saved", "n"]],
    D.quarantine.map(q => [num(q.count), q.stage, words(q.error), q.message || q.uri, num(q.salvaged)])));
}
function runs() {
  if (!D.runs.length) return;
  section("runs", "Runs", "The newest first. Efficiency is the rate over that of a bare decode-and-model loop on the same machine.", listing([["started"], ["command"], ["seconds", "n"], ["efficiency", "n"], ["counts", "wide"]],
    D.runs.map(r => [r.started, r.command, r.seconds.toFixed(1), r.efficiency === null ? "" : Math.round(100 * r.efficiency) + " %", Object.entries(r.counts).map(c => words(c[0]) + " " + num(c[1])).join(", ")])));
}

document.getElementById("theme").addEventListener("click", () => {
  const root = document.documentElement, dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  document.dispatchEvent(new Event("theme"));
});
opening(); funnel(); embeddingMap(); clusters(); duplicates(); timelines(); quality(); quarantine(); runs();

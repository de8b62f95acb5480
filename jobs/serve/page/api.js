// The server's endpoints, as functions. A problem+json answer becomes an Error whose message is its one sentence.

export async function call(path, { method = "GET", body, signal } = {}) {
  const headers = body === undefined ? {} : { "Content-Type": "application/json" };
  const response = await fetch(`/v1/${path}`, {
    method, headers, signal, body: body === undefined ? undefined : JSON.stringify(body),
  });
  if (response.status === 401) {
    await askToken();
    return call(path, { method, body, signal });
  }
  if (!response.ok) throw await problem(response);
  return response.status === 204 ? null : response.json();
}

async function problem(response) {
  const document = await response.json().catch(() => ({}));
  const error = new Error(document.detail || document.title || `The server answered ${response.status}.`);
  error.status = response.status;
  return error;
}

// Results of a tracking session, one object a frame, as they come.
export async function* lines(path, signal) {
  const response = await fetch(`/v1/${path}`, { signal });
  if (!response.ok) throw await problem(response);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    const parts = (rest + value).split("\n");
    rest = parts.pop();
    for (const part of parts) {
      const result = JSON.parse(part);
      if (result.error) throw new Error(result.error.detail);
      yield result;
    }
  }
}

// Pictures can't carry a header, so the token travels as a cookie that other sites' pages never send.
function askToken() {
  const dialog = document.getElementById("token");
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      const value = encodeURIComponent(document.getElementById("token-text").value);
      document.cookie = `vfm_token=${value}; path=/; SameSite=Strict`;
      resolve();
    }, { once: true });
    if (!dialog.open) dialog.showModal();
  });
}

export function frameUrl(id, thumbnail = false) {
  return `/v1/frames/${encodeURIComponent(id)}${thumbnail ? "?size=thumbnail" : ""}`;
}

export async function base64(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  let text = "";
  for (let i = 0; i < bytes.length; i += 32768) text += String.fromCharCode(...bytes.subarray(i, i + 32768));
  return btoa(text);
}

export function clock(seconds) {
  return `${Math.floor(seconds / 60)}:${(seconds % 60).toFixed(1).padStart(4, "0")}`;
}

let timer;
export function toast(text) {
  const box = document.getElementById("toast");
  // A modal dialog hides all that lies outside of it.
  (document.querySelector("dialog[open]") || document.body).append(box);
  box.textContent = text;
  box.hidden = false;
  clearTimeout(timer);
  timer = setTimeout(() => { box.hidden = true; }, 5000);
}

// COCO run-length masks, drawn. Runs go down the columns; counts are LEB128-like text, deltas from the third on.

export const COLOURS = ["#ffd43b", "#4dabf7", "#ff6b6b", "#69db7c", "#da77f2", "#ffa94d", "#38d9a9", "#f783ac"];

export function runs(counts) {
  const out = [];
  for (let i = 0; i < counts.length;) {
    let value = 0, shift = 0, more = true, byte = 0;
    while (more) {
      byte = counts.charCodeAt(i++) - 48;
      value |= (byte & 31) << shift;
      shift += 5;
      more = (byte & 32) !== 0;
    }
    if (byte & 16) value |= -1 << shift;
    out.push(out.length > 2 ? value + out[out.length - 2] : value);
  }
  return out;
}

const drawn = new WeakMap();

// The mask as a canvas of its own size, tinted, with an opaque rim.
export function maskCanvas(mask, colour) {
  const known = drawn.get(mask);
  if (known && known.colour === colour) return known.canvas;
  const [height, width] = mask.size;
  const set = new Uint8Array(height * width);
  let at = 0, on = false;
  for (const run of runs(mask.counts)) {
    if (on) set.fill(1, at, at + run);
    at += run;
    on = !on;
  }
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  const [r, g, b] = [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));
  for (let x = 0; x < width; x++) {
    for (let y = 0; y < height; y++) {
      const i = x * height + y;
      if (!set[i]) continue;
      const rim = !x || !y || x === width - 1 || y === height - 1 || !set[i - 1] || !set[i + 1] || !set[i - height] || !set[i + height];
      image.data.set([r, g, b, rim ? 255 : 110], (y * width + x) * 4);
    }
  }
  context.putImageData(image, 0, 0);
  drawn.set(mask, { canvas, colour });
  return canvas;
}

export function colourOf(key) {
  let hash = 0;
  for (const letter of String(key)) hash = (hash * 31 + letter.charCodeAt(0)) >>> 0;
  return COLOURS[hash % COLOURS.length];
}

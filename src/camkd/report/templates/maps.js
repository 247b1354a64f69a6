"use strict";
// From the 8-bit maps in the page to colours: map = scale (level - 128) / 127, as camkd.gallery writes them.

const album = JSON.parse(document.getElementById("album").textContent);
const FINE = 48; // cells a side of an enlarged map

/** The map of one class in an answer, as numbers, or null where that class's map was not kept. */
function mapOf(answer, shown) {
  const place = answer.shown.indexOf(shown);
  if (place < 0) return null;
  answer.levels ??= Uint8Array.from(atob(answer.maps), (letter) => letter.charCodeAt(0));
  const [height, width] = answer.grid;
  const levels = answer.levels.subarray(place * height * width, (place + 1) * height * width);
  return { height, width, values: Float32Array.from(levels, (level) => (answer.scales[place] * (level - 128)) / 127) };
}

/** Evidence for the class: cut at zero, as a share of its maximum, enlarged to FINE x FINE; null stays null. */
function evidence(map) {
  if (!map) return null;
  const peak = Math.max(0, ...map.values);
  return enlarged({ ...map, values: map.values.map((value) => (peak > 0 ? Math.max(0, value) / peak : 0)) });
}

/** Bilinear, cells as areas. */
function enlarged({ height, width, values }) {
  const fine = new Float32Array(FINE * FINE);
  for (let y = 0; y < FINE; y++) {
    const [top, bottom, down] = between(y, height);
    for (let x = 0; x < FINE; x++) {
      const [left, right, across] = between(x, width);
      const above = values[top * width + left] * (1 - across) + values[top * width + right] * across;
      const below = values[bottom * width + left] * (1 - across) + values[bottom * width + right] * across;
      fine[y * FINE + x] = above * (1 - down) + below * down;
    }
  }
  return fine;
}

/** The two cells of a side that the place lies between, and how far it is from the first to the second. */
function between(place, cells) {
  const at = Math.min(Math.max(((place + 0.5) * cells) / FINE - 0.5, 0), cells - 1);
  const first = Math.min(Math.floor(at), Math.max(0, cells - 2));
  return [first, Math.min(first + 1, cells - 1), at - first];
}

const ramps = Object.fromEntries(
  Object.entries(album.ramps).map(([name, colours]) => [
    name,
    colours.map((colour) => [1, 3, 5].map((start) => parseInt(colour.slice(start, start + 2), 16))),
  ]),
);

/** Paint shares from 0 to 1 in the colours of a ramp. */
function paint(canvas, shares, ramp) {
  canvas.width = canvas.height = FINE;
  const pixels = new ImageData(FINE, FINE);
  shares.forEach((share, place) => {
    const at = Math.min(Math.max(share, 0), 1) * (ramp.length - 1);
    const first = Math.min(Math.floor(at), ramp.length - 2);
    for (let part = 0; part < 3; part++) {
      const [from, to] = [ramp[first][part], ramp[first + 1][part]];
      pixels.data[4 * place + part] = Math.round(from + (to - from) * (at - first));
    }
    pixels.data[4 * place + 3] = 255;
  });
  canvas.getContext("2d").putImageData(pixels, 0, 0);
}

"use strict";
// Decode the 8-bit maps of the page and draw them: map = scale * (level - 128) / 127, as written by `camkd.report.gallery`.

const gallery = JSON.parse(document.getElementById("gallery-data").textContent);
const DRAWN_SIDE = 48; // cells per side of a drawn map

/** Return the map of one class as numbers, or null if the map of the class is not stored. */
function mapOf(prediction, classId) {
  const index = prediction.class_ids.indexOf(classId);
  if (index < 0) return null;
  prediction.levels ??= Uint8Array.from(atob(prediction.maps), (character) => character.charCodeAt(0));
  const [height, width] = prediction.grid;
  const levels = prediction.levels.subarray(index * height * width, (index + 1) * height * width);
  return { height, width, values: Float32Array.from(levels, (level) => (prediction.scales[index] * (level - 128)) / 127) };
}

/** Return the map of a class minus the map of another class; null if a map is not stored. */
function contrastMap(prediction, classId, otherId) {
  const map = mapOf(prediction, classId);
  const other = mapOf(prediction, otherId);
  return map && other && { ...map, values: map.values.map((value, index) => value - other.values[index]) };
}

/** Return the positive part of a map, divided by its maximum and resized to DRAWN_SIDE x DRAWN_SIDE; null stays null. */
function evidence(map) {
  if (!map) return null;
  const peak = Math.max(0, ...map.values);
  return resize({ ...map, values: map.values.map((value) => (peak > 0 ? Math.max(0, value) / peak : 0)) });
}

/** Resize bilinearly, with cells as areas (align_corners=False). */
function resize({ height, width, values }) {
  const resized = new Float32Array(DRAWN_SIDE * DRAWN_SIDE);
  for (let y = 0; y < DRAWN_SIDE; y++) {
    const [top, bottom, down] = neighborCells(y, height);
    for (let x = 0; x < DRAWN_SIDE; x++) {
      const [left, right, across] = neighborCells(x, width);
      const above = values[top * width + left] * (1 - across) + values[top * width + right] * across;
      const below = values[bottom * width + left] * (1 - across) + values[bottom * width + right] * across;
      resized[y * DRAWN_SIDE + x] = above * (1 - down) + below * down;
    }
  }
  return resized;
}

/** Return the two cells around a drawn position, and the distance of the position from the first cell, in cells. */
function neighborCells(position, cells) {
  const center = Math.min(Math.max(((position + 0.5) * cells) / DRAWN_SIDE - 0.5, 0), cells - 1);
  const first = Math.min(Math.floor(center), Math.max(0, cells - 2));
  return [first, Math.min(first + 1, cells - 1), center - first];
}

/** Draw values from 0 to 1 in the colors of a colormap. The opacity grows with the evidence, as on the exported page. */
function drawMap(canvas, values, name) {
  const colors = gallery.colormaps[name];
  canvas.width = canvas.height = DRAWN_SIDE;
  const pixels = new ImageData(DRAWN_SIDE, DRAWN_SIDE);
  values.forEach((value, index) => {
    const share = Math.min(Math.max(value, 0), 1);
    pixels.data.set(colors[Math.round(255 * share)], 4 * index);
    pixels.data[4 * index + 3] = name === "evidence" ? 255 * (0.45 + 0.55 * share) : 255;
  });
  canvas.getContext("2d").putImageData(pixels, 0, 0);
}

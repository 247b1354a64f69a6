// From a file to the pixels the network was trained on: upright, on white, the centre square, resized as Pillow does.

export const LARGEST = 64e6;  // pixels: 256 MB once decoded
const LARGEST_FILE = 100e6;

export class Unreadable extends Error {}

export async function decode(blob) {
  if (blob.size > LARGEST_FILE) throw new Unreadable(`it is ${Math.round(blob.size / 1e6)} MB large; at most ${LARGEST_FILE / 1e6} MB are read`);
  const { width, height } = await dimensions(blob);
  if (width * height > LARGEST) {
    throw new Unreadable(`it has ${Math.round(width * height / 1e6)} megapixels; at most ${LARGEST / 1e6} are read, so make it smaller`);
  }
  try {
    return await createImageBitmap(blob, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  } catch {
    throw new Unreadable("it is damaged, or in a format this browser does not know");
  }
}

// The header alone: an <img> is not decoded before it is drawn.
function dimensions(blob) {
  const url = URL.createObjectURL(blob), image = new Image();
  return new Promise((found, failed) => {
    image.onload = () => found({ width: image.naturalWidth, height: image.naturalHeight });
    image.onerror = () => failed(new Unreadable("it is not a picture in a format this browser knows"));
    image.src = url;
  }).finally(() => URL.revokeObjectURL(url));
}

// What is shown, a square canvas, and what the network sees, side x side RGBA. `source` is a bitmap or a video.
export function square(source, side) {
  const width = source.videoWidth || source.width, height = source.videoHeight || source.height;
  const shorter = Math.min(width, height);
  const scale = Math.min(1, 8 * side / shorter);  // large ones are first brought near by the browser
  const wide = Math.round(width * scale), high = Math.round(height * scale);
  const whole = paint(source, wide, high).getImageData(0, 0, wide, high).data;
  const own = Math.min(wide, high), left = (wide - own) / 2, top = (high - own) / 2;
  const pixels = wide === side && high === side ? whole : resize(whole, wide, high, [left, top, own], side);
  const shown = paint(source, Math.min(shorter, 640), Math.min(shorter, 640), [(width - shorter) / 2, (height - shorter) / 2, shorter, shorter]);
  return { pixels, shown: shown.canvas };
}

function paint(source, width, height, part = [0, 0, source.videoWidth || source.width, source.videoHeight || source.height]) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d", { willReadFrequently: true, colorSpace: "srgb" });
  context.fillStyle = "white";
  context.fillRect(0, 0, width, height);
  context.imageSmoothingEnabled = part[2] !== width || part[3] !== height;  // else pixels stay what they are
  context.imageSmoothingQuality = "high";
  context.drawImage(source, ...part, 0, 0, width, height);
  return context;
}

// Antialiased bicubic (a = -0.5) of the square `box` = [left, top, side], across and then down, rounded in between.
export function resize(data, width, height, [left, top, own], side) {
  const across = weights(left, own, width, side), down = weights(top, own, height, side);
  const middle = new Uint8ClampedArray(side * height * 4), out = new Uint8ClampedArray(side * side * 4);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < side; x++) sum(data, (y * width + across[x].first) * 4, 4, across[x].shares, middle, (y * side + x) * 4);
  }
  for (let y = 0; y < side; y++) {
    for (let x = 0; x < side; x++) sum(middle, (down[y].first * side + x) * 4, side * 4, down[y].shares, out, (y * side + x) * 4);
  }
  return out;
}

function sum(from, at, step, shares, to, place) {
  let red = 0, green = 0, blue = 0;
  for (const share of shares) {
    red += share * from[at];
    green += share * from[at + 1];
    blue += share * from[at + 2];
    at += step;
  }
  to[place] = Math.floor(red + 0.5);
  to[place + 1] = Math.floor(green + 0.5);
  to[place + 2] = Math.floor(blue + 0.5);
  to[place + 3] = 255;
}

function weights(start, length, limit, count) {
  const scale = length / count, wide = Math.max(scale, 1), reach = 2 * wide;
  return Array.from({ length: count }, (_, i) => {
    const centre = start + (i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - reach + 0.5)), end = Math.min(limit, Math.trunc(centre + reach + 0.5));
    const raw = Array.from({ length: end - first }, (_, j) => cubic((first + j - centre + 0.5) / wide));
    const total = raw.reduce((a, b) => a + b, 0);
    return { first, shares: raw.map(share => share / total) };
  });
}

function cubic(x) {
  x = Math.abs(x);
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  return x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
}

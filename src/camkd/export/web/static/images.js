// Converts an image file to the input of the model, as camkd/data/images.py does: upright, on white, cropped to the central square,
// resized by the same filter with the same rounding.

export const MAX_PIXELS = 89478485;  // as in Python, the limit of Pillow; 358 MB after decoding
const MAX_FILE_BYTES = 100e6;
const HEADER_BYTES = 64;
const STRIP_PIXELS = 1 << 20;  // the pixels are read in strips of rows of about 4 MB

// Regular expressions of the first HEADER_BYTES bytes, as characters of Latin-1.
const FORMATS = {
  JPEG: /^\xff\xd8\xff/,
  PNG: /^\x89PNG\r\n\x1a\n/,
  WebP: /^RIFF.{4}WEBP/s,
  GIF: /^GIF8[79]a/,
  BMP: /^BM/,
};
const OTHER_FORMATS = {
  AVIF: /^.{4}ftyp.*avi[fs]/s,
  HEIC: /^.{4}ftyp.*(hei[cmsx]|hev[cmsx]|mif1|msf1)/s,
  TIFF: /^(II[*+]\0|MM\0[*+])/,
  "JPEG XL": /^(\xff\x0a|\0\0\0\x0cJXL )/,
  "JPEG 2000": /^(\0\0\0\x0cjP {2}|\xff\x4f\xff\x51)/,
  ICO: /^\0\0[\x01\x02]\0/,
  SVG: /^.*<svg/s,
  PDF: /^%PDF/,
  Photoshop: /^8BPS/,
};

// The message continues a sentence that starts with the name of the file.
export class UnreadableImageError extends Error {}
const CORRUPT = "is corrupt. Choose another image";

export async function decode(file) {
  if (file.size > MAX_FILE_BYTES) {
    throw new UnreadableImageError(`must be at most ${MAX_FILE_BYTES / 1e6} MB large, got ${Math.round(file.size / 1e6)} MB. Choose a smaller image`);
  }
  const blob = new Blob([file]);  // without a type, so that the browser detects the format from the content
  const format = await readFormat(blob);
  if (!isComplete(new Uint8Array(await blob.arrayBuffer()), format)) throw new UnreadableImageError(CORRUPT);
  const { width, height } = await readSize(blob);
  if (width * height > MAX_PIXELS) {
    throw new UnreadableImageError(`must have at most ${MAX_PIXELS.toLocaleString("en")} pixels, got ${width} x ${height}. Resize the image`);
  }
  try {
    return await createImageBitmap(blob, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  } catch {
    throw new UnreadableImageError(CORRUPT);
  }
}

async function readFormat(blob) {
  const header = String.fromCharCode(...new Uint8Array(await blob.slice(0, HEADER_BYTES).arrayBuffer()));
  const find = formats => Object.keys(formats).find(name => formats[name].test(header));
  const format = find(FORMATS);
  if (format) return format;
  throw new UnreadableImageError(`must be a JPEG, PNG, WebP, GIF or BMP image, got ${find(OTHER_FORMATS) ?? "an unknown format"}. Convert the file`);
}

// Whether a JPEG or PNG file has its end. Some browsers decode the first part of a truncated file without an error.
export function isComplete(bytes, format) {
  const view = new DataView(bytes.buffer);
  if (format === "PNG") {
    for (let position = 8; position + 12 <= bytes.length; position += 12 + view.getUint32(position)) {
      if (view.getUint32(position + 4) === 0x49454e44) return true;  // IEND
    }
    return false;
  }
  if (format === "JPEG") {
    let position = 2;
    while (position + 4 <= bytes.length && view.getUint16(position) !== 0xffda) {  // the start of the pixels
      const isMarker = bytes[position] === 0xff && bytes[position + 1] !== 0xff;
      position += isMarker ? 2 + view.getUint16(position + 2) : 1;
    }
    const end = bytes.findLastIndex((byte, index) => byte === 0xff && bytes[index + 1] === 0xd9);
    return end > position;
  }
  return true;
}

// Reads only the header: the browser does not decode an <img> before it is drawn.
function readSize(blob) {
  const url = URL.createObjectURL(blob);
  const image = new Image();
  return new Promise((resolve, reject) => {
    image.onload = () => resolve({ width: image.naturalWidth, height: image.naturalHeight });
    image.onerror = () => reject(new UnreadableImageError(CORRUPT));
    image.src = url;
  }).finally(() => URL.revokeObjectURL(url));
}

// The central square of a bitmap or a video: `canvas` to display, and `pixels` for the model, RGBA of side x side.
export function cropSquare(source, side) {
  const image = source instanceof HTMLVideoElement ? draw(source, [0, 0, source.videoWidth, source.videoHeight]).canvas : source;  // one frame
  const { width, height } = image;
  const shorter = Math.min(width, height);
  const left = (width - shorter) / 2;
  const top = (height - shorter) / 2;
  const shownSide = Math.min(shorter, 640);
  return { pixels: resizeSquare(image, left, top, shorter, side), canvas: draw(image, [left, top, shorter, shorter], shownSide, shownSide).canvas };
}

// Draws the part [left, top, width, height] of the source on white.
function draw(source, part, width = part[2], height = part[3]) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d", { willReadFrequently: true, colorSpace: "srgb" });
  context.fillStyle = "white";
  context.fillRect(0, 0, width, height);
  context.imageSmoothingEnabled = part[2] !== width || part[3] !== height;  // without scaling, pixels stay exact
  context.imageSmoothingQuality = "high";
  context.drawImage(source, ...part, 0, 0, width, height);
  return context;
}

// --- antialiased bicubic resampling (a = -0.5), bit for bit as Pillow: columns, rounded to 8 bits, then rows

const PRECISION_BITS = 22;  // weights are integers

// Resizes the square box [left, top, boxSide] of an image to side x side, RGBA.
export function resizeSquare(image, left, top, boxSide, side) {
  const columns = resamplingWeights(left, boxSide, image.width, side);
  const rows = resamplingWeights(top, boxSide, image.height, side);
  const firstColumn = columns[0].first;
  const firstRow = rows[0].first;
  const width = columns[side - 1].first + columns[side - 1].weights.length - firstColumn;
  const numRows = rows[side - 1].first + rows[side - 1].weights.length - firstRow;
  const narrow = new Uint8ClampedArray(4 * side * numRows);
  const stripHeight = Math.max(1, Math.floor(STRIP_PIXELS / width));
  for (let start = 0; start < numRows; start += stripHeight) {
    const count = Math.min(stripHeight, numRows - start);
    const { data } = draw(image, [firstColumn, firstRow + start, width, count]).getImageData(0, 0, width, count);
    for (let y = 0; y < count; y++) {
      for (let x = 0; x < side; x++) {
        const { first, weights } = columns[x];
        writeWeightedSum(data, 4 * (y * width + first - firstColumn), 4, weights, narrow, 4 * ((start + y) * side + x));
      }
    }
  }
  const output = new Uint8ClampedArray(4 * side * side);
  for (let y = 0; y < side; y++) {
    const { first, weights } = rows[y];
    for (let x = 0; x < side; x++) writeWeightedSum(narrow, 4 * ((first - firstRow) * side + x), 4 * side, weights, output, 4 * (y * side + x));
  }
  return output;
}

// Writes the weighted sum of the pixels at input[start], input[start + step], ... to output[index], opaque.
function writeWeightedSum(input, start, step, weights, output, index) {
  let red = 1 << (PRECISION_BITS - 1);
  let green = red;
  let blue = red;
  for (let i = 0; i < weights.length; i++, start += step) {
    const weight = weights[i];
    red += weight * input[start];
    green += weight * input[start + 1];
    blue += weight * input[start + 2];
  }
  output[index] = red >> PRECISION_BITS;
  output[index + 1] = green >> PRECISION_BITS;
  output[index + 2] = blue >> PRECISION_BITS;
  output[index + 3] = 255;
}

// For each of `count` output pixels: the first input pixel, and the weights from there on.
function resamplingWeights(start, length, inputLength, count) {
  const scale = length / count;
  const filterScale = Math.max(scale, 1);
  const support = 2 * filterScale;
  const inverse = 1 / filterScale;
  return Array.from({ length: count }, (_, i) => {
    const center = start + (i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(center - support + 0.5));
    const end = Math.min(inputLength, Math.trunc(center + support + 0.5));
    const values = Array.from({ length: end - first }, (_, j) => cubic((first + j - center + 0.5) * inverse));
    const total = values.reduce((a, b) => a + b, 0);
    return { first, weights: Int32Array.from(values, value => roundAwayFromZero(value / total * 2 ** PRECISION_BITS)) };
  });
}

const roundAwayFromZero = x => Math.trunc(x + 0.5 * Math.sign(x));

function cubic(x) {
  x = Math.abs(x);
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0;
}

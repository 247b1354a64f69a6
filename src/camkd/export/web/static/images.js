// Converts an image file to the input of the model, as camkd/data/images.py does: upright, on white, resized by the same
// filter with the same rounding, cropped or padded to a square.

export const MAX_PIXELS = 89478485;  // as in Python, the limit of Pillow; 358 MB after decoding
const MAX_FILE_BYTES = 100e6;
const HEADER_BYTES = 256;
const PAD_VALUE = 127;  // gray of the padding
const MAX_SHOWN_SIDE = 640;  // of the displayed image
const STRIP_PIXELS = 1 << 20;  // the pixels are read in strips of rows of about 4 MB

// Regular expressions of the first HEADER_BYTES bytes, as characters of Latin-1.
const FORMATS = {
  JPEG: /^\xff\xd8\xff/,
  PNG: /^\x89PNG\r\n\x1a\n/,
  WebP: /^RIFF.{4}WEBP/s,
  GIF: /^GIF8[79]a/,
  BMP: /^BM/,
  AVIF: /^.{4}ftyp.*avi[fs]/s,
};
const OTHER_FORMATS = {
  HEIC: /^.{4}ftyp.*(hei[cmsx]|hev[cmsx]|mif1|msf1)/s,
  TIFF: /^(II[*+]\0|MM\0[*+])/,
  "a video": /^(.{4}ftyp|RIFF.{4}AVI |\x1a\x45\xdf\xa3)/s,
  "JPEG XL": /^(\xff\x0a|\0\0\0\x0cJXL )/,
  "JPEG 2000": /^(\0\0\0\x0cjP {2}|\xff\x4f\xff\x51)/,
  ICO: /^\0\0[\x01\x02]\0/,
  Photoshop: /^8BPS/,
  DICOM: /^.{128}DICM/s,
  PDF: /^%PDF/,
  "an archive": /^(PK\x03\x04|\x1f\x8b|Rar!|7z\xbc\xaf)/,
  "only zero bytes": /^\0+$/,
  "a Git LFS pointer": /^version https?:\/\/(git-lfs|hawser\.github|git-media)\./,
  "a git-annex pointer": /^([^\r\n]*[/\\](annex[/\\]objects|\.git[/\\]annex)[/\\]|\.git[/\\]annex[/\\])/,
  "an HTML page": /^\s*<([hH][tT][mM][lL]|!(doctype|DOCTYPE) (html|HTML)|head|body)/,
  SVG: /^.*<svg/s,
  "a text file": /^[\t\n\r\x20-\x7e\x80-\xff]+$/,
};

// The message continues a sentence that starts with the name of the file.
export class UnreadableImageError extends Error {}
const CORRUPT = "is corrupt. Choose another image";

// valueRange: the gray values that become 0 and 255 in 16-bit PNG images; null: 0 and 65535.
export async function decode(file, valueRange) {
  if (file.size > MAX_FILE_BYTES) {
    throw new UnreadableImageError(`must be at most ${MAX_FILE_BYTES / 1e6} MB large, got ${Math.round(file.size / 1e6)} MB. Choose a smaller image`);
  }
  const format = await readFormat(file);
  const bytes = new Uint8Array(await file.arrayBuffer());
  if (format === "PNG") return decodePng(bytes, valueRange);
  return format === "JPEG" ? decodeJpeg(bytes) : decodeBytes(bytes);
}

// The browser detects the format from the content, as a blob without a type has none.
async function decodeBytes(...parts) {
  const blob = new Blob(parts);
  const { width, height } = await readSize(blob);
  checkSize(width, height);
  try {
    return await createImageBitmap(blob, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  } catch {
    throw new UnreadableImageError(CORRUPT);
  }
}

function checkSize(width, height) {
  if (width * height > MAX_PIXELS) {
    throw new UnreadableImageError(`must have at most ${MAX_PIXELS.toLocaleString("en")} pixels, got ${width} x ${height}. Resize the image`);
  }
}

async function readFormat(blob) {
  if (!blob.size) throw new UnreadableImageError("is empty (0 bytes). Choose another image");
  const header = String.fromCharCode(...new Uint8Array(await blob.slice(0, HEADER_BYTES).arrayBuffer()));
  const find = formats => Object.keys(formats).find(name => formats[name].test(header));
  const format = find(FORMATS);
  if (format) return format;
  throw new UnreadableImageError(`must be a JPEG, PNG, WebP, GIF, BMP or AVIF image, got ${find(OTHER_FORMATS) ?? "an unknown format"}. Convert the file`);
}

// --- PNG: as in Python, only chunks that affect the pixels are decoded, and the end of the file may be missing

const PNG_SIGNATURE_BYTES = 8;
const PNG_PIXEL_CHUNKS = ["tRNS", "acTL", "fcTL", "fdAT", "eXIf"];
const PNG_END = Uint8Array.of(0, 0, 0, 0, 0x49, 0x45, 0x4e, 0x44, 0xae, 0x42, 0x60, 0x82);

// The chunks that affect the pixels, as { kind, content, whole }. The browser checks their checksums.
function pngChunks(bytes) {
  const view = new DataView(bytes.buffer);
  const chunks = [];
  for (let position = PNG_SIGNATURE_BYTES; position + 8 <= bytes.length;) {
    const length = view.getUint32(position);
    const kind = String.fromCharCode(...bytes.subarray(position + 4, position + 8));
    if (kind === "IEND") return { chunks, hasEnd: true };
    const end = position + 12 + length;
    const isUsed = kind[0] < "a" || PNG_PIXEL_CHUNKS.includes(kind);
    if (isUsed && end > bytes.length) throw new UnreadableImageError(CORRUPT);
    if (isUsed) chunks.push({ kind, content: bytes.subarray(position + 8, end - 4), whole: bytes.subarray(position, end) });
    position = end;
  }
  return { chunks, hasEnd: false };
}

async function decodePng(bytes, valueRange) {
  const { chunks, hasEnd } = pngChunks(bytes);
  const header = chunks[0]?.content;
  if (chunks[0]?.kind !== "IHDR" || header.length !== 13) throw new UnreadableImageError(CORRUPT);
  const view = new DataView(header.buffer, header.byteOffset);
  const [width, height] = [view.getUint32(0), view.getUint32(4)];
  checkSize(width, height);
  const isWide = header[8] === 16 && header[9] === 0;  // 16-bit gray, of which a canvas keeps 8 bits
  const isScaled = valueRange && isWide;
  if (isScaled && (header[12] || chunks.some(({ kind }) => kind === "eXIf"))) {
    throw new UnreadableImageError("is a 16-bit PNG image with interlacing or EXIF data, which the page cannot scale as the model needs it. Save it without them");
  }
  const data = isScaled || !hasEnd ? await inflate(chunks, width, height) : null;
  if (data === undefined) throw new UnreadableImageError(CORRUPT);
  const bitmap = await decodeBytes(bytes.subarray(0, PNG_SIGNATURE_BYTES), ...chunks.map(({ whole }) => whole), PNG_END);
  if (!isScaled) return bitmap;
  bitmap.close();
  return createImageBitmap(scaleWidePng(data, width, height, valueRange, chunks));
}

// The pixels of a PNG file, decompressed. Undefined if they are cut off, corrupt or more than the header states.
async function inflate(chunks, width, height) {
  const parts = chunks.filter(({ kind }) => kind === "IDAT").map(({ content }) => content);
  const data = new Uint8Array(8 * height * (width + 8));  // at most 8 bytes per pixel, and bytes per row of each of 7 passes
  let length = 0;
  try {
    const reader = new Blob(parts).stream().pipeThrough(new DecompressionStream("deflate")).getReader();
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      data.set(part.value, length);
      length += part.value.length;
    }
  } catch {
    return undefined;
  }
  return length ? data.subarray(0, length) : undefined;
}

// Scales 16-bit gray pixels, as camkd/data/value_range.py does.
function scaleWidePng(data, width, height, [low, high], chunks) {
  const stride = 2 * width;
  if (data.length < height * (stride + 1)) throw new UnreadableImageError(CORRUPT);
  const transparent = chunks.find(({ kind }) => kind === "tRNS")?.content;
  const transparentValue = transparent ? 256 * transparent[0] + transparent[1] : -1;
  const image = new ImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  let above = new Uint8Array(stride);
  for (let y = 0; y < height; y++) {
    const filter = data[y * (stride + 1)];
    const row = data.subarray(y * (stride + 1) + 1, (y + 1) * (stride + 1));
    for (let i = 0; i < stride; i++) row[i] += predictByte(filter, i < 2 ? 0 : row[i - 2], above[i], i < 2 ? 0 : above[i - 2]);
    for (let x = 0; x < width; x++) {
      const value = 256 * row[2 * x] + row[2 * x + 1];
      const scaled = Math.floor(Math.min(255, Math.max(0, (value - low) * (255 / (high - low)))) + 0.5);
      pixels[y * width + x] = 0xff000000 + 0x10101 * (value === transparentValue ? 255 : scaled);
    }
    above = row;
  }
  return image;
}

// The filters of PNG.
function predictByte(filter, left, up, upLeft) {
  if (filter === 0) return 0;
  if (filter === 1) return left;
  if (filter === 2) return up;
  if (filter === 3) return (left + up) >> 1;
  if (filter !== 4) throw new UnreadableImageError(CORRUPT);
  const [toLeft, toUp, toUpLeft] = [left, up, upLeft].map(value => Math.abs(left + up - upLeft - value));
  if (toLeft <= toUp && toLeft <= toUpLeft) return left;
  return toUp <= toUpLeft ? up : upLeft;
}

// --- JPEG: as in Python, the last bytes may be missing. Some browsers decode half a file without an error

const JPEG_END = Uint8Array.of(0xff, 0xd9);
const JPEG_OTHER_PIXELS = Uint8Array.from({ length: 36 }, (_, i) => 1 + 7 * i);  // in place of missing pixels, repeated
const MAX_MISSING_FRACTION = 1 / 16;
const BLOCK_SIDE = 18;

async function decodeJpeg(bytes) {
  if (hasJpegEnd(bytes)) return decodeBytes(bytes);
  if (!hasAllScans(bytes)) throw new UnreadableImageError(CORRUPT);
  const body = bytes.at(-1) === 0xff ? bytes.subarray(0, -1) : bytes;
  const bitmap = await decodeBytes(body, JPEG_END);
  const { width, height } = bitmap;
  const filler = new Uint8Array(JPEG_OTHER_PIXELS.length * (Math.floor(width * height / 64) + 1)).map((_, i) => JPEG_OTHER_PIXELS[i % JPEG_OTHER_PIXELS.length]);
  const stored = body.slice();  // without EXIF orientation
  for (const { marker, start } of jpegSegments(stored)) if (marker === 0xe1) stored[start] = 0;
  const images = await Promise.all([[stored, JPEG_END], [stored, filler, JPEG_END]].map(parts => createImageBitmap(new Blob(parts))));
  const numMissing = countMissingPixels(...images);
  images.forEach(image => image.close());
  if (numMissing > Math.max(MAX_MISSING_FRACTION * width * height, Math.min(BLOCK_SIDE ** 2, width * height / 3))) throw new UnreadableImageError(CORRUPT);
  return bitmap;
}

// The segments up to `end`, as { marker, start, length }.
function* jpegSegments(bytes) {
  const view = new DataView(bytes.buffer);
  for (let position = 2; position + 4 <= bytes.length;) {
    const marker = bytes[position + 1];
    if (bytes[position] !== 0xff || marker < 2 || marker === 0xff || (marker >= 0xd0 && marker <= 0xd8)) {
      position++;
      continue;
    }
    const length = view.getUint16(position + 2);
    yield { marker, start: position + 4, length };
    position += 2 + length;
  }
}

export function hasJpegEnd(bytes) {
  for (const { marker, start } of jpegSegments(bytes)) {
    if (marker !== 0xda) continue;  // the start of the pixels
    return bytes.findLastIndex((byte, index) => byte === 0xff && bytes[index + 1] === 0xd9) >= start;
  }
  return false;
}

// Whether each coefficient of each component has all its bits, so that only the last scan may be cut off.
function hasAllScans(bytes) {
  const missingBits = {};
  for (const { marker, start, length } of jpegSegments(bytes)) {
    if (start + length - 2 > bytes.length) return false;
    if (marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker)) {
      for (let i = 0; i < bytes[start + 5]; i++) missingBits[bytes[start + 6 + 3 * i]] = new Array(64).fill(16);
    } else if (marker === 0xda) {
      const count = bytes[start];
      const [first, last, bits] = bytes.subarray(start + 1 + 2 * count);
      for (let i = 0; i < count; i++) missingBits[bytes[start + 1 + 2 * i]]?.fill(bits & 15, first, last + 1);
    }
  }
  const all = Object.values(missingBits).flat();
  return all.length > 0 && all.every(bits => bits === 0);
}

// From the first pixel on that depends on the bytes after the end.
function countMissingPixels(image, other) {
  const { width, height } = image;
  const stripHeight = Math.max(1, Math.floor(STRIP_PIXELS / width));
  let firstRow = -1;
  let count = 0;
  for (let top = 0; top < height; top += stripHeight) {
    const part = [0, top, width, Math.min(stripHeight, height - top)];
    const [data, otherData] = [image, other].map(source => new Uint32Array(draw(source, part).getImageData(0, 0, width, part[3]).data.buffer));
    for (let y = 0; y < part[3]; y++) {
      let rowCount = 0;
      for (let i = y * width; i < (y + 1) * width; i++) rowCount += data[i] !== otherData[i];
      if (firstRow < 0 && rowCount) firstRow = top + y;
      if (firstRow >= 0) count += top + y < firstRow + BLOCK_SIDE ? rowCount : width;
    }
  }
  return count;
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

// The input of the model from a bitmap or a video: `canvas` to display, and `pixels` for the model, RGBA of size x size.
// preprocessing: size, fit and interpolation of the model.
export function toSquare(source, preprocessing) {
  const image = source instanceof HTMLVideoElement ? draw(source, [0, 0, source.videoWidth, source.videoHeight]).canvas : source;  // one frame
  const { width, height } = image;
  const { size, fit, interpolation } = preprocessing;
  const { box, target } = place(width, height, size, fit);
  const pixels = new Uint8ClampedArray(4 * size * size).fill(PAD_VALUE).map((value, i) => (i % 4 === 3 ? 255 : value));
  const resized = resize(image, box, target[2], target[3], interpolation);
  for (let y = 0; y < target[3]; y++) {
    pixels.set(resized.subarray(4 * y * target[2], 4 * (y + 1) * target[2]), 4 * ((target[1] + y) * size + target[0]));
  }
  const shownSide = Math.min(Math.max(box[2], box[3]), MAX_SHOWN_SIDE);
  const shown = place(width, height, shownSide, fit);
  return { pixels, canvas: draw(image, box, shownSide, shownSide, shown.target).canvas };
}

// As camkd/data/images.py: the used part of an image and its position in the square, as [left, top, width, height].
function place(width, height, size, fit) {
  if (fit === "crop") {
    const side = Math.min(width, height);
    return { box: [(width - side) / 2, (height - side) / 2, side, side], target: [0, 0, size, size] };
  }
  const targetWidth = width >= height ? size : Math.max(1, roundHalfToEven(width / height * size));
  const targetHeight = height >= width ? size : Math.max(1, roundHalfToEven(height / width * size));
  const left = roundHalfToEven((size - targetWidth) / 2);
  const top = roundHalfToEven((size - targetHeight) / 2);
  return { box: [0, 0, width, height], target: [left, top, targetWidth, targetHeight] };
}

// As round() of Python.
function roundHalfToEven(x) {
  const rounded = Math.round(x);
  return rounded - x === 0.5 && rounded % 2 ? rounded - 1 : rounded;
}

// Draws the part [left, top, width, height] of the source at `target` of a canvas, on white; pixels around it are padding.
function draw(source, part, width = part[2], height = part[3], target = [0, 0, width, height]) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d", { willReadFrequently: true, colorSpace: "srgb" });
  context.fillStyle = `rgb(${PAD_VALUE} ${PAD_VALUE} ${PAD_VALUE})`;
  context.fillRect(0, 0, width, height);
  context.fillStyle = "white";
  context.fillRect(...target);
  context.imageSmoothingEnabled = part[2] !== target[2] || part[3] !== target[3];  // without scaling, pixels stay exact
  context.imageSmoothingQuality = "high";
  context.drawImage(source, ...part, ...target);
  return context;
}

// --- antialiased resampling, bit for bit as Pillow: columns, rounded to 8 bits, then rows

const PRECISION_BITS = 22;  // weights are integers
const FILTERS = {
  bicubic: { radius: 2, weight: cubic },
  bilinear: { radius: 1, weight: x => Math.max(0, 1 - Math.abs(x)) },
};

// Resizes the box [left, top, width, height] of an image to outputWidth x outputHeight, RGBA.
function resize(image, [left, top, boxWidth, boxHeight], outputWidth, outputHeight, interpolation) {
  const filter = FILTERS[interpolation];
  const columns = resamplingWeights(left, boxWidth, image.width, outputWidth, filter);
  const rows = resamplingWeights(top, boxHeight, image.height, outputHeight, filter);
  const firstColumn = columns[0].first;
  const firstRow = rows[0].first;
  const width = columns.at(-1).first + columns.at(-1).weights.length - firstColumn;
  const numRows = rows.at(-1).first + rows.at(-1).weights.length - firstRow;
  const narrow = new Uint8ClampedArray(4 * outputWidth * numRows);
  const stripHeight = Math.max(1, Math.floor(STRIP_PIXELS / width));
  for (let start = 0; start < numRows; start += stripHeight) {
    const count = Math.min(stripHeight, numRows - start);
    const { data } = draw(image, [firstColumn, firstRow + start, width, count]).getImageData(0, 0, width, count);
    for (let y = 0; y < count; y++) {
      for (let x = 0; x < outputWidth; x++) {
        const { first, weights } = columns[x];
        writeWeightedSum(data, 4 * (y * width + first - firstColumn), 4, weights, narrow, 4 * ((start + y) * outputWidth + x));
      }
    }
  }
  const output = new Uint8ClampedArray(4 * outputWidth * outputHeight);
  for (let y = 0; y < outputHeight; y++) {
    const { first, weights } = rows[y];
    for (let x = 0; x < outputWidth; x++) writeWeightedSum(narrow, 4 * ((first - firstRow) * outputWidth + x), 4 * outputWidth, weights, output, 4 * (y * outputWidth + x));
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
function resamplingWeights(start, length, inputLength, count, { radius, weight }) {
  const scale = length / count;
  const filterScale = Math.max(scale, 1);
  const support = radius * filterScale;
  const inverse = 1 / filterScale;
  return Array.from({ length: count }, (_, i) => {
    const center = start + (i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(center - support + 0.5));
    const end = Math.min(inputLength, Math.trunc(center + support + 0.5));
    const values = Array.from({ length: end - first }, (_, j) => weight((first + j - center + 0.5) * inverse));
    const total = values.reduce((a, b) => a + b, 0);
    return { first, weights: Int32Array.from(values, value => roundAwayFromZero(value / total * 2 ** PRECISION_BITS)) };
  });
}

const roundAwayFromZero = x => Math.trunc(x + 0.5 * Math.sign(x));

// Bicubic with a = -0.5.
function cubic(x) {
  x = Math.abs(x);
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0;
}

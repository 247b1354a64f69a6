// Converts an image file to the input of the model as in training: rotated upright, on white, cropped to the central square, resized as by Pillow.

export const MAX_PIXELS = 64e6;  // 256 MB after decoding
const MAX_FILE_BYTES = 100e6;

// The message continues a sentence that starts with the name of the file.
export class UnreadableImageError extends Error {}

export async function decode(blob) {
  if (blob.size > MAX_FILE_BYTES) {
    throw new UnreadableImageError(`must be at most ${MAX_FILE_BYTES / 1e6} MB large, got ${Math.round(blob.size / 1e6)} MB. Choose a smaller image`);
  }
  const { width, height } = await readSize(blob);
  if (width * height > MAX_PIXELS) {
    throw new UnreadableImageError(`must have at most ${MAX_PIXELS / 1e6} megapixels, got ${Math.round(width * height / 1e6)}. Resize the image`);
  }
  try {
    return await createImageBitmap(blob, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  } catch {
    throw new UnreadableImageError("is damaged, or in a format that this browser does not support");
  }
}

// Reads only the header: the browser does not decode an <img> before it is drawn.
function readSize(blob) {
  const url = URL.createObjectURL(blob);
  const image = new Image();
  return new Promise((resolve, reject) => {
    image.onload = () => resolve({ width: image.naturalWidth, height: image.naturalHeight });
    image.onerror = () => reject(new UnreadableImageError("must be an image in a format that this browser supports"));
    image.src = url;
  }).finally(() => URL.revokeObjectURL(url));
}

// The central square of a bitmap or a video: `canvas` to display, and `pixels` for the model, RGBA of side x side.
export function cropSquare(source, side) {
  const width = source.videoWidth || source.width;
  const height = source.videoHeight || source.height;
  const shorter = Math.min(width, height);
  const scale = Math.min(1, 8 * side / shorter);  // the browser first reduces large images to about 8 times the side
  const scaledWidth = Math.round(width * scale);
  const scaledHeight = Math.round(height * scale);
  const scaled = draw(source, scaledWidth, scaledHeight).getImageData(0, 0, scaledWidth, scaledHeight).data;
  const boxSide = Math.min(scaledWidth, scaledHeight);
  const box = [(scaledWidth - boxSide) / 2, (scaledHeight - boxSide) / 2, boxSide];
  const pixels = scaledWidth === side && scaledHeight === side ? scaled : resize(scaled, scaledWidth, scaledHeight, box, side);
  const shownSide = Math.min(shorter, 640);
  const { canvas } = draw(source, shownSide, shownSide, [(width - shorter) / 2, (height - shorter) / 2, shorter, shorter]);
  return { pixels, canvas };
}

// Draws the part [left, top, width, height] of the source on white.
function draw(source, width, height, part = [0, 0, source.videoWidth || source.width, source.videoHeight || source.height]) {
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

// Antialiased bicubic resampling (a = -0.5) of the square box [left, top, side]: horizontal, rounded, then vertical.
export function resize(data, width, height, [left, top, boxSide], side) {
  const xWeights = resamplingWeights(left, boxSide, width, side);
  const yWeights = resamplingWeights(top, boxSide, height, side);
  const intermediate = new Uint8ClampedArray(side * height * 4);
  const output = new Uint8ClampedArray(side * side * 4);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < side; x++) weightedSum(data, (y * width + xWeights[x].first) * 4, 4, xWeights[x].weights, intermediate, (y * side + x) * 4);
  }
  for (let y = 0; y < side; y++) {
    for (let x = 0; x < side; x++) weightedSum(intermediate, (yWeights[y].first * side + x) * 4, side * 4, yWeights[y].weights, output, (y * side + x) * 4);
  }
  return output;
}

// Writes the weighted sum of the pixels at input[start], input[start + step], ... to output[index].
function weightedSum(input, start, step, weights, output, index) {
  let red = 0, green = 0, blue = 0;
  for (const weight of weights) {
    red += weight * input[start];
    green += weight * input[start + 1];
    blue += weight * input[start + 2];
    start += step;
  }
  output[index] = Math.floor(red + 0.5);
  output[index + 1] = Math.floor(green + 0.5);
  output[index + 2] = Math.floor(blue + 0.5);
  output[index + 3] = 255;
}

// For each of `count` output pixels: the first input pixel, and the normalized weights from there on.
function resamplingWeights(start, length, inputLength, count) {
  const scale = length / count;
  const filterScale = Math.max(scale, 1);
  const support = 2 * filterScale;
  return Array.from({ length: count }, (_, i) => {
    const center = start + (i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(center - support + 0.5));
    const end = Math.min(inputLength, Math.trunc(center + support + 0.5));
    const weights = Array.from({ length: end - first }, (_, j) => cubic((first + j - center + 0.5) / filterScale));
    const total = weights.reduce((a, b) => a + b, 0);
    return { first, weights: weights.map(weight => weight / total) };
  });
}

function cubic(x) {
  x = Math.abs(x);
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  return x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
}

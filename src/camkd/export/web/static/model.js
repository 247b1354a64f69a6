// The network: pixels in, logits and maps out.
import * as ort from "./runtime/ort.wasm.min.mjs";

ort.env.wasm.wasmPaths = new URL("./runtime/", import.meta.url).href;
ort.env.wasm.numThreads = 1;  // one picture of a small network: more threads cost more than they bring
ort.env.logLevel = "error";

export async function openModel(url) {
  const session = await ort.InferenceSession.create(url, { executionProviders: ["wasm"] });
  // pixels: Uint8ClampedArray RGBA of side x side. The network takes RGB in 0..1, channel after channel.
  return async function answer(pixels, side) {
    const cells = side * side, input = new Float32Array(3 * cells);
    for (let i = 0; i < cells; i++) {
      for (let c = 0; c < 3; c++) input[c * cells + i] = pixels[4 * i + c] / 255;
    }
    const { logits, cam } = await session.run({ image: new ort.Tensor("float32", input, [1, 3, side, side]) });
    const [, classes, rows, columns] = cam.dims, size = rows * columns;
    return { logits: logits.data, chances: softmax(logits.data), grid: [rows, columns],
      maps: Array.from({ length: classes }, (_, k) => cam.data.subarray(k * size, (k + 1) * size)) };
  };
}

function softmax(logits) {
  const top = Math.max(...logits), powers = Array.from(logits, x => Math.exp(x - top));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map(x => x / sum);
}

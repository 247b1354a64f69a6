// Runs the model: computes logits, probabilities and maps from pixels.

export async function loadModel(url, runtimeFolder) {
  const ort = await import(`./${runtimeFolder}/ort.wasm.min.mjs`);
  ort.env.wasm.wasmPaths = new URL(`./${runtimeFolder}/`, import.meta.url).href;
  ort.env.wasm.numThreads = 1;  // for one image and a small model, more threads cost more than they gain
  ort.env.logLevel = "error";
  const session = await ort.InferenceSession.create(url, { executionProviders: ["wasm"] });
  // `pixels` is a Uint8ClampedArray in RGBA of side x side. The model takes RGB in 0..1, channels first.
  return async function predict(pixels, side) {
    const numPixels = side * side;
    const input = new Float32Array(3 * numPixels);
    for (let i = 0; i < numPixels; i++) {
      for (let c = 0; c < 3; c++) input[c * numPixels + i] = pixels[4 * i + c] / 255;
    }
    const { logits, cam } = await session.run({ image: new ort.Tensor("float32", input, [1, 3, side, side]) });
    const [, classes, rows, columns] = cam.dims;
    const cells = rows * columns;
    return {
      logits: logits.data,
      probabilities: softmax(logits.data),
      grid: [rows, columns],
      maps: Array.from({ length: classes }, (_, k) => cam.data.subarray(k * cells, (k + 1) * cells)),
    };
  };
}

function softmax(logits) {
  const max = Math.max(...logits);
  const exponentials = Array.from(logits, x => Math.exp(x - max));
  const sum = exponentials.reduce((a, b) => a + b, 0);
  return exponentials.map(x => x / sum);
}

// Run the model in a worker thread, so that the page stays responsive.
import * as ort from "./ort.wasm.bundle.min.mjs";

// More threads need HTTP headers that a plain web server does not send.
ort.env.wasm.numThreads = 1;

let session;

async function run(pixels, width, height) {
  const image = new ort.Tensor("uint8", pixels, [1, height, width, 3]);
  const start = performance.now();
  const outputs = ["probabilities", "unknown_score"].filter((name) => session.outputNames.includes(name));
  const { probabilities, unknown_score } = await session.run({ image }, outputs);
  const ms = performance.now() - start;
  return { probabilities: Array.from(probabilities.data), unknownScore: unknown_score?.data[0], ms };
}

async function handle({ kind, id, file, side, pixels, width, height }) {
  if (kind === "open") {
    session = await ort.InferenceSession.create(file, { executionProviders: ["wasm"] });
    // Warm up: the first inference is slower, and its time must not be shown.
    await run(new Uint8Array(3 * side * side), side, side);
    return { id };
  }
  return { id, ...(await run(pixels, width, height)) };
}

addEventListener("message", async ({ data }) => {
  try {
    postMessage(await handle(data));
  } catch (cause) {
    postMessage({ id: data.id, error: String(cause?.message ?? cause) });
  }
});

// The model, beside the page's own thread, so that the page stays alive while it answers.
import * as ort from "./ort.wasm.bundle.min.mjs";

// More threads would need headers that a plain web server does not send.
ort.env.wasm.numThreads = 1;

let session;

async function run(pixels, width, height) {
  const image = new ort.Tensor("uint8", pixels, [1, height, width, 3]);
  const began = performance.now();
  const { probabilities } = await session.run({ image }, ["probabilities"]);
  return { probabilities: Array.from(probabilities.data), ms: performance.now() - began };
}

async function answer({ kind, id, file, side, pixels, width, height }) {
  if (kind === "open") {
    session = await ort.InferenceSession.create(file, { executionProviders: ["wasm"] });
    // The first run is slower than any later one, and is not what the page shows.
    await run(new Uint8Array(3 * side * side), side, side);
    return { id };
  }
  return { id, ...(await run(pixels, width, height)) };
}

addEventListener("message", async ({ data }) => {
  try {
    postMessage(await answer(data));
  } catch (cause) {
    postMessage({ id: data.id, error: String(cause?.message ?? cause) });
  }
});

// Label images under Node.js: node predict.mjs IMAGE...   Needs Node.js 20 or newer and, in this folder, `npm install sharp`.
// The runtime is this folder's own copy of onnxruntime-web. Resizing, cropping and normalising are inside the model.

import { readFile } from "node:fs/promises";
import * as ort from "./ort.wasm.bundle.min.mjs";

const here = (name) => new URL(name, import.meta.url);

/** Upright RGB, uint8 [1, height, width, 3]; transparency on white, the file's own values whatever its colour profile. */
async function load(sharp, path) {
  const image = sharp(path, { ignoreIcc: true, failOn: "truncated", limitInputPixels: false }).autoOrient();
  const opaque = image.flatten({ background: "#ffffff" }).toColourspace("srgb").raw({ depth: "uchar" });
  const { data, info } = await opaque.toBuffer({ resolveWithObject: true });
  return new ort.Tensor("uint8", new Uint8Array(data), [1, info.height, info.width, info.channels]);
}

async function main(paths) {
  const { default: sharp } = await import("sharp").catch(() => {
    throw new Error("predict.mjs reads images with sharp: run `npm install sharp` in this folder.");
  });
  const model = JSON.parse(await readFile(here("model.json"), "utf8"));
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmBinary = await readFile(here("ort-wasm-simd-threaded.wasm"));
  const session = await ort.InferenceSession.create(await readFile(here(model.file)), { executionProviders: ["wasm"] });
  for (const path of paths) {
    const { probabilities } = await session.run({ image: await load(sharp, path) }, ["probabilities"]);
    const best = probabilities.data.indexOf(Math.max(...probabilities.data));
    console.log(`${path}\t${model.labels[best]}\t${probabilities.data[best].toFixed(4)}`);
  }
}

main(process.argv.slice(2)).catch((cause) => {
  console.error(cause.message);
  process.exitCode = 1;
});

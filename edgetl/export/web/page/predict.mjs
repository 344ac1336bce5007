// Label images in Node.js: node predict.mjs IMAGE...
// Needs Node.js 20 or newer and, in this folder, `npm install sharp`. The runtime is this folder's copy of
// onnxruntime-web. Resizing, cropping and normalization are inside the model.

import { readFile } from "node:fs/promises";
import * as ort from "./ort.wasm.bundle.min.mjs";

const here = (name) => new URL(name, import.meta.url);
const scale = (value, factor) => Math.round((value * factor) / 255);

/** Decode to upright RGB, uint8 [1, height, width, 3]; transparency on white, color profile ignored. */
async function load(sharp, path) {
  const open = () => sharp(path, { ignoreIcc: true, failOn: "truncated", limitInputPixels: false }).autoOrient();
  const isCmyk = (await open().metadata()).space === "cmyk";
  // sharp would convert CMYK with a printer's profile, and rounds differently when it removes transparency.
  const image = isCmyk ? open().pipelineColourspace("cmyk").toColourspace("cmyk") : open().toColourspace("srgb");
  const { data, info } = await image.raw({ depth: "uchar" }).toBuffer({ resolveWithObject: true });
  const pixels = new Uint8Array(3 * info.width * info.height);
  for (let from = 0, to = 0; to < pixels.length; from += info.channels) {
    const fourth = info.channels === 4 ? data[from + 3] : 255;
    for (let channel = 0; channel < 3; channel++) {
      const value = data[from + channel];
      pixels[to++] = isCmyk ? scale(255 - value, 255 - fourth) : scale(value, fourth) + (255 - fourth);
    }
  }
  return new ort.Tensor("uint8", pixels, [1, info.height, info.width, 3]);
}

async function main(paths) {
  const { default: sharp } = await import("sharp").catch(() => {
    throw new Error("predict.mjs reads images with sharp: run `npm install sharp` in this folder.");
  });
  const model = JSON.parse(await readFile(here("model.json"), "utf8"));
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmBinary = await readFile(here("ort-wasm-simd-threaded.wasm"));
  const session = await ort.InferenceSession.create(await readFile(here(model.file)), { executionProviders: ["wasm"] });
  const outputs = ["probabilities", "unknown_score"].filter((name) => session.outputNames.includes(name));
  for (const path of paths) {
    const image = await load(sharp, path).catch((cause) => {
      const reason = cause.message.trim().replaceAll("\n", "; ");
      throw new Error(`${path}: cannot be read as an image (${reason}). Save it as JPEG, PNG or WebP.`);
    });
    const { probabilities, unknown_score: score } = await session.run({ image }, outputs);
    const best = probabilities.data.indexOf(Math.max(...probabilities.data));
    const closest = model.labels[best];
    const columns = [path, score?.data[0] > 1 ? "unknown" : closest, probabilities.data[best].toFixed(4)];
    if (score) columns.push(score.data[0].toFixed(3), closest);
    console.log(columns.join("\t"));
  }
}

main(process.argv.slice(2)).catch((cause) => {
  console.error(cause.message);
  process.exitCode = 1;
});

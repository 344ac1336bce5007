// Label images under Node.js: node predict.mjs IMAGE...   Needs Node.js 20 or newer and, in this folder, `npm install sharp`.
// The runtime is this folder's own copy of onnxruntime-web. Resizing, cropping and normalising are inside the model.

import { readFile } from "node:fs/promises";
import * as ort from "./ort.wasm.bundle.min.mjs";

const here = (name) => new URL(name, import.meta.url);
const scaled = (value, by) => Math.round((value * by) / 255);

/** Upright RGB, uint8 [1, height, width, 3]; transparency on white, the file's own values whatever its colour profile. */
async function load(sharp, path) {
  const open = () => sharp(path, { ignoreIcc: true, failOn: "truncated", limitInputPixels: false }).autoOrient();
  const inks = (await open().metadata()).space === "cmyk";
  // sharp's own way from four inks to RGB guesses a printer, and its own way from transparency to white rounds otherwise.
  const image = inks ? open().pipelineColourspace("cmyk").toColourspace("cmyk") : open().toColourspace("srgb");
  const { data, info } = await image.raw({ depth: "uchar" }).toBuffer({ resolveWithObject: true });
  const pixels = new Uint8Array(3 * info.width * info.height);
  for (let from = 0, to = 0; to < pixels.length; from += info.channels) {
    const fourth = info.channels === 4 ? data[from + 3] : 255;
    for (let channel = 0; channel < 3; channel++) {
      const value = data[from + channel];
      pixels[to++] = inks ? scaled(255 - value, 255 - fourth) : scaled(value, fourth) + (255 - fourth);
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
  for (const path of paths) {
    const image = await load(sharp, path).catch((cause) => {
      throw new Error(`${path}: cannot be read as an image (${cause.message.trim().replaceAll("\n", "; ")}). Save it as JPEG, PNG or WebP.`);
    });
    const { probabilities } = await session.run({ image }, ["probabilities"]);
    const best = probabilities.data.indexOf(Math.max(...probabilities.data));
    console.log(`${path}\t${model.labels[best]}\t${probabilities.data[best].toFixed(4)}`);
  }
}

main(process.argv.slice(2)).catch((cause) => {
  console.error(cause.message);
  process.exitCode = 1;
});

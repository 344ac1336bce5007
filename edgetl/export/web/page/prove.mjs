// Run the bundle's golden images with onnxruntime-web in Node.js: node prove.mjs WEB_FOLDER IMAGES.json
// Prints the outputs of all images as JSON, by name.

import { readFile } from "node:fs/promises";
import { pathToFileURL } from "node:url";

const [, , web, imageList] = process.argv;
const here = (name) => new URL(name, pathToFileURL(`${web}/`));
const ort = await import(here("ort.wasm.bundle.min.mjs"));
const model = JSON.parse(await readFile(here("model.json"), "utf8"));
ort.env.wasm.numThreads = 1;
ort.env.wasm.wasmBinary = await readFile(here("ort-wasm-simd-threaded.wasm"));
const session = await ort.InferenceSession.create(await readFile(here(model.file)), { executionProviders: ["wasm"] });
const names = ["logits", "probabilities", "unknown_score"].filter((name) => session.outputNames.includes(name));
const outputs = Object.fromEntries(names.map((name) => [name, []]));
for (const { pixels, height, width } of JSON.parse(await readFile(imageList, "utf8"))) {
  const image = new ort.Tensor("uint8", new Uint8Array(await readFile(pixels)), [1, height, width, 3]);
  const results = await session.run({ image }, names);
  for (const name of names) outputs[name].push(Array.from(results[name].data));
}
console.log(JSON.stringify(outputs));

// The bundle's reference images through onnxruntime-web under Node.js: node prove.mjs WEB_FOLDER QUESTIONS.json, logits as JSON on stdout.

import { readFile } from "node:fs/promises";
import { pathToFileURL } from "node:url";

const [, , web, questions] = process.argv;
const here = (name) => new URL(name, pathToFileURL(`${web}/`));
const ort = await import(here("ort.wasm.bundle.min.mjs"));
const model = JSON.parse(await readFile(here("model.json"), "utf8"));
ort.env.wasm.numThreads = 1;
ort.env.wasm.wasmBinary = await readFile(here("ort-wasm-simd-threaded.wasm"));
const session = await ort.InferenceSession.create(await readFile(here(model.file)), { executionProviders: ["wasm"] });
const answers = [];
for (const { pixels, height, width } of JSON.parse(await readFile(questions, "utf8"))) {
  const image = new ort.Tensor("uint8", new Uint8Array(await readFile(pixels)), [1, height, width, 3]);
  answers.push(Array.from((await session.run({ image }, ["logits"])).logits.data));
}
console.log(JSON.stringify(answers));

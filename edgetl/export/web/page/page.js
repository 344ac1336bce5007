// Label an image. Resizing, cropping and normalization are inside the model; this page only decodes.
"use strict";

const MAX_LABELS = 5;
const UNKNOWN_THRESHOLD = 1;
const STRIP_PIXELS = 1 << 22;
const element = (id) => document.getElementById(id);

function say(text, bad = false) {
  element("status").textContent = text;
  element("status").classList.toggle("bad", bad);
  element("status").hidden = !text;
}

class Failure extends Error {}

// The model in its worker. Each request has an id, which the response repeats.
class Model {
  constructor() {
    this.pending = new Map();
    this.worker = new Worker("worker.js", { type: "module" });
    this.worker.addEventListener("message", ({ data }) => {
      const { resolve, reject } = this.pending.get(data.id);
      this.pending.delete(data.id);
      if (data.error) reject(new Failure(data.error));
      else resolve(data);
    });
    this.worker.addEventListener("error", (event) => {
      const failure = new Failure(event.message || "the worker cannot be started");
      for (const { reject } of this.pending.values()) reject(failure);
      this.pending.clear();
    });
  }

  request(message, transfer = []) {
    const id = (this.lastId = (this.lastId ?? 0) + 1);
    return new Promise((resolve, reject) => {
      this.pending.set(id, { resolve, reject });
      this.worker.postMessage({ ...message, id }, transfer);
    });
  }

  async open() {
    const response = await fetch("model.json");
    if (!response.ok) throw new Failure(`model.json: ${response.status} ${response.statusText}`);
    this.info = await response.json();
    describe(this.info);
    await this.request({ kind: "open", file: this.info.file, side: this.info.side });
  }
}

function describe(info) {
  const { labels, accuracy } = info;
  const classes = labels.length > 8 ? "" : `: ${labels.join(", ")}`;
  element("lead").textContent = `${labels.length} classes${classes}. The image stays on this device.`;
  const interval = (accuracy?.ci95 ?? []).map(percent).join(" to ");
  element("accuracy").textContent = accuracy
    ? `Accuracy ${percent(accuracy.top1)} on ${accuracy.images} ${accuracy.split} images (95% interval ${interval}).`
    : "";
  const origin = `${info.model}, variant ${info.variant}, run ${info.run_id}`;
  element("origin").textContent = `${origin}. ${info.runtime}, one thread. Exported by edgetl ${info.edgetl}.`;
}

function percent(share) {
  return share > 0 && share < 0.001 ? "< 0.1%" : `${(100 * share).toFixed(1)}%`;
}

// Return whether the EXIF block of a WebP file rotates it. All browsers apply the orientation of JPEG, but not of WebP.
async function isRotatedWebP(file) {
  const view = new DataView(await file.arrayBuffer());
  const [RIFF, WEBP, EXIF, PREFIX, ORIENTATION] = [0x52494646, 0x57454250, 0x45584946, 0x45786966, 0x0112];
  try {
    if (view.getUint32(0) !== RIFF || view.getUint32(8) !== WEBP) return false;
    let block = 12;
    while (view.getUint32(block) !== EXIF) {
      const size = view.getUint32(block + 4, true);
      block += 8 + size + (size % 2);
    }
    const tiff = block + (view.getUint32(block + 8) === PREFIX ? 14 : 8);
    const little = view.getUint16(tiff) === 0x4949;
    const entries = tiff + view.getUint32(tiff + 4, little);
    for (let left = view.getUint16(entries, little), entry = entries + 2; left > 0; left--, entry += 12) {
      if (view.getUint16(entry, little) === ORIENTATION) return view.getUint16(entry + 8, little) > 1;
    }
  } catch (cause) {
    // A RangeError means the end of the file: the block is missing or broken.
    if (!(cause instanceof RangeError)) throw cause;
  }
  return false;
}

// Decode to upright RGB, uint8 [height, width, 3], as edgetl does: transparency on white, color profile ignored.
async function decode(file) {
  const start = performance.now();
  const options = { imageOrientation: "from-image", colorSpaceConversion: "none", premultiplyAlpha: "none" };
  const name = file.name ? `“${file.name}”` : "the image";
  let bitmap, isRotated;
  try {
    [bitmap, isRotated] = await Promise.all([createImageBitmap(file, options), isRotatedWebP(file)]);
  } catch {
    throw new Failure(`This browser cannot read ${name}. Choose a JPEG, PNG or WebP file.`);
  }
  if (isRotated) throw new Failure(`Browsers ignore the EXIF orientation of ${name}, a WebP file. Save it as JPEG or PNG.`);
  const { width, height } = bitmap;
  const pixels = new Uint8Array(3 * width * height);
  // Decode in strips, because phones limit the area of a canvas.
  const rows = Math.min(height, Math.max(1, Math.floor(STRIP_PIXELS / width)));
  const canvas = Object.assign(document.createElement("canvas"), { width, height: rows });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "#ffffff";
  for (let top = 0, to = 0; top < height; top += rows) {
    const count = Math.min(rows, height - top);
    context.fillRect(0, 0, width, rows);
    context.drawImage(bitmap, 0, -top);
    const { data } = context.getImageData(0, 0, width, count);
    for (let from = 0; from < data.length; from += 4) {
      pixels[to++] = data[from];
      pixels[to++] = data[from + 1];
      pixels[to++] = data[from + 2];
    }
  }
  bitmap.close();
  return { pixels, width, height, ms: performance.now() - start };
}

// Some browsers alter the pixels that a page reads, as protection against fingerprinting. The labels would be wrong.
function readsTruePixels() {
  const context = Object.assign(document.createElement("canvas"), { width: 64, height: 64 }).getContext("2d");
  const written = context.createImageData(64, 64);
  written.data.forEach((_, index) => { written.data[index] = index % 4 === 3 ? 255 : (index * 37) % 256; });
  context.putImageData(written, 0, 0);
  const { data } = context.getImageData(0, 0, 64, 64);
  return written.data.every((value, index) => value === data[index]);
}

function show({ probabilities, unknownScore, ms }, image, labels) {
  const indices = probabilities.map((_, index) => index).sort((a, b) => probabilities[b] - probabilities[a]);
  const order = indices.slice(0, MAX_LABELS);
  const isUnknown = unknownScore > UNKNOWN_THRESHOLD;
  element("label").textContent = isUnknown ? "Unknown" : labels[order[0]];
  element("probability").textContent = isUnknown ? "" : percent(probabilities[order[0]]);
  const note = `The image resembles none of the classes. Closest: ${labels[order[0]]}.`;
  element("unknown").textContent = isUnknown ? note : "";
  element("unknown").hidden = !isUnknown;
  element("answer").classList.toggle("unknown", isUnknown);
  element("ranking").replaceChildren(...order.map((index) => {
    const [row, name, share, bar, part] = ["li", "span", "span", "span", "i"].map((tag) => document.createElement(tag));
    name.textContent = labels[index];
    share.textContent = percent(probabilities[index]);
    bar.className = "bar";
    part.style.width = `${100 * probabilities[index]}%`;
    bar.append(part);
    row.append(name, share, bar);
    return row;
  }));
  const decoding = `${image.width} × ${image.height} pixels, decoded in ${image.ms.toFixed(0)} ms.`;
  element("timing").textContent = `Inference took ${ms.toFixed(0)} ms on this device. ${decoding}`;
}

let latest = 0;

async function classify(file) {
  const number = ++latest;
  const isLatest = () => number === latest;
  element("answer").hidden = true;
  URL.revokeObjectURL(element("preview").src);
  element("preview").hidden = element("invitation").hidden = true;
  say("Reading the image …");
  try {
    const image = await decode(file);
    if (!isLatest()) return;
    element("preview").src = URL.createObjectURL(file);
    element("preview").hidden = false;
    element("drop").classList.add("full");
    say(ready ? "Classifying …" : "Loading the model …");
    await opened;
    const result = await model.request({ kind: "run", ...image }, [image.pixels.buffer]);
    if (!isLatest()) return;
    say("");
    show(result, image, model.info.labels);
    element("answer").hidden = false;
  } catch (cause) {
    if (!isLatest()) return;
    element("drop").classList.remove("full");
    element("invitation").hidden = false;
    element("preview").hidden = true;
    say(cause instanceof Failure ? cause.message : `Cannot label this image: ${cause.message}`, true);
  }
}

function listen() {
  for (const [button, input] of [["choose", "file"], ["photograph", "camera"]]) {
    element(button).addEventListener("click", () => element(input).click());
    element(input).addEventListener("change", () => {
      if (element(input).files.length) classify(element(input).files[0]);
      // Allow choosing the same file again.
      element(input).value = "";
    });
  }
  const over = (on) => (event) => {
    event.preventDefault();
    element("drop").classList.toggle("over", on);
  };
  addEventListener("dragover", over(true));
  addEventListener("dragleave", over(false));
  addEventListener("drop", (event) => {
    over(false)(event);
    if (event.dataTransfer.files.length) classify(event.dataTransfer.files[0]);
    else say("The dropped item is not a file. Save the image first, then drop or choose it.", true);
  });
  addEventListener("paste", (event) => {
    if (event.clipboardData.files.length) classify(event.clipboardData.files[0]);
  });
}

let model, opened, ready = false;

if (location.protocol === "file:") {
  say(
    "Browsers do not load the model of a page opened from a file. " +
    "Run python3 -m http.server -d BUNDLE/web and open http://localhost:8000.",
    true,
  );
  document.querySelectorAll("button").forEach((button) => { button.disabled = true; });
} else if (!readsTruePixels()) {
  say(
    "This browser alters the pixels that a page reads, so the labels would be wrong. " +
    "Allow canvas data for this page, then reload it.",
    true,
  );
} else {
  say("Loading the model …");
  model = new Model();
  opened = model.open().then(
    () => {
      ready = true;
      if (!latest) say("Ready.");
    },
    (cause) => {
      const advice = "Reload the page, or copy the bundle again.";
      const failure = new Failure(`Cannot load the model: ${cause.message}. ${advice}`);
      if (!latest) say(failure.message, true);
      throw failure;
    },
  );
  // The error is shown above, or by classify() for a waiting image.
  opened.catch(() => {});
  listen();
}

// A picture in, labels out. Resizing, cropping and normalising are inside the model; this page only decodes.
"use strict";

const SHOWN = 5;
const STRIP_PIXELS = 1 << 22;
const at = (id) => document.getElementById(id);

function say(text, bad = false) {
  at("status").textContent = text;
  at("status").classList.toggle("bad", bad);
  at("status").hidden = !text;
}

class Failure extends Error {}

// The model in its worker: every question has a number, and the answer carries it back.
class Model {
  constructor() {
    this.waiting = new Map();
    this.worker = new Worker("worker.js", { type: "module" });
    this.worker.addEventListener("message", ({ data }) => {
      const { resolve, reject } = this.waiting.get(data.id);
      this.waiting.delete(data.id);
      if (data.error) reject(new Failure(data.error));
      else resolve(data);
    });
    this.worker.addEventListener("error", (event) => {
      for (const { reject } of this.waiting.values()) reject(new Failure(event.message || "its worker could not be started"));
      this.waiting.clear();
    });
  }

  ask(question, transfer = []) {
    const id = (this.last = (this.last ?? 0) + 1);
    return new Promise((resolve, reject) => {
      this.waiting.set(id, { resolve, reject });
      this.worker.postMessage({ ...question, id }, transfer);
    });
  }

  async open() {
    const response = await fetch("model.json");
    if (!response.ok) throw new Failure(`model.json: ${response.status} ${response.statusText}`);
    this.about = await response.json();
    describe(this.about);
    await this.ask({ kind: "open", file: this.about.file, side: this.about.side });
  }
}

function describe(about) {
  const { labels, accuracy } = about;
  const known = labels.length > 8 ? `One of ${labels.length} classes.` : `One of ${labels.length}: ${labels.join(", ")}.`;
  at("lead").textContent = `${known} The picture stays on this device.`;
  const percents = (accuracy?.ci95 ?? []).map(percent);
  at("accuracy").textContent = accuracy
    ? `${percent(accuracy.top1)} of ${accuracy.images} ${accuracy.split} images were labelled rightly (95% interval ${percents.join(" to ")}).`
    : "";
  at("origin").textContent = `${about.model}, variant ${about.variant}, run ${about.run_id}. ${about.runtime}, one thread. Made by edgetl ${about.edgetl}.`;
}

function percent(share) {
  return share > 0 && share < 0.001 ? "< 0.1%" : `${(100 * share).toFixed(1)}%`;
}

// Whether a WebP file says in its EXIF block that it is to be turned; no browser is sure to do so, as all do with JPEG.
async function isTurnedWebP(file) {
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
    for (let left = view.getUint16(entries, little), at = entries + 2; left > 0; left--, at += 12) {
      if (view.getUint16(at, little) === ORIENTATION) return view.getUint16(at + 8, little) > 1;
    }
  } catch (cause) {
    // Past the file's end: there is no such block, or it is too broken to say anything.
    if (!(cause instanceof RangeError)) throw cause;
  }
  return false;
}

// RGB as uint8 [height, width, 3]: upright, transparency on white, the file's own values whatever its colour profile; as edgetl decodes.
async function decode(file) {
  const began = performance.now();
  const how = { imageOrientation: "from-image", colorSpaceConversion: "none", premultiplyAlpha: "none" };
  const name = file.name ? `“${file.name}”` : "This";
  let bitmap, turned;
  try {
    [bitmap, turned] = await Promise.all([createImageBitmap(file, how), isTurnedWebP(file)]);
  } catch {
    throw new Failure(`${name} is no picture that this browser can read. Choose a JPEG, PNG or WebP file.`);
  }
  if (turned) throw new Failure(`${name} asks to be turned, which browsers overlook in WebP files. Save it as JPEG or PNG.`);
  const { width, height } = bitmap;
  const pixels = new Uint8Array(3 * width * height);
  // In strips: phones limit the area of a canvas, and a photo may be larger.
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
  return { pixels, width, height, ms: performance.now() - began };
}

// Some browsers hand out altered pixels, against being recognised by them; the answers would be wrong without a word.
function readsTruePixels() {
  const context = Object.assign(document.createElement("canvas"), { width: 64, height: 64 }).getContext("2d");
  const written = context.createImageData(64, 64);
  written.data.forEach((_, index) => { written.data[index] = index % 4 === 3 ? 255 : (index * 37) % 256; });
  context.putImageData(written, 0, 0);
  const { data } = context.getImageData(0, 0, 64, 64);
  return written.data.every((value, index) => value === data[index]);
}

function show({ probabilities, ms }, image, labels) {
  const order = probabilities.map((_, index) => index).sort((a, b) => probabilities[b] - probabilities[a]).slice(0, SHOWN);
  at("label").textContent = labels[order[0]];
  at("probability").textContent = percent(probabilities[order[0]]);
  at("ranking").replaceChildren(...order.map((index) => {
    const [row, name, share, bar, part] = ["li", "span", "span", "span", "i"].map((tag) => document.createElement(tag));
    name.textContent = labels[index];
    share.textContent = percent(probabilities[index]);
    bar.className = "bar";
    part.style.width = `${100 * probabilities[index]}%`;
    bar.append(part);
    row.append(name, share, bar);
    return row;
  }));
  at("timing").textContent =
    `Answered in ${ms.toFixed(0)} ms on this device. ${image.width} × ${image.height} pixels, decoded in ${image.ms.toFixed(0)} ms.`;
}

let latest = 0;

async function classify(file) {
  const turn = ++latest;
  const isLatest = () => turn === latest;
  at("answer").hidden = true;
  URL.revokeObjectURL(at("preview").src);
  at("preview").hidden = at("invitation").hidden = true;
  say("Reading the picture …");
  try {
    const image = await decode(file);
    if (!isLatest()) return;
    at("preview").src = URL.createObjectURL(file);
    at("preview").hidden = false;
    at("drop").classList.add("full");
    say(ready ? "Working …" : "Loading the model …");
    await opened;
    const answer = await model.ask({ kind: "run", ...image }, [image.pixels.buffer]);
    if (!isLatest()) return;
    say("");
    show(answer, image, model.about.labels);
    at("answer").hidden = false;
  } catch (cause) {
    if (!isLatest()) return;
    at("drop").classList.remove("full");
    at("invitation").hidden = false;
    at("preview").hidden = true;
    say(cause instanceof Failure ? cause.message : `This picture could not be labelled: ${cause.message}`, true);
  }
}

function listen() {
  for (const [button, input] of [["choose", "file"], ["photograph", "camera"]]) {
    at(button).addEventListener("click", () => at(input).click());
    at(input).addEventListener("change", () => {
      if (at(input).files.length) classify(at(input).files[0]);
      // The same file may be chosen again.
      at(input).value = "";
    });
  }
  const over = (on) => (event) => {
    event.preventDefault();
    at("drop").classList.toggle("over", on);
  };
  addEventListener("dragover", over(true));
  addEventListener("dragleave", over(false));
  addEventListener("drop", (event) => {
    over(false)(event);
    if (event.dataTransfer.files.length) classify(event.dataTransfer.files[0]);
    else say("What was dropped is no file. Save the picture first, then drop or choose it.", true);
  });
  addEventListener("paste", (event) => {
    if (event.clipboardData.files.length) classify(event.clipboardData.files[0]);
  });
}

let model, opened, ready = false;

if (location.protocol === "file:") {
  say("A page opened from a file may not load its model: run python3 -m http.server -d BUNDLE/web and open http://localhost:8000 instead.", true);
  document.querySelectorAll("button").forEach((button) => { button.disabled = true; });
} else if (!readsTruePixels()) {
  say("This browser alters the pixels that a page reads, so the answers would be wrong: allow canvas data for this page, then reload it.", true);
} else {
  say("Loading the model …");
  model = new Model();
  opened = model.open().then(
    () => {
      ready = true;
      if (!latest) say("Ready.");
    },
    (cause) => {
      const failure = new Failure(`The model could not be loaded: ${cause.message}. Reload the page, or copy the bundle again.`);
      if (!latest) say(failure.message, true);
      throw failure;
    },
  );
  // Whoever asks for an answer is told; without a question, the page has told it already.
  opened.catch(() => {});
  listen();
}

// Decodes an image, sends its pixels in one V2 request, and shows what comes back.

import { indexPng } from "./png.js";
import { inferRequest, readTensors, rgb } from "./tensors.js";

// Larger images are scaled down: an answer takes nine bytes a pixel, and a phone on a mobile line is to get it.
const MAX_PIXELS = 2 ** 20;
const LARGE_STEP = 20;
// Dark blue over green to yellow (viridis): its brightness grows with the value, for the colour-blind too.
const RAMP = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];

const $ = (id) => document.getElementById(id);
const canvas = $("canvas");
const paint = canvas.getContext("2d");

let token = null;
let image = null; // {name, canvas, width, height, original: [width, height]}
let result = null; // {model, version, classes, palette, labels, maps: {confidence, ...}, tints, milliseconds, timing}
let pointed = null; // [x, y] of the pixel that is read
let shown = "labels"; // or the name of a map
let running = null; // the AbortController of what is being asked
let opened = 0; // how many images were chosen, so that the last one wins

class Problem extends Error {} // one whose message is for the user

// Asking the server

async function request(path, { headers, ...options } = {}) {
  for (;;) {
    const authorization = token ? { Authorization: `Bearer ${token}` } : {};
    let response;
    try {
      response = await fetch(path, { ...options, headers: { ...headers, ...authorization } });
    } catch (error) {
      if (options.signal?.aborted) throw error;
      throw new Problem("The server does not answer. Check that it runs and that this device reaches it.");
    }
    if (response.ok) return response;
    if (response.status !== 401) throw await problem(response);
    token = await askForToken(token !== null);
    if (token === null) throw new Problem("This server answers only those who have its token.");
  }
}

async function problem(response) {
  const reported = await response.json().then(({ error }) => error).catch(() => response.statusText);
  const reason = {
    404: "The model is no longer served.",
    413: "The image is too large for this server: choose a smaller one.",
    503: "The server is busy: try again in a moment.",
  }[response.status];
  // The list of models is asked for again with the next try.
  if (response.status === 404) $("model").replaceChildren();
  return new Problem(`${reason ?? "The server could not answer."} It says: ${reported}`);
}

function askForToken(wasRefused) {
  const dialog = $("locked");
  $("locked-text").textContent = wasRefused
    ? "That token was refused. Check it, and enter it again."
    : "Whoever runs the server has it. This page forgets it when it is closed.";
  $("token").value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue || null), { once: true });
  });
}

async function listModels(signal) {
  const asked = { method: "POST", body: JSON.stringify({ ready: true }), signal };
  const index = await (await request("v2/repository/index", asked)).json();
  const names = [...new Set(index.map(({ name }) => name))]; // a model may be there in several versions
  if (!names.length) throw new Problem("No model is ready yet: try again in a moment, or look into the server's log.");
  $("model").replaceChildren(...names.map((name) => new Option(name)));
  $("model").disabled = false;
}

// One inference gives everything that the page shows.
async function segment(model, signal) {
  const path = `v2/models/${encodeURIComponent(model)}`;
  const { versions, inputs, outputs, properties } = await (await request(path, { signal })).json();
  const version = versions.at(-1); // this one is asked, since a newer one may have other classes
  const maps = outputs.filter(({ datatype, shape }) => datatype === "FP32" && shape.length === 3).map(({ name }) => name);
  const pixels = rgb(image.canvas);
  const started = performance.now();
  const asked = inferRequest(inputs[0].name, image.width, image.height, pixels, ["labels", ...maps]);
  const response = await request(`${path}/versions/${version}/infer`, { ...asked, signal });
  const answer = await response.arrayBuffer();
  const milliseconds = performance.now() - started;
  const tensors = readTensors(answer, Number(response.headers.get("Inference-Header-Content-Length")));
  return {
    model,
    version,
    ...properties,
    labels: new Uint8Array(tensors.labels),
    maps: Object.fromEntries(maps.map((name) => [name, new Float32Array(tensors[name])])),
    tints: {},
    milliseconds,
    timing: response.headers.get("Server-Timing") ?? "",
  };
}

// The way of an image

async function open(file, name) {
  const turn = ++opened;
  try {
    const decoded = await decode(file, name);
    if (turn !== opened) return;
    [image, result, pointed] = [decoded, null, null];
  } catch (error) {
    fail(error, false); // what was there before is as right as it was
    return;
  }
  $("empty").hidden = true;
  $("view").hidden = false;
  [canvas.width, canvas.height] = [image.width, image.height];
  canvas.setAttribute("aria-label", `${name}, ${image.width} by ${image.height} pixels`);
  draw();
  read();
  await update();
}

async function decode(file, name) {
  let bitmap;
  try {
    // Without its colour profile, as training and /v1/segment read it: phones' photographs have one of their own.
    bitmap = await createImageBitmap(file, { colorSpaceConversion: "none" });
  } catch {
    throw new Problem(`${name} is not an image that this browser can read: choose a JPEG, PNG or WebP.`);
  }
  const original = [bitmap.width, bitmap.height];
  const factor = Math.min(1, Math.sqrt(MAX_PIXELS / (bitmap.width * bitmap.height)));
  const [width, height] = original.map((length) => Math.max(1, Math.floor(length * factor)));
  const source = Object.assign(document.createElement("canvas"), { width, height });
  const context = source.getContext("2d", { alpha: false, willReadFrequently: true });
  context.fillStyle = "white"; // beneath what is transparent
  context.fillRect(0, 0, width, height);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, width, height);
  bitmap.close();
  return { name, canvas: source, width, height, original };
}

// Asks for what is missing; whatever is being asked already is given up.
async function update() {
  running?.abort();
  const own = new AbortController();
  running = own;
  $("error").hidden = true;
  $("busy").hidden = false;
  $("panel").inert = true;
  try {
    if (!$("model").options.length) await listModels(own.signal);
    if (image) {
      const answer = await segment($("model").value, own.signal);
      if (own.signal.aborted) return;
      result = answer;
      showResult();
    }
  } catch (error) {
    if (!own.signal.aborted) fail(error, true);
  } finally {
    if (running === own) $("busy").hidden = true;
  }
}

function fail(error, mayTryAgain) {
  if (!(error instanceof Problem)) console.error(error);
  $("error-text").textContent = error instanceof Problem ? error.message : `This page failed: ${error.message}`;
  $("again").hidden = !mayTryAgain;
  $("error").hidden = false;
  if (!mayTryAgain) return;
  result = null;
  $("panel").hidden = true;
  if (image) draw();
  read();
}

// Showing it

function element(tag, className, text) {
  return Object.assign(document.createElement(tag), { className, textContent: text });
}

const percent = (share) => `${(100 * share).toFixed(1)} %`;
const titled = (name) => name[0].toUpperCase() + name.slice(1);
const nameOf = (label) => result.classes[label] ?? `class ${label}`;

function swatch(label) {
  const mark = element("i", "swatch", "");
  mark.style.backgroundColor = `rgb(${result.palette[label] ?? [0, 0, 0]})`;
  return mark;
}

function showResult() {
  if (!(shown in result.maps)) shown = "labels";
  $("panel").hidden = false;
  $("panel").inert = false;
  showChoices();
  showLegend();
  showFacts();
  draw();
  read();
}

function showChoices() {
  const choices = ["labels", ...Object.keys(result.maps)].map((name) => {
    const label = element("label", "", name === "labels" ? "Classes" : titled(name));
    const radio = Object.assign(document.createElement("input"), { type: "radio", name: "shown", value: name });
    radio.checked = name === shown;
    label.append(radio);
    return label;
  });
  $("shown").replaceChildren($("shown").firstElementChild, ...choices);
}

function showLegend() {
  const counts = new Uint32Array(256);
  for (const label of result.labels) counts[label]++;
  const found = [...counts.keys()].filter((label) => counts[label]).sort((one, other) => counts[other] - counts[one]);
  $("legend").replaceChildren(...found.map((label) => {
    const row = document.createElement("li");
    row.dataset.label = label;
    row.title = `${counts[label]} pixels`;
    const share = element("span", "share", percent(counts[label] / result.labels.length));
    row.append(swatch(label), element("span", "name", nameOf(label)), share);
    return row;
  }));
}

function showFacts() {
  const { width, height, original } = image;
  const size = `${original[0]}×${original[1]} pixels`;
  const scaled = width === original[0] && height === original[1] ? "" : `, scaled to ${width}×${height}`;
  const inModel = /compute_infer;dur=([\d.]+)/.exec(result.timing);
  const share = inModel ? `, ${Math.round(inModel[1])} ms of it in the model` : "";
  $("facts").textContent =
    `${result.model}, version ${result.version}, answered in ${Math.round(result.milliseconds)} ms${share}.\n${size}${scaled}.`;
}

function draw() {
  const opacity = $("opacity").value;
  $("percent").textContent = `${opacity} %`;
  paint.drawImage(image.canvas, 0, 0);
  if (!result) return;
  paint.globalAlpha = opacity / 100;
  paint.drawImage((result.tints[shown] ??= tint()), 0, 0);
  paint.globalAlpha = 1;
  const map = result.maps[shown];
  $("scale").hidden = !map;
  if (map) $("mean").textContent = `${titled(shown)}, ${percent(map.reduce((sum, value) => sum + value, 0) / map.length)} on average`;
}

// What is laid over the image, opaque.
function tint() {
  const map = result.maps[shown];
  const colors = map ? RAMP_COLORS : colorTable();
  const layer = Object.assign(document.createElement("canvas"), { width: image.width, height: image.height });
  const context = layer.getContext("2d");
  const pixels = context.createImageData(layer.width, layer.height);
  for (let pixel = 0; pixel < result.labels.length; pixel++) {
    const color = 3 * (map ? Math.round(255 * Math.min(1, Math.max(0, map[pixel]))) : result.labels[pixel]);
    pixels.data[4 * pixel] = colors[color];
    pixels.data[4 * pixel + 1] = colors[color + 1];
    pixels.data[4 * pixel + 2] = colors[color + 2];
    pixels.data[4 * pixel + 3] = 255;
  }
  context.putImageData(pixels, 0, 0);
  return layer;
}

function colorTable() {
  const table = new Uint8Array(3 * 256);
  table.set(result.palette.flat());
  return table;
}

const RAMP_COLORS = Uint8Array.from({ length: 3 * 256 }, (_, index) => {
  const place = (Math.floor(index / 3) / 255) * (RAMP.length - 1);
  const before = Math.min(Math.floor(place), RAMP.length - 2);
  const [from, to] = [RAMP[before][index % 3], RAMP[before + 1][index % 3]];
  return Math.round(from + (place - before) * (to - from));
});

function drawScale() {
  const context = $("ramp").getContext("2d");
  const pixels = context.createImageData(256, 1);
  for (let value = 0; value < 256; value++) pixels.data.set([...RAMP_COLORS.subarray(3 * value, 3 * value + 3), 255], 4 * value);
  context.putImageData(pixels, 0, 0);
}

// Reading a pixel

// Where the image lies within its canvas, which CSS may make wider than it (object-fit: contain).
function placeOfImage() {
  const { width, height } = canvas.getBoundingClientRect();
  const scale = Math.min(width / image.width, height / image.height);
  return { scale, left: (width - scale * image.width) / 2, top: (height - scale * image.height) / 2 };
}

function pointAt(event) {
  const { scale, left, top } = placeOfImage();
  const box = canvas.getBoundingClientRect();
  const x = Math.floor((event.clientX - box.left - left) / scale);
  const y = Math.floor((event.clientY - box.top - top) / scale);
  pointed = x >= 0 && y >= 0 && x < image.width && y < image.height ? [x, y] : null;
  read();
}

function pointByKey(event) {
  const step = event.shiftKey ? LARGE_STEP : 1;
  const move = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] }[event.key];
  if (!move) return;
  event.preventDefault();
  const sizes = [image.width, image.height];
  const from = pointed ?? sizes.map((size) => Math.floor(size / 2));
  pointed = from.map((place, axis) => Math.min(sizes[axis] - 1, Math.max(0, place + move[axis])));
  read();
}

function read() {
  const marker = $("marker");
  marker.hidden = !pointed || !result;
  for (const row of $("legend").children) row.classList.remove("pointed");
  $("readout").replaceChildren();
  if (marker.hidden) return;
  const [x, y] = pointed;
  const pixel = y * image.width + x;
  const label = result.labels[pixel];
  const { scale, left, top } = placeOfImage();
  marker.style.left = `${canvas.offsetLeft + left + (x + 0.5) * scale}px`;
  marker.style.top = `${canvas.offsetTop + top + (y + 0.5) * scale}px`;
  $("legend").querySelector(`[data-label="${label}"]`)?.classList.add("pointed");
  const values = Object.entries(result.maps).map(([name, map]) => element("span", "", `${name} ${percent(map[pixel])}`));
  $("readout").append(swatch(label), element("strong", "", nameOf(label)), ...values, element("span", "", `at ${x}, ${y}`));
}

// The segmentation as a file: the labels on the screen, in a palette PNG as the server writes it.

async function download() {
  const link = document.createElement("a");
  link.download = `${image.name.replace(/\.[^.]*$/, "")}-labels.png`;
  link.href = URL.createObjectURL(await indexPng(result.labels, image.width, image.height, colorTable()));
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000); // some browsers begin to read it late
}

// What the user does

function openFirst(files) {
  const [file] = files;
  if (file) open(file, file.name);
  else fail(new Problem("That is not a file: drop or paste an image itself."), false);
}

$("file").addEventListener("change", ({ target }) => {
  if (target.files.length) openFirst(target.files);
  target.value = ""; // so that the same file can be chosen again
});
$("sample").addEventListener("click", async () => {
  try {
    await open(await (await request("page/sample.jpg")).blob(), "sample.jpg");
  } catch (error) {
    fail(error, false);
  }
});
$("model").addEventListener("change", update);
$("again").addEventListener("click", update);
$("opacity").addEventListener("input", draw);
$("download").addEventListener("click", download);
$("shown").addEventListener("change", ({ target }) => {
  shown = target.value;
  draw();
});

for (const kind of ["pointerdown", "pointermove"]) canvas.addEventListener(kind, pointAt);
canvas.addEventListener("keydown", pointByKey);
window.addEventListener("resize", read);

window.addEventListener("paste", ({ clipboardData }) => {
  if (clipboardData.files.length) openFirst(clipboardData.files);
});
for (const kind of ["dragover", "dragleave", "drop"]) {
  window.addEventListener(kind, (event) => {
    event.preventDefault(); // a browser would leave the page for the file
    document.body.classList.toggle("dropping", kind === "dragover");
    if (kind === "drop") openFirst(event.dataTransfer.files);
  });
}

$("locked").addEventListener("submit", (event) => {
  event.preventDefault();
  $("locked").close($("token").value);
});
$("cancel").addEventListener("click", () => $("locked").close(""));

drawScale();
update();

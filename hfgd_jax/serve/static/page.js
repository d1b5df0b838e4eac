"use strict";

// Sends the chosen images one after the other, and shows an image with its mask. Nothing is kept by the server.

const RETRIES = 20; // of an image that the server is too busy for
const SCREEN = 4e6; // pixels of the mask that is painted over an image on the screen; the download is whole

const $ = (id) => document.getElementById(id);
const items = []; // {file, button, state, ...}
let current = null;
let limits = null;
let sending = false;

const percent = (share) => `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`;
const megabytes = (bytes) => `${(bytes / 2 ** 20).toFixed(0)} MB`;

function tell(text, wrong = false) {
  $("status").textContent = text;
  $("status").classList.toggle("wrong", wrong);
}

// -- sending --

async function add(files) {
  for (const file of files) {
    const button = document.createElement("button");
    button.type = "button";
    const item = { file, button, state: "waiting" };
    button.addEventListener("click", () => show(item));
    const entry = document.createElement("li");
    entry.append(button);
    $("list").append(entry);
    items.push(item);
    mark(item, "waiting", "waiting");
  }
  $("chosen").hidden = !items.length;
  if (sending) return;
  sending = true;
  for (let item; (item = items.find((other) => other.state === "waiting")); ) await send(item);
  sending = false;
}

function mark(item, state, note) {
  item.state = state;
  item.note = note;
  const small = document.createElement("small");
  small.textContent = note;
  item.button.replaceChildren(item.file.name, small);
  item.button.classList.toggle("wrong", state === "wrong");
  item.button.disabled = state === "waiting" || state === "sending";
}

async function send(item) {
  mark(item, "sending", "predicting");
  tell(`${item.file.name}: predicting`);
  try {
    if (limits && item.file.size > limits.upload_bytes)
      throw new Error(`the file has ${megabytes(item.file.size)}, and the server takes ${megabytes(limits.upload_bytes)}`);
    const start = performance.now();
    const answer = await ask(item.file);
    if (!items.includes(item)) return; // cleared meanwhile
    item.milliseconds = performance.now() - start;
    const { width, height, tiles, classes, milliseconds: times } = answer;
    Object.assign(item, { width, height, tiles, classes, times });
    item.png = new Blob([Uint8Array.from(atob(answer.mask), (c) => c.charCodeAt(0))], { type: "image/png" });
    item.urls = { photo: URL.createObjectURL(item.file), mask: URL.createObjectURL(item.png) };
    mark(item, "done", `${item.milliseconds.toFixed(0)} ms`);
    tell(`${item.file.name}: predicted in ${item.milliseconds.toFixed(0)} ms`);
    if (!current) await show(item);
  } catch (error) {
    mark(item, "wrong", error.message);
    tell(`${item.file.name}: ${error.message}`, true);
  }
}

async function ask(file) {
  const kind = file.type.startsWith("image/") ? file.type : "application/octet-stream";
  for (let retry = 0; ; retry++) {
    let response;
    try {
      response = await fetch("/predict?format=json", { method: "POST", headers: { "Content-Type": kind }, body: file });
    } catch {
      throw new Error("the server does not answer");
    }
    if (response.ok) return response.json();
    if (response.status === 503 && retry < RETRIES) {
      const seconds = Number(response.headers.get("Retry-After")) || 1;
      await new Promise((done) => setTimeout(done, 1000 * seconds));
      continue;
    }
    const answer = await response.json().catch(() => ({}));
    throw new Error(answer.error || `the server answered ${response.status}`);
  }
}

// -- showing --

async function show(item) {
  if (item.state === "wrong") return tell(`${item.file.name}: ${item.note}`, true);
  if (item.state !== "done") return;
  current = item;
  for (const other of items) other.button.setAttribute("aria-pressed", String(other === item));
  $("result").hidden = false;
  $("title").textContent = item.file.name;
  const times = item.times;
  $("facts").textContent =
    `${item.width} x ${item.height} pixels; ${item.milliseconds.toFixed(0)} ms, of which the model took ` +
    `${times.predicting.toFixed(0)} and waiting ${times.waiting.toFixed(0)}` +
    (item.tiles > 1 ? `; in ${item.tiles} tiles` : "");
  $("legend").replaceChildren(...item.classes.filter((one) => one.share > 0).map(row));
  $("mask").src = item.urls.mask;
  $("photo").src = item.urls.photo;
  const shown = await $("photo").decode().then(() => true, () => false);
  if (current !== item) return;
  item.shown = shown; // a TIFF, for one, is predicted but no browser shows it
  $("photo").hidden = !shown;
  $("save-overlay").disabled = !shown;
  $("overlay-caption").textContent = shown ? "Overlay" : "Overlay (this browser cannot show images of this format)";
  $("paint").hidden = !shown;
  if (shown) await paint($("paint"), item, Math.min(1, Math.sqrt(SCREEN / (item.width * item.height))));
}

function row(one) {
  const line = document.createElement("tr");
  const name = document.createElement("th");
  name.scope = "row";
  name.append(rectangle(1, one.color, "swatch", 1), one.name);
  const share = document.createElement("td");
  share.className = "number";
  share.textContent = percent(one.share);
  const bar = document.createElement("td");
  bar.className = "bar";
  bar.append(rectangle(one.share, one.color, "", 100));
  line.append(name, share, bar);
  return line;
}

function rectangle(share, color, kind, width) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  svg.setAttribute("viewBox", `0 0 ${width} 1`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  if (kind) svg.setAttribute("class", kind);
  const rect = document.createElementNS(space, "rect");
  rect.setAttribute("width", String(share * width));
  rect.setAttribute("height", "1");
  rect.setAttribute("fill", color);
  rect.setAttribute("stroke-width", kind ? "0.1" : "0");
  svg.append(rect);
  return svg;
}

// The mask's colours, clear where a class is black: black is a background, and would darken the image.
async function paint(canvas, item, scale) {
  const picture = await createImageBitmap(item.png);
  canvas.width = Math.max(1, Math.round(item.width * scale));
  canvas.height = Math.max(1, Math.round(item.height * scale));
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingEnabled = false;
  context.drawImage(picture, 0, 0, canvas.width, canvas.height);
  picture.close();
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
  const words = new Uint32Array(pixels.data.buffer);
  const black = new Uint32Array(new Uint8Array([0, 0, 0, 255]).buffer)[0];
  for (let i = 0; i < words.length; i++) if (words[i] === black) words[i] = 0;
  context.putImageData(pixels, 0, 0);
  canvas.style.opacity = $("opacity").value / 100;
}

$("opacity").addEventListener("input", () => {
  $("shown").textContent = `${$("opacity").value} %`;
  $("paint").style.opacity = $("opacity").value / 100;
});

// -- saving --

function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

const stem = (item) => item.file.name.replace(/\.[^.]*$/, "") || "image";

$("save-mask").addEventListener("click", () => current && save(current.png, `${stem(current)}_mask.png`));

$("save-overlay").addEventListener("click", async () => {
  const item = current;
  if (!item || !item.shown) return;
  const colours = document.createElement("canvas");
  await paint(colours, item, 1);
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [item.width, item.height];
  const context = canvas.getContext("2d");
  context.drawImage($("photo"), 0, 0, item.width, item.height);
  context.globalAlpha = $("opacity").value / 100;
  context.drawImage(colours, 0, 0);
  const blob = await new Promise((done) => canvas.toBlob(done, "image/png"));
  if (blob) save(blob, `${stem(item)}_overlay.png`);
  else tell(`${item.file.name}: too large for this browser to make the overlay of`, true);
});

// -- choosing --

$("files").addEventListener("change", () => {
  add([...$("files").files]);
  $("files").value = ""; // the same file may be chosen again
});

for (const kind of ["dragenter", "dragover", "dragleave", "drop"])
  document.addEventListener(kind, (event) => {
    event.preventDefault(); // a file that is dropped beside the frame must not replace the page
    $("drop").classList.toggle("over", kind === "dragenter" || kind === "dragover");
    if (kind === "drop") add([...event.dataTransfer.files]);
  });

$("clear").addEventListener("click", () => {
  for (const item of items) for (const url of Object.values(item.urls || {})) URL.revokeObjectURL(url);
  items.length = 0;
  current = null;
  $("list").replaceChildren();
  $("chosen").hidden = $("result").hidden = true;
  tell("");
  $("files").focus();
});

fetch("/healthz")
  .then((response) => response.json())
  .then((health) => {
    limits = health.limits;
    $("model").textContent = `${health.model}; ${health.classes.length} classes`;
    $("hint").append(` At most ${megabytes(limits.upload_bytes)} and ${(limits.pixels / 1e6).toFixed(0)} megapixels each.`);
  })
  .catch(() => tell("the server does not answer", true));

"use strict";
// One image at a time: two layers with a divider between them, regions, and the classes in it.

const LAYERS = { image: "image", label: "label", prediction: "prediction", mistakes: "disagreement", confidence: "confidence", compared: "" };
const SUFFIX = { thumbnail: "webp", image: "webp", label: "png", prediction: "png", mistakes: "png", confidence: "png", compared: "png" };
const picture = (kind, index) => `pictures/${kind}/${index}.${SUFFIX[kind]}`;

const viewer = { list: [], place: 0, left: "label", right: "prediction", region: null };

function layerChoices() {
  const other = REPORT.scores.runs[1];
  return Object.entries(LAYERS).filter(([key]) => key !== "compared" || other).map(([key, name], i) => [key, `${i + 1} ${name || `prediction of ${other.name}`}`]);
}

function makeViewer() {
  const dialog = byId("viewer");
  const choose = (side) => {
    const select = element("select", { id: `viewer-${side}`, onchange: () => { viewer[side] = select.value; drawStage(); } });
    options(select, layerChoices());
    select.value = viewer[side];
    return select;
  };
  const slider = element("input", { type: "range", id: "viewer-divider", min: "0", max: "100", value: "50", "aria-label": "Divider between the left and the right layer", oninput: drawDivider });
  const strength = element("input", { type: "range", id: "viewer-strength", min: "0", max: "100", value: "65", oninput: drawStrength });
  const boxes = element("input", { type: "checkbox", id: "viewer-boxes", checked: true, onchange: drawStage });
  const button = (id, text, title, press) => element("button", { type: "button", id, title, "aria-label": title, onclick: press }, text);
  dialog.append(
    element("div", { class: "bar" },
      element("h2", { id: "viewer-name" }),
      element("div", { class: "buttons" },
        button("viewer-back", "←", "Image before (arrow left)", () => step(-1)),
        element("span", { id: "viewer-place" }),
        button("viewer-next", "→", "Next image (arrow right)", () => step(1)),
        button("viewer-close", "✕", "Close (Escape)", () => dialog.close()))),
    element("div", { id: "stage", class: "stage", onpointerdown: drag, onpointermove: drag }),
    slider,
    element("div", { class: "controls" },
      labelled("left", choose("left")), labelled("right", choose("right")), labelled("colour strength", strength),
      element("label", { class: "check" }, boxes, " doubtful regions")),
    element("p", { class: "faint" }, `Arrow keys: image before and next. 1 to ${layerChoices().length}: the right layer; with Shift: the left one. Disagreement is orange, red where the label is doubted; ignored pixels are grey. Confidence: white is sure.`),
    element("div", { id: "viewer-facts" }));
  dialog.addEventListener("keydown", viewerKey);
}

function viewerKey(event) {
  const choices = layerChoices();
  const digit = event.code.startsWith("Digit") ? Number(event.code.slice(5)) : 0;
  if (digit >= 1 && digit <= choices.length && !event.ctrlKey && !event.metaKey && !event.altKey) {
    const side = event.shiftKey ? "left" : "right";
    viewer[side] = choices[digit - 1][0];
    byId(`viewer-${side}`).value = viewer[side];
    drawStage();
    event.preventDefault();
  }
  if (["INPUT", "SELECT"].includes(event.target.tagName)) return; // arrows are theirs
  const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (by) {
    step(by);
    event.preventDefault();
  }
}

// Opens the image at a place of a list of images; `region` is one to point out.
function openViewer(list, place, region = null) {
  Object.assign(viewer, { list, place, region });
  const dialog = byId("viewer");
  if (!dialog.firstChild) makeViewer();
  if (!dialog.open) dialog.showModal();
  drawViewer();
}

function step(by) {
  viewer.place = (viewer.place + by + viewer.list.length) % viewer.list.length;
  viewer.region = null;
  drawViewer();
}

function stack(name) {
  const index = viewer.list[viewer.place];
  const show = (kind, properties) => element("img", { src: picture(kind, index), draggable: "false", ...properties });
  const alt = `${LAYERS[name] || "second run's prediction"} of ${REPORT.images[index].id}`;
  const pictures = name === "confidence" ? [] : [show("image", { alt: name === "image" ? alt : "" })];
  if (name !== "image") pictures.push(show(name, { alt, class: name === "confidence" ? null : name === "mistakes" ? "sharp" : "colours" }));
  return pictures;
}

function drawStage() {
  const image = REPORT.images[viewer.list[viewer.place]];
  const stage = byId("stage");
  stage.style.setProperty("--ratio", `${image.size[1]} / ${image.size[0]}`);
  byId("viewer").style.setProperty("--wide", String(image.size[1] / image.size[0]));
  const name = (layer) => layerChoices().find(([key]) => key === layer)[1].slice(2);
  const parts = [
    element("div", { class: "layer" }, ...stack(viewer.left)),
    element("div", { class: "layer over" }, ...stack(viewer.right)),
    element("span", { class: "tag", "aria-hidden": "true" }, name(viewer.left)),
    element("span", { class: "tag right", "aria-hidden": "true" }, name(viewer.right)),
    element("div", { class: "divider", "aria-hidden": "true" })];
  if (byId("viewer-boxes").checked) {
    for (const region of image.regions) {
      const box = element("div", { class: region === viewer.region ? "box chosen" : "box", title: `${className(region.given)} → ${className(region.suggested)}` });
      const [left, top, right, bottom] = region.box.map((v) => 100 * v);
      Object.entries({ left, top, width: right - left, height: bottom - top }).forEach(([key, value]) => box.style.setProperty(key, `${value}%`));
      parts.push(box);
    }
  }
  stage.replaceChildren(...parts);
  drawDivider();
  drawStrength();
}

function drawDivider() {
  byId("stage").style.setProperty("--split", `${byId("viewer-divider").value}%`);
}

// The divider follows a pressed pointer.
function drag(event) {
  if (!event.buttons) return;
  const box = byId("stage").getBoundingClientRect();
  byId("viewer-divider").value = String(Math.round((100 * (event.clientX - box.left)) / box.width));
  drawDivider();
}

function drawStrength() {
  byId("stage").style.setProperty("--strength", String(byId("viewer-strength").value / 100));
}

function facts(image) {
  const { runs } = REPORT.scores;
  const scores = [["mIoU", withUnit(image.iou)], ["pixel accuracy", withUnit(image.accuracy)], ["label quality", image.quality === null ? "n/a" : image.quality.toFixed(3)], ["size", `${image.size[1]} x ${image.size[0]}`]];
  if (runs[1]) scores.push([`mIoU of ${runs[1].name}`, withUnit(image.iou2)], ["pixels that differ", withUnit(image.differ)]);
  const cards = scores.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value)));
  const classes = image.classes.map(([k, labelledPixels, predicted, right]) => {
    const union = labelledPixels + predicted - right;
    return element("li", {}, chip(k), ` ${withUnit(union ? right / union : null)}`);
  });
  const pairs = image.pairs.slice(0, 6).map(([t, p, n]) => element("li", {}, pair(t, p), ` ${whole(n)} px`));
  return [
    element("dl", { class: "facts" }, ...cards),
    element("div", { class: "columns" },
      element("div", {}, element("h3", {}, "IoU by class"), element("ul", { class: "plain" }, ...classes)),
      element("div", {}, element("h3", {}, "Confusions"), pairs.length ? element("ul", { class: "plain" }, ...pairs) : element("p", {}, "none")))];
}

function drawViewer() {
  const image = REPORT.images[viewer.list[viewer.place]];
  byId("viewer-name").textContent = image.id;
  byId("viewer-place").textContent = `${viewer.place + 1} of ${viewer.list.length}`;
  drawStage();
  byId("viewer-facts").replaceChildren(...facts(image));
}

"use strict";
// The images: sorted, filtered by class, by confusion and by name; thumbnails are made and loaded on demand.

const chosen = { class: "", given: "", predicted: "", text: "", order: "worst" };
let grid = null;

function orders() {
  const list = [["worst", "worst mIoU first"], ["best", "best mIoU first"], ["accuracy", "lowest pixel accuracy first"], ["quality", "lowest label quality first"], ["id", "by name"]];
  if (REPORT.scores.runs[1]) {
    const [one, other] = REPORT.scores.runs.map((run) => run.name);
    list.push(["differ", "most pixels that differ first"], ["ahead", `${one} most ahead first`], ["behind", `${other} most ahead first`]);
  }
  list.push(["filter", "most of the chosen class or confusion first"]);
  return list;
}

function pixelsOf(image) {
  const { class: k, given, predicted } = chosen;
  if (given !== "" || predicted !== "") {
    return image.pairs.filter(([t, p]) => (given === "" || t === given) && (predicted === "" || p === predicted)).reduce((sum, entry) => sum + entry[2], 0);
  }
  if (k === "") return 0;
  const entry = image.classes.find((c) => c[0] === k);
  return entry ? entry[1] + entry[2] - entry[3] : 0;
}

function iouOf(image, k) {
  const entry = image.classes.find((c) => c[0] === k);
  const union = entry ? entry[1] + entry[2] - entry[3] : 0;
  return union ? entry[3] / union : null;
}

function sortKey(image) {
  switch (chosen.order) {
    case "best": return image.iou === null ? null : -image.iou;
    case "accuracy": return image.accuracy;
    case "quality": return image.quality;
    case "differ": return image.differ === null ? null : -image.differ;
    case "ahead": return difference(image.iou2, image.iou);
    case "behind": return difference(image.iou, image.iou2);
    case "filter": return -pixelsOf(image);
    default: return image.iou;
  }
}

function found() {
  const words = chosen.text.toLowerCase();
  const filtered = chosen.class !== "" || chosen.given !== "" || chosen.predicted !== "";
  const list = [];
  REPORT.images.forEach((image, index) => {
    if (words && !image.id.toLowerCase().includes(words)) return;
    if (chosen.class !== "" && !image.classes.some((c) => c[0] === chosen.class)) return;
    if (filtered && !pixelsOf(image)) return;
    list.push([sortKey(image), index]);
  });
  if (chosen.order === "id") return list.map((e) => e[1]).sort((a, b) => REPORT.images[a].id.localeCompare(REPORT.images[b].id));
  list.sort((a, b) => {
    if (a[0] === null || b[0] === null) return (a[0] === null) - (b[0] === null);
    return a[0] - b[0];
  });
  return list.map((entry) => entry[1]);
}

function tile(list) {
  return (index, place) => {
    const image = REPORT.images[index];
    const lines = [element("span", { class: "id" }, image.id), element("span", {}, `mIoU ${withUnit(image.iou)}`)];
    if (image.iou2 !== null) lines.push(element("span", {}, `${signed(difference(image.iou, image.iou2))} against ${REPORT.scores.runs[1].name}, ${percent(image.differ)} % differ`));
    if (chosen.class !== "") lines.push(element("span", {}, `${className(chosen.class)} ${withUnit(iouOf(image, chosen.class))}`));
    if (chosen.given !== "" || chosen.predicted !== "") lines.push(element("span", {}, `${whole(pixelsOf(image))} px`));
    const picturePart = element("img", { src: picture("thumbnail", index), alt: "", loading: "lazy", width: image.size[1], height: image.size[0] });
    const button = element("button", { type: "button", class: "tile", onclick: () => openViewer(list, place) }, picturePart, ...lines);
    return element("li", {}, button);
  };
}

function drawImages() {
  const list = found();
  byId("image-count").textContent = `${whole(list.length)} of ${whole(REPORT.images.length)} images`;
  if (grid) grid.stop();
  grid = onDemand(byId("grid"), byId("grid-end"), list, tile(list));
}

// Arrow keys go from tile to tile.
function gridKey(event) {
  const tiles = [...byId("grid").querySelectorAll("button")];
  const at = tiles.indexOf(document.activeElement);
  if (at < 0) return;
  const top = tiles[0].offsetTop;
  const across = Math.max(1, tiles.findIndex((t) => t.offsetTop > top));
  const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -across, ArrowDown: across }[event.key];
  if (!by) return;
  event.preventDefault();
  grid.upTo(at + by);
  const target = byId("grid").querySelectorAll("button")[at + by];
  if (target) target.focus();
}

function showImages() {
  const names = REPORT.scores.classes.map((c, k) => [String(k), c.name]);
  const select = (key, first) => {
    const made = element("select", { id: `filter-${key}`, onchange: () => { chosen[key] = made.value === "" ? "" : Number(made.value); drawImages(); } });
    options(made, [["", first], ...names]);
    return made;
  };
  const order = element("select", { id: "filter-order", onchange: () => { chosen.order = order.value; drawImages(); } });
  options(order, orders());
  const text = element("input", { type: "search", id: "filter-text", oninput: () => { chosen.text = text.value; drawImages(); } });
  byId("images").append(
    element("form", { class: "controls", "aria-label": "Filters", onsubmit: (event) => event.preventDefault() },
      labelled("order", order), labelled("class", select("class", "any")), labelled("labelled", select("given", "any")),
      labelled("predicted", select("predicted", "any")), labelled("name", text),
      element("button", { type: "button", id: "filter-reset", onclick: () => showImagesOf({}) }, "Reset")),
    element("p", { id: "image-count", class: "faint", role: "status" }, "loading ..."),
    element("ul", { id: "grid", class: "grid", "aria-label": "Images", onkeydown: gridKey }),
    element("div", { id: "grid-end", class: "end", "aria-hidden": "true" }));
  showChosen();
  whenImages(drawImages);
}

function showChosen() {
  for (const key of ["class", "given", "predicted", "text", "order"]) byId(`filter-${key}`).value = String(chosen[key]);
}

// Shows the images of a class or of a confusion; of nothing: all.
function showImagesOf(filter) {
  const order = "class" in filter ? "worst" : "given" in filter ? "filter" : "worst";
  Object.assign(chosen, { class: "", given: "", predicted: "", text: "", order }, filter);
  const made = !shown.images;
  showTab("images");
  if (made) {
    showChosen();
    whenImages(drawImages);
  }
  byId("tab-images").focus();
}

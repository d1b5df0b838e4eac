"use strict";
// Scores by class: the table, and IoU against frequency.

const MEASURES = [
  ["iou", "IoU %", "right pixels over labelled or predicted ones"],
  ["accuracy", "accuracy %", "right pixels over labelled ones"],
  ["precision", "precision %", "right pixels over predicted ones"],
  ["boundary", "boundary IoU %", "IoU of the bands along the contours, 2 % of the diagonal wide"],
  ["small", "small objects %", "small objects (below 0.1 % of the image) of which half the pixels are found"],
];

function headline() {
  const { runs } = REPORT.scores;
  const names = [["mIoU", "mIoU"], ["pixel_accuracy", "pixel accuracy"], ["mean_accuracy", "mean accuracy"], ["boundary_IoU", "boundary IoU"], ["small_object_recall", "small objects"]];
  const cards = names.map(([key, name]) => {
    const other = runs[1] ? element("span", { class: "other" }, `${percent(runs[1].scores[key])} ${runs[1].name}`) : null;
    return element("div", { class: "card" }, element("dt", {}, name), element("dd", {}, withUnit(runs[0].scores[key]), other));
  });
  return element("dl", { class: "cards" }, ...cards);
}

function classTable() {
  const { classes, runs, labelled_pixels: all } = REPORT.scores;
  const open = (k) => () => showImagesOf({ class: k });
  const columns = [{
    name: "class", up: true, value: (k) => className(k),
    cell: (k) => element("button", { type: "button", class: "link", onclick: open(k), title: "show its images" }, chip(k)),
  }];
  for (const [key, name, title] of MEASURES) {
    columns.push({ name, title, number: true, value: (k) => classes[k][key], cell: (k) => percent(classes[k][key]) });
    if (!runs[1]) continue;
    const gain = (k) => difference(classes[k][key], classes[k].other[key]);
    columns.push({
      name: "gain", title: `${name}: ${runs[0].name} less ${runs[1].name}`, number: true, value: gain,
      cell: (k) => element("span", { class: gain(k) === null ? "" : gain(k) < 0 ? "less" : "more" }, signed(gain(k))),
    });
  }
  columns.push({ name: "labelled pixels", number: true, value: (k) => classes[k].labelled, cell: (k) => whole(classes[k].labelled) });
  columns.push({ name: "share %", number: true, value: (k) => classes[k].labelled, cell: (k) => percent(all ? classes[k].labelled / all : null, 2) });
  columns.push({ name: "predicted pixels", number: true, value: (k) => classes[k].predicted, cell: (k) => whole(classes[k].predicted) });
  return sortable(`Scores by class of ${runs[0].name}; a click on a class shows its images`, columns, classes.map((_, k) => k), 1);
}

// For those who do not hover: what the columns' titles say.
function meanings() {
  const { runs } = REPORT.scores;
  const gain = runs[1] ? [["", "gain", `${runs[0].name} less ${runs[1].name}`]] : [];
  const terms = [...MEASURES, ...gain].flatMap(([, name, text]) => [element("dt", {}, name), element("dd", {}, text)]);
  return element("details", {}, element("summary", {}, "What the columns mean"), element("dl", { class: "meanings" }, ...terms));
}

function scatter() {
  const { classes, runs, labelled_pixels: all } = REPORT.scores;
  const present = classes.map((c, k) => [c, k]).filter(([c]) => c.labelled && c.iou !== null);
  if (!present.length) return element("p", { class: "faint" }, "No class is labelled.");
  const shares = present.map(([c]) => Math.log10(c.labelled / all));
  const low = Math.floor(Math.min(...shares));
  const x = { low, high: 0, ticks: [...Array(1 - low).keys()].map((i) => low + i), text: (t) => `${Number((10 ** (t + 2)).toPrecision(1))} %`, name: "share of the labelled pixels" };
  const y = { low: 0, high: 1, ticks: ticks(0, 1), text: (t) => (100 * t).toFixed(0), name: "IoU %" };
  const { picture, px, py, width } = axes(x, y, "IoU of each class against its share of the labelled pixels; the values are in the table");
  // Left, right and baseline of the dots and the names: the next name goes below those that it would cover.
  const taken = present.map(([c], i) => [px(shares[i]) - 7, px(shares[i]) + 7, py(c.iou) + 4]);
  present.forEach(([c, k], i) => {
    const [left, top] = [px(shares[i]), py(c.iou)];
    if (c.other && c.other.iou !== null) {
      picture.append(svg("line", { x1: left, x2: left, y1: top, y2: py(c.other.iou), class: "gap" }));
      picture.append(svg("circle", { cx: left, cy: py(c.other.iou), r: 3, class: "hollow" }));
    }
    const dot = svg("circle", { cx: left, cy: top, r: 6, class: "point", fill: `rgb(${c.colour.join(",")})` });
    dot.append(svg("title", {}, `${c.name}: IoU ${percent(c.iou)} %, ${percent(c.labelled / all, 2)} % of the pixels`));
    dot.addEventListener("click", () => showImagesOf({ class: k }));
    picture.append(dot);
  });
  if (present.length <= 40) present.forEach(([c], i) => {
    const [left, top] = [px(shares[i]), py(c.iou)];
    const flip = left > width - 100;
    const name = c.name.length > 18 ? `${c.name.slice(0, 17)}…` : c.name;
    const from = flip ? left - 9 - 7 * name.length : left + 9;
    const to = from + 7 * name.length;
    let line = top + 4;
    while (taken.some(([a, b, y]) => a < to && from < b && Math.abs(y - line) < 13)) line += 13;
    taken.push([from, to, line]);
    picture.append(svg("text", { x: flip ? to : from, y: line, class: `name ${flip ? "end" : ""}` }, name));
  });
  const hollow = runs[1] ? ` Small circles: ${runs[1].name}.` : "";
  return element("figure", {}, element("figcaption", {}, `IoU against class frequency.${hollow}`), picture);
}

function showClasses() {
  byId("classes").append(headline(), classTable(), meanings(), scatter());
}

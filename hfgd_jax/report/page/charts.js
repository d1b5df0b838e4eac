"use strict";
// Small charts as SVG; what they show is in tables too.

function svg(name, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function ticks(low, high, count = 5) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough);
  const found = [];
  for (let t = Math.ceil(low / step) * step; t <= high + step / 1e6; t += step) found.push(Number(t.toPrecision(6)));
  return found;
}

// Axes with a scale each; `x` and `y` are {low, high, ticks, text, name}.
function axes(x, y, label, height = 340) {
  const width = Math.max(320, Math.min(640, innerWidth - 24)); // on a phone no wider than it: its text is not reduced
  const edge = { left: 52, right: 28, top: 12, bottom: 44 };
  const px = (v) => edge.left + ((v - x.low) / (x.high - x.low || 1)) * (width - edge.left - edge.right);
  const py = (v) => height - edge.bottom - ((v - y.low) / (y.high - y.low || 1)) * (height - edge.top - edge.bottom);
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "chart", role: "img", "aria-label": label });
  for (const t of y.ticks) {
    picture.append(svg("line", { x1: edge.left, x2: width - edge.right, y1: py(t), y2: py(t), class: "grid" }));
    picture.append(svg("text", { x: edge.left - 6, y: py(t) + 4, class: "tick end" }, y.text(t)));
  }
  for (const t of x.ticks) {
    picture.append(svg("line", { x1: px(t), x2: px(t), y1: edge.top, y2: height - edge.bottom, class: "grid" }));
    picture.append(svg("text", { x: px(t), y: height - edge.bottom + 16, class: "tick middle" }, x.text(t)));
  }
  picture.append(svg("text", { x: (edge.left + width) / 2, y: height - 6, class: "tick middle" }, x.name));
  const turned = `translate(14 ${(height - edge.bottom) / 2}) rotate(-90)`;
  picture.append(svg("text", { transform: turned, class: "tick middle" }, y.name));
  return { picture, px, py, width };
}

// One or two runs' values by step.
function curves(name, runs, key) {
  const lines = runs.map((run) => run.curves[key] || []);
  const points = lines.flat();
  if (!points.length) return element("p", { class: "faint" }, `${name}: none in metrics.jsonl`);
  const values = points.map((p) => p[1]);
  const steps = points.map((p) => p[0]);
  const range = { low: Math.min(...values), high: Math.max(...values) };
  if (range.low === range.high) range.high = range.low + 1;
  const last = Math.max(...steps);
  const x = { low: 0, high: last, ticks: ticks(0, last), text: String, name: "step" };
  const y = { ...range, ticks: ticks(range.low, range.high), text: String, name };
  const ends = lines.map((line, i) => (line.length ? `${runs[i].name} ends at ${line.at(-1)[1].toPrecision(4)}` : ""));
  const { picture, px, py } = axes(x, y, `${name} by step; ${ends.filter(Boolean).join("; ")}`);
  lines.forEach((line, i) => {
    const d = line.map((p, j) => `${j ? "L" : "M"}${px(p[0]).toFixed(1)} ${py(p[1]).toFixed(1)}`).join("");
    picture.append(svg("path", { d, class: `line run${i}` }));
    if (line.length < 40) line.forEach((p) => picture.append(svg("circle", { cx: px(p[0]), cy: py(p[1]), r: 3, class: `dot run${i}` })));
  });
  const keys = runs.length > 1 ? runs.map((run, i) => element("span", { class: `key run${i}` }, run.name)) : [];
  return element("figure", {}, element("figcaption", {}, `${name} by step`, ...keys), picture);
}

"use strict";
// The confusion matrix as a heat map, and its largest entries as a table.

function heatMap(said) {
  const { matrix, classes } = REPORT.scores;
  const count = classes.length;
  const cell = Math.max(4, Math.min(40, Math.floor(560 / count)));
  const edge = cell >= 14 ? 96 : 24;
  const side = edge + cell * count;
  const sums = matrix.map((row) => row.reduce((a, b) => a + b, 0));
  const share = (t, p) => (sums[t] ? matrix[t][p] / sums[t] : 0);
  const canvas = element("canvas", { role: "img", class: "heat", "aria-label": "Confusion matrix: rows are labels, columns predictions; its largest entries are in the table" });
  const dense = Math.min(3, window.devicePixelRatio || 1);
  canvas.width = canvas.height = side * dense;
  canvas.style.setProperty("max-width", `${side}px`);
  function draw() {
    const pen = canvas.getContext("2d");
    pen.setTransform(dense, 0, 0, dense, 0, 0);
    pen.clearRect(0, 0, side, side);
    pen.font = "11px system-ui, sans-serif";
    const [paper, right, wrong, ink] = ["--panel", "--right", "--wrong", "--ink"].map(colour);
    for (let t = 0; t < count; t++) {
      for (let p = 0; p < count; p++) {
        const [left, top, part] = [edge + p * cell, edge + t * cell, share(t, p)];
        pen.globalAlpha = 1;
        pen.fillStyle = paper;
        pen.fillRect(left, top, cell, cell);
        pen.globalAlpha = Math.sqrt(part); // small shares are to be seen
        pen.fillStyle = t === p ? right : wrong;
        pen.fillRect(left, top, cell - (cell > 8), cell - (cell > 8));
        pen.globalAlpha = 1;
        if (cell >= 26 && part >= 0.005) {
          pen.fillStyle = Math.sqrt(part) > 0.6 ? colour("--on-heat") : ink;
          pen.textAlign = "center";
          pen.fillText((100 * part).toFixed(part < 0.1 ? 1 : 0), left + cell / 2, top + cell / 2 + 4);
        }
      }
    }
    pen.fillStyle = ink;
    const short = (name) => (name.length > 13 ? `${name.slice(0, 12)}…` : name);
    if (cell >= 14) {
      for (let k = 0; k < count; k++) {
        pen.textAlign = "right";
        pen.fillText(short(className(k)), edge - 6, edge + k * cell + cell / 2 + 4);
        pen.save();
        pen.translate(edge + k * cell + cell / 2 + 4, edge - 6);
        pen.rotate(-Math.PI / 2);
        pen.textAlign = "left";
        pen.fillText(short(className(k)), 0, 0);
        pen.restore();
      }
    } else {
      pen.textAlign = "left";
      pen.fillText("prediction →", edge, 14);
      pen.save();
      pen.translate(14, edge + 70);
      pen.rotate(-Math.PI / 2);
      pen.fillText("← label", 0, 0);
      pen.restore();
    }
  }
  function at(event) {
    const box = canvas.getBoundingClientRect();
    const factor = side / box.width;
    const p = Math.floor(((event.clientX - box.left) * factor - edge) / cell);
    const t = Math.floor(((event.clientY - box.top) * factor - edge) / cell);
    return t >= 0 && p >= 0 && t < count && p < count ? [t, p] : null;
  }
  canvas.addEventListener("mousemove", (event) => {
    const place = at(event);
    if (!place) return;
    const [t, p] = place;
    said.textContent = `${className(t)}, predicted as ${className(p)}: ${whole(matrix[t][p])} pixels, ${percent(share(t, p))} % of the label`;
  });
  canvas.addEventListener("click", (event) => {
    const place = at(event);
    if (place && place[0] !== place[1]) showImagesOf({ given: place[0], predicted: place[1] });
  });
  themeListeners.push(draw);
  draw();
  return canvas;
}

function showConfusions() {
  const { matrix, largest } = REPORT.scores;
  const said = element("p", { class: "faint", "aria-live": "polite" }, "Rows are labels, columns predictions; each cell is its share of the row in percent. A click on a cell shows its images.");
  const open = (row) => () => showImagesOf({ given: row[0], predicted: row[1] });
  const sums = matrix.map((row) => row.reduce((a, b) => a + b, 0));
  const columns = [
    { name: "label → prediction", up: true, value: (r) => `${className(r[0])} ${className(r[1])}`, cell: (r) => element("button", { type: "button", class: "link", onclick: open(r), title: "show its images" }, pair(r[0], r[1])) },
    { name: "pixels", number: true, value: (r) => r[2], cell: (r) => whole(r[2]) },
    { name: "of the label %", number: true, value: (r) => r[2] / sums[r[0]], cell: (r) => percent(r[2] / sums[r[0]], 2) },
    { name: "of all errors %", number: true, value: (r) => r[2], cell: (r) => percent(r[2] / REPORT.scores.wrong_pixels, 2) },
  ];
  byId("confusions").append(
    element("div", { class: "columns" },
      element("div", {}, element("h2", {}, "Confusion matrix"), heatMap(said), said),
      element("div", {}, element("h2", {}, "Largest confusions"), largest.length ? sortable("By label and prediction; a click shows the images", columns, largest, 1) : element("p", {}, "No pixel is wrong."))),
  );
}

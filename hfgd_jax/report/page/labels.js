"use strict";
// Labels that the model doubts: regions, and whole images.

function regionTable(rows) {
  const open = (row) => () => openViewer(rows.map((r) => r.image), rows.indexOf(row), row.region);
  const columns = [
    {
      name: "image", up: true, value: (r) => REPORT.images[r.image].id,
      cell: (r) => element("button", { type: "button", class: "row link", onclick: open(r) },
        element("img", { src: picture("thumbnail", r.image), alt: "", loading: "lazy", class: "small", width: 80, height: 60 }), element("span", { class: "id" }, REPORT.images[r.image].id)),
    },
    { name: "score", number: true, title: "evidence: sum over the region's inner pixels of how much likelier the suggested class is, per 10,000 of the image's pixels", value: (r) => r.region.score, cell: (r) => (10000 * r.region.score).toFixed(1) },
    { name: "label → suggested", up: true, value: (r) => `${className(r.region.given)} ${className(r.region.suggested)}`, cell: (r) => pair(r.region.given, r.region.suggested) },
    { name: "pixels", number: true, value: (r) => r.region.pixels, cell: (r) => whole(r.region.pixels) },
    { name: "of the image %", number: true, value: (r) => r.region.share, cell: (r) => percent(r.region.share, 2) },
    { name: "confidence %", number: true, value: (r) => r.region.confidence, cell: (r) => percent(r.region.confidence) },
  ];
  return sortable("Regions whose label the model doubts", columns, rows, 1);
}

function qualityTable(indices) {
  const open = (index) => () => openViewer(indices, indices.indexOf(index));
  const columns = [
    {
      name: "image", up: true, value: (i) => REPORT.images[i].id,
      cell: (i) => element("button", { type: "button", class: "row link", onclick: open(i) },
        element("img", { src: picture("thumbnail", i), alt: "", loading: "lazy", class: "small", width: 80, height: 60 }), element("span", { class: "id" }, REPORT.images[i].id)),
    },
    { name: "label quality", number: true, up: true, title: "softmin of the self-confidence (cleanlab)", value: (i) => REPORT.images[i].quality, cell: (i) => (REPORT.images[i].quality === null ? "n/a" : REPORT.images[i].quality.toFixed(4)) },
    { name: "pixel accuracy %", number: true, value: (i) => REPORT.images[i].accuracy, cell: (i) => percent(REPORT.images[i].accuracy) },
    { name: "regions", number: true, value: (i) => REPORT.images[i].regions.length, cell: (i) => whole(REPORT.images[i].regions.length) },
  ];
  return sortable("Images by the quality of their labels", columns, indices, 1);
}

function showLabels() {
  const part = byId("labels");
  part.append(element("p", {}, `Where the model has another class than the label and gives the label's class a probability of at most ${percent(REPORT.scores.options.doubt)} %, look: the label may be wrong, or the model. Of the data that it was trained on a model may have learned the errors.`),
    element("p", {}, "As tables: ", element("a", { href: "label_regions.csv" }, "label_regions.csv"), ", ", element("a", { href: "label_images.csv" }, "label_images.csv")));
  whenImages(() => {
    const rows = REPORT.images.flatMap((image, index) => image.regions.map((region) => ({ image: index, region })));
    rows.sort((a, b) => b.region.score - a.region.score);
    const indices = REPORT.images.map((_, i) => i);
    part.append(
      element("h2", {}, "Regions"), rows.length ? regionTable(rows) : element("p", {}, "The model rules out no label."),
      element("details", {}, element("summary", {}, "Whole images, by cleanlab's score"), qualityTable(indices)));
  });
}

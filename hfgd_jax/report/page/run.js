"use strict";
// What was run: settings, versions and curves.

function facing(caption, maps, names) {
  const keys = [...new Set(maps.flatMap((map) => Object.keys(map)))].sort();
  const text = (value) => (value === undefined ? "(default)" : typeof value === "string" ? value : JSON.stringify(value));
  const rows = keys.map((key) => element("tr", {}, element("th", { scope: "row" }, key), ...maps.map((map) => element("td", {}, text(map[key])))));
  const head = element("tr", {}, element("th", { scope: "col" }, "name"), ...names.map((name) => element("th", { scope: "col" }, name)));
  const table = element("table", {}, element("caption", {}, element("span", {}, caption)), element("thead", {}, head), element("tbody", {}, ...rows));
  return element("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": caption }, table);
}

function showRun() {
  const { runs, versions, options: kept } = REPORT.scores;
  const names = runs.map((run) => run.name);
  byId("run").append(
    element("h2", {}, "Curves"), element("div", { class: "columns" }, curves("loss", runs, "loss"), curves("mIoU", runs, "mIoU")),
    element("h2", {}, "Evaluation"), facing("How the images were predicted", runs.map((run) => ({ ...run.settings, "checkpoint's step": run.step })), names),
    element("h2", {}, "Config"), facing("Fields that are not the defaults", runs.map((run) => run.fields), names),
    element("h2", {}, "Versions and machine"), facing("Where the report was made", [versions], ["value"]),
    element("h2", {}, "Report"), facing("What is kept of an image", [kept], ["value"]));
}

"use strict";
// Tables that are sorted by a click on a column's name; rows are made as they come into sight.

// columns: {name, value: row -> number, string or null, cell: row -> node or text, number: bool, up: bool}
function sortable(caption, columns, rows, start = 0) {
  const body = element("tbody");
  const end = element("div", { class: "end", "aria-hidden": "true" });
  let by = start;
  let up = Boolean(columns[start].up);
  let list = null;
  const heads = columns.map((column, i) => {
    const press = () => {
      up = by === i ? !up : Boolean(column.up);
      by = i;
      fill();
    };
    const button = element("button", { type: "button", onclick: press }, column.name.replace(" %", "\u00a0%"));
    return element("th", { scope: "col", class: column.number ? "number" : null, title: column.title }, button);
  });
  function row(item) {
    const cells = columns.map((column, i) => {
      const content = column.cell(item);
      return element(i ? "td" : "th", { scope: i ? null : "row", class: column.number ? "number" : null }, content);
    });
    return element("tr", {}, ...cells);
  }
  function fill() {
    const value = columns[by].value;
    const sign = up ? 1 : -1;
    const order = rows.slice().sort((a, b) => {
      const [p, q] = [value(a), value(b)];
      if (p === null || q === null) return (p === null) - (q === null); // what is missing comes last
      return sign * (typeof p === "string" ? p.localeCompare(q) : p - q);
    });
    heads.forEach((head, i) => {
      if (i === by) head.setAttribute("aria-sort", up ? "ascending" : "descending");
      else head.removeAttribute("aria-sort");
    });
    if (list) list.stop();
    list = onDemand(body, end, order, row);
  }
  fill();
  const made = element("table", {}, element("caption", {}, element("span", {}, caption)), element("thead", {}, element("tr", {}, ...heads)), body);
  return element("div", {}, element("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": caption }, made), end);
}

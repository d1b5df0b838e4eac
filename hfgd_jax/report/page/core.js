"use strict";
// What all parts of the page share. Text goes into the page as text, never as markup.

const REPORT = { scores: null, images: null };

function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (key === "class") made.className = value;
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

const byId = (id) => document.getElementById(id);
const percent = (value, digits = 1) => (value === null || value === undefined ? "n/a" : (100 * value).toFixed(digits));
const withUnit = (value) => (value === null ? "n/a" : `${percent(value)} %`);
const signed = (value) => (value === null ? "n/a" : (value > 0 ? "+" : "") + (100 * value).toFixed(1));
const whole = (value) => value.toLocaleString("en-US");
const difference = (one, other) => (one === null || other === null ? null : one - other);
const className = (k) => REPORT.scores.classes[k].name;

function chip(k) {
  const square = element("span", { class: "chip", "aria-hidden": "true" });
  square.style.setProperty("--colour", `rgb(${REPORT.scores.classes[k].colour.join(",")})`);
  return element("span", { class: "class" }, square, className(k));
}

function pair(given, predicted) {
  const arrow = element("span", { "aria-hidden": "true" }, " → ");
  const words = element("span", { class: "unseen" }, " labelled, predicted ");
  return element("span", { class: "pair" }, chip(given), words, arrow, chip(predicted));
}

function options(select, choices) {
  select.replaceChildren(...choices.map(([value, text]) => element("option", { value }, text)));
}

function labelled(text, control) {
  return element("label", { class: "field" }, element("span", {}, text), control);
}

// A long list is made as it is scrolled into sight.
function onDemand(list, end, items, make, chunk = 60) {
  let made = 0;
  const more = () => {
    list.append(...items.slice(made, made + chunk).map((item, i) => make(item, made + i)));
    made = Math.min(made + chunk, items.length);
    if (made === items.length) watch.disconnect();
  };
  const watch = new IntersectionObserver((seen) => {
    if (!seen.some((entry) => entry.isIntersecting)) return;
    more();
    watch.unobserve(end); // seen again where it is still in sight
    if (made < items.length) watch.observe(end);
  }, { rootMargin: "600px" });
  list.replaceChildren();
  more();
  if (made < items.length) watch.observe(end);
  return { stop: () => watch.disconnect(), upTo: (n) => { while (made <= n && made < items.length) more(); } };
}

// The images' data is large: it is loaded after the first table is there.
let waiting = null;
function whenImages(then) {
  if (REPORT.images) return then();
  if (!waiting) {
    waiting = [];
    const script = element("script", { src: "data/images.js" });
    script.addEventListener("load", () => waiting.forEach((call) => call()));
    script.addEventListener("error", () => {
      byId("about").textContent += " - data/images.js is missing";
    });
    document.head.append(script);
  }
  return waiting.push(then);
}

const THEMES = ["system", "light", "dark"];
const themeListeners = [];
function kept(name, value) { // storage may be off for files
  try {
    if (value !== undefined) localStorage.setItem(name, value);
    return localStorage.getItem(name);
  } catch { return null; }
}
function setTheme(name) {
  const theme = THEMES.includes(name) ? name : "system";
  document.documentElement.dataset.theme = theme;
  const button = byId("theme");
  if (button) button.textContent = `Theme: ${theme}`;
  themeListeners.forEach((call) => call());
}
setTheme(kept("hfgd-report-theme"));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => themeListeners.forEach((call) => call()));
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

const shown = {}; // what to call when a tab is first shown
function showTab(name) {
  for (const tab of document.querySelectorAll("[role=tab]")) {
    const chosen = tab.id === `tab-${name}`;
    tab.setAttribute("aria-selected", String(chosen));
    tab.tabIndex = chosen ? 0 : -1;
    byId(tab.getAttribute("aria-controls")).hidden = !chosen;
  }
  if (shown[name]) {
    const call = shown[name];
    delete shown[name];
    call();
  }
}

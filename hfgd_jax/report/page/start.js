"use strict";
// Puts the page together; the first table needs the scores alone.

(function start() {
  const { runs, dataset, split, images } = REPORT.scores;
  const title = runs.map((run) => run.name).join(" and ");
  document.title = `${title}: error report`;
  byId("about").textContent = `${runs.map((run) => `${run.name}, step ${run.step}`).join("; ")}: ${dataset}/${split}, ${whole(images)} images`;
  byId("theme").addEventListener("click", () => {
    const next = THEMES[(THEMES.indexOf(document.documentElement.dataset.theme) + 1) % THEMES.length];
    kept("hfgd-report-theme", next);
    setTheme(next);
  });
  setTheme(document.documentElement.dataset.theme);
  Object.assign(shown, { classes: showClasses, confusions: showConfusions, images: showImages, labels: showLabels, run: showRun });
  const tabs = [...document.querySelectorAll("[role=tab]")];
  for (const tab of tabs) tab.addEventListener("click", () => showTab(tab.id.slice(4)));
  byId("tabs").addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const ends = { Home: 0, End: tabs.length - 1 }[event.key];
    if (by === undefined && ends === undefined) return;
    event.preventDefault();
    const next = ends ?? (tabs.indexOf(document.activeElement) + by + tabs.length) % tabs.length;
    showTab(tabs[next].id.slice(4));
    tabs[next].focus();
  });
  showTab("classes");
  requestAnimationFrame(() => setTimeout(() => whenImages(() => {}), 0));
})();

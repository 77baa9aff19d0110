// What the page does beyond being read: it filters the queries, marks the section in view, and opens all for print.
"use strict";

const STEP = 20;

for (const gallery of document.querySelectorAll(".gallery")) {
  const queries = [...gallery.querySelectorAll(".q")];
  const filters = gallery.querySelector(".filters");
  const [ranking, ofClass] = filters.querySelectorAll("select");
  const misses = filters.querySelector("input");
  const count = gallery.querySelector(".count");
  const more = gallery.querySelector(".more");
  let most = STEP;

  const passing = () => queries.filter((query) =>
    query.dataset.r === ranking.value
    && (ofClass.value === "" || query.dataset.c === ofClass.value)
    && (!misses.checked || "miss" in query.dataset));

  function show() {
    const shown = passing();
    const first = new Set(shown.slice(0, most));
    for (const query of queries) query.hidden = !first.has(query);
    more.hidden = shown.length <= most;
    const what = shown.length === 1 ? "query" : "queries";
    count.textContent = shown.length === 0 ? "No query passes these filters."
      : `${first.size} of ${shown.length} ${what} shown.`;
    return shown;
  }

  filters.addEventListener("change", () => { most = STEP; show(); });
  more.querySelector("button").addEventListener("click", () => {
    const next = most;
    most += STEP;
    // The button may vanish: who came by keyboard goes on at the first query that is new.
    const query = show()[next];
    query.tabIndex = -1;
    query.focus({ preventScroll: true });
  });

  gallery.classList.add("filtered");
  filters.hidden = false;
  show();
}

const links = new Map([...document.querySelectorAll("nav a")].map((link) => [link.hash.slice(1), link]));
const inView = new Set();
const observer = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (isIntersecting) inView.add(target.id); else inView.delete(target.id);
  }
  const current = [...links.keys()].find((id) => inView.has(id));
  for (const [id, link] of links) {
    if (id === current) link.setAttribute("aria-current", "location"); else link.removeAttribute("aria-current");
  }
}, { rootMargin: "-10% 0px -60% 0px" });
for (const section of document.querySelectorAll("main section")) observer.observe(section);

const closed = new Set();
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details:not([open])")) { closed.add(details); details.open = true; }
});
addEventListener("afterprint", () => {
  for (const details of closed) details.open = false;
  closed.clear();
});

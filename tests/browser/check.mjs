// check.mjs TARGET REPORT.html [TEXT…]: opens a report as people do and says what is wrong with it.
//
// One line for each check. Exit code 1 if one failed, 77 if there is no browser. Each TEXT must be seen on the page.

import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

import { launch, modules } from "./browser.mjs";

const [target, report, ...texts] = process.argv.slice(2);
const browser = await launch(target);
const axe = readFileSync(modules(target).resolve("axe-core/axe.min.js"), "utf8");
let failed = 0;

/** What a page of the report said or asked for that it should not have. */
const complaints = [];

async function open({ width = 1280, scheme = "light", script = true } = {}) {
  const page = await browser.newPage();
  page.on("console", (message) => {
    if (message.type() !== "log") complaints.push(`console ${message.type()}: ${message.text()}`);
  });
  page.on("pageerror", (error) => complaints.push(`error: ${error.message}`));
  page.on("dialog", async (dialog) => { complaints.push(`dialog: ${dialog.message()}`); await dialog.dismiss(); });
  page.on("request", (request) => {
    const url = request.url();
    if (!url.startsWith("data:") && url !== pathToFileURL(report).href) complaints.push(`request: ${url.slice(0, 100)}`);
  });
  await page.setViewport({ width, height: 900 });
  await page.setJavaScriptEnabled(script);
  await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
  await page.goto(pathToFileURL(report).href);
  return page;
}

async function check(name, test) {
  const started = Date.now();
  const wrong = await test().catch((error) => [error.stack]);
  if (wrong.length > 0) failed += 1;
  console.log(wrong.length === 0 ? `ok      ${name} (${Date.now() - started} ms)` : `FAILED  ${name}\n        ${wrong.slice(0, 10).join("\n        ")}`);
}

await check("nothing in it can act but the one script", async () => {
  const page = await open();
  const wrong = await page.evaluate(() => {
    const wrong = [];
    for (const element of document.querySelectorAll("*")) {
      for (const { name, value } of element.attributes) {
        if (name.startsWith("on") || name === "style" || /^\s*javascript:/i.test(value)) {
          wrong.push(`${element.tagName} has ${name}="${value.slice(0, 60)}"`);
        }
      }
    }
    const scripts = document.scripts.length;
    if (scripts !== 1) wrong.push(`${scripts} scripts`);
    for (const tag of ["img", "iframe", "object", "link", "base", "form", "a:not([href^='#'])"]) {
      if (document.querySelector(tag)) wrong.push(`a ${tag}: ${document.querySelector(tag).outerHTML.slice(0, 100)}`);
    }
    return wrong;
  });
  // The policy refuses what would be added later, too: its event is what the browser says of it.
  const before = complaints.length;
  const refused = await page.evaluate(() => new Promise((done) => {
    addEventListener("securitypolicyviolation", (event) => done(event.effectiveDirective));
    document.body.append(Object.assign(document.createElement("script"), { textContent: "window.hacked = 1" }));
    setTimeout(() => done("nothing"), 1000);
  }));
  complaints.length = before;
  if (!refused.startsWith("script-src")) wrong.push(`the policy refuses ${refused}, not an added script`);
  await page.close();
  return wrong;
});

await check("text from outside is seen as text", async () => {
  const page = await open({ script: false });
  const seen = await page.evaluate(() => document.body.innerText);
  await page.close();
  return texts.filter((text) => !seen.includes(text)).map((text) => `not seen: ${text}`);
});

await check("every chart has a name, a description and its figures", async () => {
  const page = await open();
  const wrong = await page.$$eval("svg", (charts) => charts.flatMap((chart) => {
    const words = ["title", "desc"].map((tag) => chart.querySelector(tag)?.textContent ?? "");
    const rows = chart.closest("figure")?.querySelectorAll("details tbody tr").length ?? 0;
    const drawn = chart.querySelectorAll("rect, polyline, line, circle").length;
    return words.every(Boolean) && rows > 0 && drawn > 0 ? [] : [`${words.join(" | ")}: ${rows} rows, ${drawn} elements`];
  }));
  await page.close();
  return wrong;
});

await check("every link of the navigation leads to a section", async () => {
  const page = await open();
  const wrong = await page.$$eval("nav a", (links) =>
    links.filter((link) => !document.querySelector(link.hash)?.matches("section")).map((link) => link.hash));
  await page.close();
  return wrong;
});

for (const width of [360, 768, 1280]) {
  await check(`nothing is wider than a window of ${width} pixels, open or closed`, async () => {
    const page = await open({ width });
    const widest = () => page.evaluate(() => {
      if (document.documentElement.scrollWidth <= innerWidth) return [];
      const wide = [...document.querySelectorAll("main *")].filter((element) => element.getBoundingClientRect().right > innerWidth + 1);
      return [`${document.documentElement.scrollWidth} pixels: ${wide[0]?.outerHTML.slice(0, 120)}`];
    });
    const wrong = await widest();
    await page.$$eval("details", (all) => all.forEach((details) => { details.open = true; }));
    wrong.push(...await widest());
    await page.close();
    return wrong;
  });
}

/** The queries that are to be seen by what their attributes say, and those that are seen. */
const filtered = (page) => page.evaluate(() => {
  const gallery = document.querySelector(".gallery");
  const [ranking, ofClass] = gallery.querySelectorAll("select");
  const misses = gallery.querySelector("input").checked;
  const queries = [...gallery.querySelectorAll(".q")];
  const passing = queries.filter((query) => query.dataset.r === ranking.value
    && (!ofClass.value || query.dataset.c === ofClass.value) && (!misses || "miss" in query.dataset));
  const visible = queries.filter((query) => query.checkVisibility());
  return {
    passing: passing.length, visible: visible.length, said: gallery.querySelector("[role=status]").textContent,
    wrong: visible.filter((query) => !passing.includes(query)).length,
    ranking: ranking.value, ofClass: ofClass.value, misses,
  };
});

await check("the filters work by keyboard, and say what they did", async () => {
  const page = await open();
  if (!await page.$(".gallery")) return [];
  const wrong = [];
  const judge = async (step) => {
    const now = await filtered(page);
    const expected = Math.min(now.passing, 20);
    if (now.visible !== expected || now.wrong > 0) wrong.push(`${step}: ${now.visible} of ${expected} seen, ${now.wrong} wrong ones`);
    const said = now.passing === 0 ? "No query" : `${expected} of ${now.passing} `;
    if (!now.said.startsWith(said)) wrong.push(`${step}: says "${now.said}", not "${said}…"`);
    return now;
  };
  const tabTo = async (selector) => {
    for (let presses = 0; presses < 200; presses += 1) {
      if (await page.evaluate((selector) => document.activeElement.matches(selector), selector)) return;
      await page.keyboard.press("Tab");
    }
    wrong.push(`Tab does not reach ${selector}`);
  };
  const start = await judge("at first");
  await tabTo("select[name=ranking]");
  await page.keyboard.press("ArrowDown");
  const other = await judge("another metric");
  if (await page.$$eval("select[name=ranking] option", (all) => all.length) > 1 && other.ranking === start.ranking) {
    wrong.push("the arrow key does not choose another metric");
  }
  await tabTo("select[name=class]");
  await page.keyboard.press("ArrowDown");
  if ((await judge("one class")).ofClass === "") wrong.push("the arrow key does not choose a class");
  await tabTo("input[name=misses]");
  await page.keyboard.press("Space");
  if (!(await judge("only misses")).misses) wrong.push("the space bar does not tick the box");
  await page.keyboard.press("Space");
  await page.select("select[name=class]", "");
  const all = await judge("all again");
  if (all.passing > 20) {
    await page.focus(".more button");
    const started = Date.now();
    await page.keyboard.press("Enter");
    const now = await filtered(page);
    console.log(`        ${Date.now() - started} ms for 20 more of ${all.passing}`);
    if (now.visible !== Math.min(40, all.passing)) wrong.push(`after "Show more" ${now.visible} are seen`);
    const focus = await page.evaluate(() => document.activeElement.className);
    if (focus !== "q") wrong.push(`after "Show more" the focus is on ${focus}`);
  }
  await page.close();
  return wrong;
});

await check("thumbnails have their pictures", async () => {
  const page = await open();
  const wrong = await page.$$eval(".q:not([hidden]) .t:not(.gone)", (all) =>
    all.filter((one) => !getComputedStyle(one).backgroundImage.startsWith("url(\"data:image/jpeg")).map((one) => one.className));
  await page.close();
  return wrong;
});

await check("without scripts all of it can be read", async () => {
  const page = await open({ script: false });
  const wrong = await page.evaluate(() => {
    const wrong = [];
    const hidden = [...document.querySelectorAll(".q")].filter((query) => !query.checkVisibility()).length;
    if (hidden > 0) wrong.push(`${hidden} queries cannot be seen`);
    for (const control of document.querySelectorAll("fieldset, button")) {
      if (control.checkVisibility()) wrong.push(`${control.className || control.tagName} is shown, and does nothing`);
    }
    return wrong;
  });
  await page.close();
  return wrong;
});

await check("paper gets everything but the controls", async () => {
  const page = await open();
  await page.emulateMediaType("print");
  const wrong = await page.evaluate(() => {
    const open = () => document.querySelectorAll("details[open]").length;
    const before = open();
    dispatchEvent(new Event("beforeprint"));
    const wrong = [];
    for (const selector of ["nav", ".filters", ".more"]) {
      if (document.querySelector(selector)?.checkVisibility()) wrong.push(`${selector} is printed`);
    }
    const closed = document.querySelectorAll("details:not([open])").length;
    if (closed > 0) wrong.push(`${closed} closed details`);
    dispatchEvent(new Event("afterprint"));
    if (open() !== before) wrong.push(`${open()} open details after printing, ${before} before`);
    return wrong;
  });
  const pdf = await page.pdf({ format: "a4" });
  if (pdf.length < 10_000) wrong.push(`a PDF of ${pdf.length} bytes`);
  await page.close();
  return wrong;
});

for (const [scheme, width] of [["light", 1280], ["dark", 390]]) {
  await check(`axe finds nothing serious, ${scheme}, ${width} pixels`, async () => {
    const page = await open({ scheme, width });
    await page.$$eval("details", (all) => all.forEach((details) => { details.open = true; }));
    // Nobody meets these, and axe would look at each of their elements.
    await page.$$eval(".q[hidden]", (all) => all.forEach((query) => query.remove()));
    // As the driver runs it, past the page's policy.
    await page.evaluate(axe);
    const violations = await page.evaluate(async () =>
      (await axe.run({ resultTypes: ["violations"] })).violations.map(({ id, impact, help, nodes }) =>
        ({ id, impact, help, count: nodes.length, first: nodes[0].html.slice(0, 160), why: nodes[0].failureSummary })));
    await page.close();
    const serious = violations.filter(({ impact }) => impact === "serious" || impact === "critical");
    for (const { id, impact, count, first } of violations.filter((one) => !serious.includes(one))) {
      console.log(`        ${impact}: ${id}, ${count} times: ${first}`);
    }
    return serious.map(({ id, impact, help, count, first, why }) => `${impact}: ${id} (${help}), ${count} times: ${first}\n${why}`);
  });
}

await check("no error, no warning, no dialog, no request", async () => complaints);
await browser.close();
process.exit(failed === 0 ? 0 : 1);

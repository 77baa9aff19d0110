// screenshots.mjs TARGET REPORT.html FOLDER: the two pictures of a report that the README shows.

import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

import { launch } from "./browser.mjs";

/** A README that loads quickly. */
const MOST_BYTES = 300_000;

const [target, report, folder] = process.argv.slice(2);
const browser = await launch(target);

async function shoot(file, { width, height, scale, scheme, at, ofClass = "" }) {
  const page = await browser.newPage();
  await page.setViewport({ width, height, deviceScaleFactor: scale });
  await page.emulateMediaFeatures([
    { name: "prefers-color-scheme", value: scheme },
    { name: "prefers-reduced-motion", value: "reduce" },
  ]);
  await page.goto(pathToFileURL(report).href);
  await page.select("select[name=class]", ofClass);
  await page.$eval(at, (element) => element.scrollIntoView());
  // The navigation follows the scrolling.
  await new Promise((done) => { setTimeout(done, 300); });
  const png = await page.screenshot();
  if (png.length > MOST_BYTES) throw new Error(`${file} has ${png.length} bytes, more than ${MOST_BYTES}`);
  writeFileSync(join(folder, file), png);
  console.log(`${join(folder, file)}: ${png.length} bytes`);
}

await shoot("report-desktop.png", { width: 1280, height: 1060, scale: 1, scheme: "light", at: "body" });
await shoot("report-phone.png", { width: 390, height: 844, scale: 1.25, scheme: "dark", at: ".filters", ofClass: "9" });
await browser.close();

// Starts the Chromium that setup.sh installed in a folder.

import { spawnSync } from "node:child_process";
import { createRequire } from "node:module";
import { join } from "node:path";

/** What a script exits with where no Chromium can run: a machine's fault, not the page's. */
export const NO_BROWSER = 77;

/** Modules of the folder that setup.sh filled. */
export const modules = (target) => createRequire(join(target, "package.json"));

/** A browser, or the end of the program with NO_BROWSER. */
export async function launch(target) {
  const unpacked = join(target, "unpacked");
  // Its fonts and their cache lie beside it, wherever the folder was moved.
  process.env.FONTCONFIG_FILE = join(unpacked, "fonts.conf");
  process.env.XDG_CACHE_HOME = unpacked;
  const chromium = join(unpacked, "chromium");
  const runs = () => spawnSync(chromium, ["--version"], { encoding: "utf8" });
  let tried = runs();
  if (tried.status !== 0) {
    process.env.LD_LIBRARY_PATH = join(unpacked, "al2023", "lib");
    tried = runs();
  }
  if (tried.status !== 0) {
    console.error(`Chromium does not run here: ${tried.error ?? tried.stderr}`);
    process.exit(NO_BROWSER);
  }
  // No sandbox: containers and root have none, and the only page opened is our own.
  const options = { executablePath: chromium, headless: "shell", protocolTimeout: 60_000, args: ["--no-sandbox", "--disable-dev-shm-usage"] };
  return modules(target)("puppeteer-core").launch(options);
}

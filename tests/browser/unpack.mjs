// unpack.mjs TARGET: takes Chromium, its libraries and a font out of their npm package, into TARGET/unpacked.

import { mkdirSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";

const target = process.argv[2];
const unpacked = join(target, "unpacked");
mkdirSync(unpacked, { recursive: true });
// The package unpacks into the temporary folder, and its libraries only where it believes to be on Amazon's servers.
process.env.TMPDIR = unpacked;
process.env.AWS_EXECUTION_ENV = "AWS_Lambda_nodejs20.x";
const module = createRequire(join(target, "package.json"))("@sparticuz/chromium");
const chromium = module.default ?? module;
await chromium.executablePath();
writeFileSync(join(unpacked, "fonts.conf"), `<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig><dir prefix="relative">fonts</dir><cachedir prefix="xdg">font-cache</cachedir></fontconfig>
`);

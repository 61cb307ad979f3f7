// Bundles src/ and three.js into one file: node build.js [OUTPUT]. The same sources give the same bytes.

import { readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const outfile = process.argv[2] ?? join(here, "../../streamvggt/viewer.js");
const { version } = JSON.parse(readFileSync(join(here, "node_modules/three/package.json"), "utf8"));
const license = readFileSync(join(here, "node_modules/three/LICENSE"), "utf8").trim();

await build({
  absWorkingDir: here,
  entryPoints: ["src/index.js"],
  outfile,
  bundle: true,
  minify: true,
  format: "iife",
  globalName: "StreamVGGT",
  target: "es2022",
  charset: "utf8",
  loader: { ".css": "text" },
  legalComments: "none",
  banner: { js: `/*! Built by 'make viewer' from demo/viewer. Contains three.js ${version}:\n\n${license}\n*/` },
  logLevel: "warning",
});

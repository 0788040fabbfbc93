// After `vite build`: compresses what is served, and fails when the first load grows beyond its bound.
import { readFileSync, readdirSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { gzipSync } from "node:zlib";

const FIRST_LOAD_MAX = 300 * 1024;
const dist = new URL("../dist/", import.meta.url).pathname;

const files = (folder) =>
  readdirSync(folder).flatMap((name) => {
    const path = join(folder, name);
    return statSync(path).isDirectory() ? files(path) : [path];
  });

let first = 0;
const index = readFileSync(join(dist, "index.html"), "utf8");
for (const path of files(dist)) {
  if (path.endsWith(".gz")) continue;
  const packed = gzipSync(readFileSync(path), { level: 9 });
  writeFileSync(`${path}.gz`, packed);
  const name = path.slice(dist.length);
  const isFirst = name === "index.html" || index.includes(name);
  if (isFirst) first += packed.length;
  console.log(`${(packed.length / 1024).toFixed(1).padStart(8)} KiB  ${name}${isFirst ? "" : "  (later)"}`);
}
console.log(`${(first / 1024).toFixed(1).padStart(8)} KiB  first load, compressed; at most ${FIRST_LOAD_MAX / 1024} KiB`);
if (first > FIRST_LOAD_MAX) {
  console.error("the first load is too large: load pages later, or leave something out");
  process.exit(1);
}

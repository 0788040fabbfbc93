// How long each page takes until it shows what it has, and what the browser needs for it.
//   node e2e/weigh.mjs
// FIRMESH_URL and FIRMESH_TOKEN: a coordinator, best one with a large fleet. Prints one JSON object a line and page.
import { readFileSync, readdirSync } from "node:fs";
import { browse } from "./browser.mjs";

const PAGES = ["campaigns", "fleet", "fleet/eu", "fleet/eu/site-0", "mesh", "devices", "devices/d0-0", "artifacts", "audit", "compliance", "settings"];
const url = process.env.FIRMESH_URL;

/** MiB of all processes of this browser, what they share counted once. */
function weight(root) {
  const parents = new Map();
  for (const pid of readdirSync("/proc").filter((name) => /^\d+$/.test(name))) {
    try {
      parents.set(Number(pid), Number(readFileSync(`/proc/${pid}/stat`, "utf8").replace(/^.*\) /, "").split(" ")[1]));
    } catch {
      // It has ended meanwhile.
    }
  }
  const isBelow = (pid) => pid === root || (parents.has(pid) && isBelow(parents.get(pid)));
  const all = { renderer: 0, all: 0 };
  for (const pid of [...parents.keys()].filter((pid) => pid !== root && isBelow(pid))) {
    try {
      const kib = Number(/^Pss:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/smaps_rollup`, "utf8"))?.[1] ?? 0);
      all.all += kib / 1024;
      if (readFileSync(`/proc/${pid}/cmdline`, "utf8").includes("--type=renderer")) all.renderer = Math.max(all.renderer, kib / 1024);
    } catch {
      // The same.
    }
  }
  return all;
}

const browser = await browse();
const context = await browser.newContext({ viewport: { width: 1440, height: 900 } });
await context.addInitScript((token) => sessionStorage.setItem("firmesh-token", token), process.env.FIRMESH_TOKEN);
const page = await context.newPage();
const cdp = await context.newCDPSession(page);
await cdp.send("Performance.enable");
await page.goto(url);
for (const path of PAGES) {
  const slowest = { path: "", ms: 0 };
  const onResponse = (answer) => {
    const ms = answer.request().timing().responseEnd;
    if (new URL(answer.url()).pathname.startsWith("/api/") && ms > slowest.ms) Object.assign(slowest, { path: new URL(answer.url()).pathname, ms: Math.round(ms) });
  };
  page.on("requestfinished", (request) => void request.response().then((answer) => answer && onResponse(answer)));
  const began = Date.now();
  await page.evaluate((to) => {
    history.pushState(null, "", to);
    dispatchEvent(new PopStateEvent("popstate"));
  }, `/${path}`);
  // Until nothing on it says that it is loading any more.
  await page.waitForFunction(() => !!document.querySelector("main h1") && !document.querySelector("main .loading"), undefined, { timeout: 60_000 });
  const shown_ms = Date.now() - began;
  await page.waitForTimeout(1_000);
  const { metrics } = await cdp.send("Performance.getMetrics");
  const metric = (wanted) => metrics.find(({ name }) => name === wanted).value;
  const heap_mib = metric("JSHeapUsedSize") / 2 ** 20;
  const { renderer, all } = weight(process.pid);
  const round = (value) => Math.round(value * 10) / 10;
  console.log(JSON.stringify({ page: path, shown_ms, slowest, heap_mib: round(heap_mib), nodes: metric("Nodes"), tab_mib: round(renderer), browser_mib: round(all) }));
  page.removeAllListeners("requestfinished");
}
await browser.close();

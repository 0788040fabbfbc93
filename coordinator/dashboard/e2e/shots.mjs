// Looks at every page: screenshots in e2e/shots/, wide and narrow, light and dark; axe; errors of the console.
// FIRMESH_URL says where, FIRMESH_TOKEN as whom, PAGES (paths with commas between) what.
import { mkdirSync } from "node:fs";
import { browse, axe } from "./browser.mjs";

const url = process.env.FIRMESH_URL ?? "http://127.0.0.1:8640";
const pages = (process.env.PAGES ?? "/campaigns,/fleet,/mesh,/devices,/artifacts,/audit,/compliance,/settings").split(",");
const folder = new URL("./shots/", import.meta.url).pathname;
mkdirSync(folder, { recursive: true });
const browser = await browse();
let found = 0;
for (const [width, height] of [[1440, 900], [390, 844]]) {
  for (const theme of ["light", "dark"]) {
    const context = await browser.newContext({ viewport: { width, height }, colorScheme: theme });
    if (process.env.FIRMESH_TOKEN) await context.addInitScript((token) => sessionStorage.setItem("firmesh-token", token), process.env.FIRMESH_TOKEN);
    for (const path of pages) {
      const page = await context.newPage();
      page.on("console", (message) => message.type() === "error" && console.log(`${path}: ${message.text()}`));
      page.on("pageerror", (error) => console.log(`${path}: ${error}`));
      await page.goto(url + path);
      await page.waitForSelector("main h1");
      await page.waitForFunction(() => !document.querySelector(".loading"), null, { timeout: 15_000 });
      const name = `${path.replaceAll("/", "_").replace(/[^\w-]/g, "")}-${width}-${theme}.png`;
      const wide = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
      if (wide > 0) console.log(`${path} at ${width}: ${wide} px too wide`);
      await page.screenshot({ path: folder + name, fullPage: true });
      for (const line of await axe(page)) {
        found += 1;
        console.log(`${path} at ${width} ${theme}: ${line}`);
      }
      await page.close();
    }
    await context.close();
  }
}
await browser.close();
console.log(`${found} findings of axe`);
process.exit(found ? 1 : 0);

// Drives a real Chromium against a real coordinator.
//
//   FIRMESH_URL        where it answers
//   FIRMESH_TOKEN      an administrator's proof, such as the content of operator.token
//   FIRMESH_CAMPAIGN   a campaign that is published and not started; without it nothing is started
//   FIRMESH_STOP, FIRMESH_START    commands that stop the coordinator, and start it again; without them neither happens
//   CHROMIUM           the browser, /usr/bin/chromium if absent
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { randomBytes } from "node:crypto";
import { writeFileSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { axe, browse } from "./browser.mjs";

const url = (process.env.FIRMESH_URL ?? "http://127.0.0.1:8640").replace(/\/$/, "");
const token = process.env.FIRMESH_TOKEN;
const campaign = process.env.FIRMESH_CAMPAIGN;
assert.ok(token, "FIRMESH_TOKEN must have an administrator's proof");

const PAGES = ["/campaigns", "/fleet", "/mesh", "/devices", "/artifacts", "/audit", "/compliance", "/settings"];
const browser = await browse();
const trouble = [];

/** A page whose every complaint counts: the console's, the policy's, and a request to anybody else. */
async function open(context, path) {
  const page = await context.newPage();
  page.on("pageerror", (error) => trouble.push(`${path}: ${error}`));
  page.on("console", (message) => {
    const text = message.text();
    const isRefusal = /status of (4|5)\d\d|ERR_|net::/.test(text);
    if (message.type() === "error" && !isRefusal) trouble.push(`${path}: ${text}`);
  });
  page.on("request", (request) => {
    const to = request.url();
    if (!to.startsWith(url) && !to.startsWith("data:") && !to.startsWith("blob:")) trouble.push(`${path} asks ${to}`);
  });
  await page.goto(url + path);
  await settled(page);
  return page;
}

async function settled(page) {
  await page.waitForSelector("main h1");
  await page.waitForFunction(() => !document.querySelector(".loading"), null, { timeout: 20_000 });
}

async function login(page, proof) {
  await page.getByRole("button", { name: "Log in" }).first().click();
  await page.getByLabel("API key or token").fill(proof);
  await page.getByRole("dialog").getByRole("button", { name: "Log in", exact: true }).click();
  await page.getByRole("dialog").waitFor({ state: "detached" });
}

async function confirm(page, button, word) {
  await page.locator(".page-head").getByRole("button", { name: button, exact: true }).click();
  const dialog = page.getByRole("dialog");
  const act = dialog.getByRole("button", { name: button, exact: true });
  assert.ok(await act.isDisabled(), `${button} must ask for the word first`);
  await dialog.getByLabel(/to confirm/).fill(word);
  await act.click();
  await dialog.waitFor({ state: "detached" });
}

const steps = {
  async "every page renders, wide and narrow, light and dark, and axe finds nothing"() {
    for (const [width, height] of [[1440, 900], [390, 844]]) {
      for (const colorScheme of ["light", "dark"]) {
        const context = await browser.newContext({ viewport: { width, height }, colorScheme });
        await context.addInitScript((token) => sessionStorage.setItem("firmesh-token", token), token);
        for (const path of [...PAGES, "/campaigns/new"]) {
          const page = await open(context, path);
          assert.equal(await page.locator('main .note.bad[role="alert"]').count(), 0, `${path} shows an error`);
          const wide = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
          assert.ok(wide <= 0, `${path} at ${width} is ${wide} px too wide`);
          assert.deepEqual(await axe(page), [], `${path} at ${width}, ${colorScheme}`);
          await page.close();
        }
        await context.close();
      }
    }
  },

  async "the keyboard reaches pages, search and help"() {
    const context = await browser.newContext();
    const page = await open(context, "/campaigns");
    await page.keyboard.press("Tab");
    assert.equal(await page.evaluate(() => document.activeElement?.className), "skip");
    await page.keyboard.press("g");
    await page.keyboard.press("f");
    await page.getByRole("heading", { level: 1, name: "Fleet" }).waitFor();
    await page.keyboard.press("/");
    assert.equal(await page.evaluate(() => document.activeElement?.getAttribute("type")), "search");
    await page.locator("body").click({ position: { x: 400, y: 5 } });
    await page.keyboard.press("?");
    await page.getByRole("dialog", { name: "Keys" }).waitFor();
    await page.keyboard.press("Escape");
    await page.getByRole("dialog").waitFor({ state: "detached" });
    await context.close();
  },

  async "a viewer is offered no actions"() {
    const made = await fetch(`${url}/api/v1/access/keys`, {
      method: "POST",
      headers: { Authorization: `Bearer ${token}`, "Content-Type": "application/json" },
      body: JSON.stringify({ name: "dashboard e2e", role: "viewer", days: 1 }),
    });
    const { key, secret } = await made.json();
    const context = await browser.newContext();
    const page = await open(context, campaign ? `/campaigns/${campaign}` : "/campaigns");
    await login(page, secret);
    await page.getByText("(viewer)").waitFor();
    for (const name of ["Start", "Pause", "Resume", "Abort", "Roll back", "New campaign"]) {
      assert.equal(await page.locator("main").getByRole("button", { name, exact: true }).count(), 0, `a viewer is offered ${name}`);
      assert.equal(await page.locator("main").getByRole("link", { name, exact: true }).count(), 0, `a viewer is offered ${name}`);
    }
    // Revoked, the key is good no more: the page asks again rather than break.
    await fetch(`${url}/api/v1/access/keys/${key.id}/revoke`, { method: "POST", headers: { Authorization: `Bearer ${token}` } });
    await page.goto(`${url}/campaigns`);
    await page.getByRole("dialog", { name: "Log in" }).waitFor();
    await context.close();
  },

  async "a campaign is drafted with its plan beside it, and taken back"() {
    const context = await browser.newContext();
    const page = await open(context, "/campaigns");
    await login(page, token);
    await page.getByRole("link", { name: "New campaign" }).click();
    const name = `e2e-${randomBytes(3).toString("hex")}`;
    await page.getByLabel("Name", { exact: true }).fill(name);
    // The first release that anybody would get.
    const plan = page.locator(".panel", { hasText: "Plan, as of now" });
    for (const release of await page.locator("fieldset", { hasText: "Releases" }).getByRole("checkbox").all()) {
      await release.check();
      await plan.getByRole("status").filter({ hasNotText: "planning" }).waitFor({ state: "attached" });
      if (await plan.locator("tbody tr").count()) break;
      await release.uncheck();
    }
    await page.getByRole("button", { name: "Rehearse" }).click();
    await page.getByText("Undisturbed").waitFor({ timeout: 60_000 });
    await page.getByRole("button", { name: "Draft the campaign" }).click();
    await page.getByRole("heading", { level: 1, name }).waitFor();
    await page.getByText(`firmesh campaign adopt ${name}`, { exact: true }).waitFor();
    assert.deepEqual(await axe(page), [], "a draft");
    await page.getByRole("button", { name: "Take the draft back" }).click();
    await page.getByRole("dialog").getByLabel(/to confirm/).fill(name);
    await page.getByRole("dialog").getByRole("button", { name: "Take it back" }).click();
    await page.waitForURL(`${url}/campaigns`);
    await context.close();
  },

  async "an image is uploaded, and an entry of the audit log is proven in the browser"() {
    const folder = mkdtempSync(join(tmpdir(), "firmesh-dashboard-"));
    const file = join(folder, "image.bin");
    writeFileSync(file, randomBytes(9 << 20));
    const context = await browser.newContext();
    const page = await open(context, "/artifacts");
    await login(page, token);
    await page.getByLabel("File").setInputFiles(file);
    await page.getByText("It is here:").waitFor({ timeout: 60_000 });
    rmSync(folder, { recursive: true });
    await page.goto(`${url}/audit`);
    await page.getByRole("button", { name: /^Check entry/ }).first().click();
    await page.getByRole("button", { name: "Check the proof" }).click();
    await page.locator('[data-proof="sound"]').waitFor();
    assert.deepEqual(await axe(page), [], "a proof");
    await context.close();
  },

  async "a campaign is started, paused, resumed and sent back by clicking"() {
    if (!campaign) return "skipped: FIRMESH_CAMPAIGN is not set";
    const context = await browser.newContext();
    const page = await open(context, `/campaigns/${campaign}`);
    await login(page, token);
    await confirm(page, "Start", campaign);
    await page.locator(".figures").getByText("active").waitFor();
    assert.deepEqual(await axe(page), [], "a running campaign");
    await confirm(page, "Pause", campaign);
    await page.locator(".figures").getByText("paused").waitFor();
    await confirm(page, "Resume", campaign);
    await page.locator(".figures").getByText("active").waitFor();
    // Nothing is loaded anew: what devices do comes over the event stream.
    await page.locator(".figures").getByText(/[1-9]\d* of \d+/).first().waitFor({ timeout: 180_000 });
    await page.locator(".page-head").getByRole("button", { name: "Roll back" }).click();
    const dialog = page.getByRole("dialog");
    await dialog.getByLabel("Why").fill("the e2e test wants it back");
    await dialog.getByLabel(/to confirm/).fill(campaign);
    await dialog.getByRole("button", { name: "Roll back", exact: true }).click();
    await page.waitForFunction(() => !document.querySelector("dialog") || document.querySelector("dialog .note.bad, dialog .note.warn"));
    // The manifest may leave it to the approvers: then the command for them stands there.
    if (await dialog.count()) {
      await dialog.getByText(/firmesh campaign rollback/).waitFor();
      await page.keyboard.press("Escape");
    }
    await context.close();
  },

  async "the page is there again after the coordinator was restarted, and was not loaded anew"() {
    const { FIRMESH_STOP: stop, FIRMESH_START: start } = process.env;
    if (!stop || !start) return "skipped: FIRMESH_STOP and FIRMESH_START are not set";
    const run = (command) => promisify(execFile)("sh", ["-c", command]);
    const context = await browser.newContext();
    const page = await open(context, "/campaigns");
    await page.locator('[data-link="live"]').waitFor();
    await page.evaluate(() => {
      globalThis.stayed = true;
    });
    await run(stop);
    await page.locator('[data-link="reconnecting"]').waitFor({ timeout: 30_000 });
    await page.locator(".away-note").waitFor();
    assert.equal(await page.getByRole("heading", { level: 1, name: "Campaigns" }).count(), 1, "what was read must stay");
    await run(start);
    await page.locator('[data-link="live"]').waitFor({ timeout: 60_000 });
    assert.equal(await page.evaluate(() => globalThis.stayed), true);
    assert.equal(await page.locator(".away-note").count(), 0);
    await context.close();
  },
};

let failed = 0;
for (const [name, step] of Object.entries(steps)) {
  if (process.env.ONLY && !name.includes(process.env.ONLY)) continue;
  const began = Date.now();
  try {
    const note = await step();
    if (trouble.length) throw new Error(trouble.splice(0).join("\n"));
    console.log(`ok    ${name}${note ? ` (${note})` : ""}, ${((Date.now() - began) / 1000).toFixed(1)} s`);
  } catch (error) {
    failed += 1;
    console.log(`FAIL  ${name}\n${error.stack ?? error}`);
    trouble.length = 0;
  }
}
await browser.close();
process.exit(failed ? 1 : 0);

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

/** What the API says of it, as an administrator. */
async function ask(method, path, body) {
  const answer = await fetch(`${url}/api/v1/${path}`, {
    method,
    headers: { Authorization: `Bearer ${token}`, ...(body ? { "Content-Type": "application/json" } : {}) },
    body: body ? JSON.stringify(body) : undefined,
  });
  assert.ok(answer.ok, `${method} ${path}: ${answer.status}`);
  const text = await answer.text();
  return text ? JSON.parse(text) : null;
}

/** Pages of single things: the first device, the first release, and the campaign. */
async function details() {
  const [devices, firmware] = await Promise.all([ask("GET", "devices?limit=1"), ask("GET", "firmware?limit=1")]);
  return [
    ...devices.items.flatMap(({ facts, path }) => [`/devices/${encodeURIComponent(facts.device)}`, `/fleet/${path.split("/").slice(0, 2).join("/")}`]),
    ...firmware.items.map(({ name }) => `/artifacts/${encodeURIComponent(name)}`),
    ...(campaign ? [`/campaigns/${campaign}`] : []),
  ];
}

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
    const paths = [...PAGES, "/campaigns/new", ...(await details())];
    for (const [width, height] of [[1440, 900], [360, 780]]) {
      for (const colorScheme of ["light", "dark"]) {
        const context = await browser.newContext({ viewport: { width, height }, colorScheme });
        await context.addInitScript((token) => sessionStorage.setItem("firmesh-token", token), token);
        for (const path of paths) {
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
    const offers = async (...names) => {
      for (const name of names) {
        assert.equal(await page.locator("main").getByRole("button", { name, exact: true }).count(), 0, `a viewer is offered ${name}`);
        assert.equal(await page.locator("main").getByRole("link", { name, exact: true }).count(), 0, `a viewer is offered ${name}`);
      }
    };
    await offers("Start", "Pause", "Resume", "Abort", "Roll back", "New campaign");
    for (const [path, ...names] of [["/settings", "New group", "New key"], ["/artifacts", "Mirror it"], ["/compliance", "New baseline"], [(await details())[0], "Edit"]]) {
      await page.goto(url + path);
      await settled(page);
      await page.getByText("(viewer)").waitFor();
      await offers(...names);
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

  async "a group is made and changed, and nobody's change is lost"() {
    const context = await browser.newContext();
    const page = await open(context, "/settings");
    await login(page, token);
    const name = `e2e-${randomBytes(3).toString("hex")}`;
    await page.getByRole("button", { name: "New group" }).click();
    const dialog = page.getByRole("dialog");
    await dialog.getByLabel("Name", { exact: true }).fill(name);
    await dialog.getByLabel("The rule").fill('state == "failed"');
    assert.deepEqual(await axe(page), [], "the form of a group");
    await dialog.getByRole("button", { name: "Make it" }).click();
    await page.getByRole("button", { name: `Edit ${name}` }).click();
    const what = dialog.getByLabel("What for");
    await what.fill("what I want");
    // Somebody else is faster.
    const group = await fetch(`${url}/api/v1/device-groups/${name}`, { headers: { Authorization: `Bearer ${token}` } });
    const other = await fetch(`${url}/api/v1/device-groups/${name}`, {
      method: "PUT",
      headers: { Authorization: `Bearer ${token}`, "Content-Type": "application/json", "If-Match": group.headers.get("ETag") },
      body: JSON.stringify({ filter: 'state == "failed"', description: "what others want" }),
    });
    assert.equal(other.status, 200);
    await dialog.getByRole("button", { name: "Save" }).click();
    await dialog.getByText("Somebody else has changed it").waitFor();
    await dialog.getByRole("button", { name: "See what it is now" }).click();
    await page.waitForFunction(() => [...document.querySelectorAll("dialog input")].some((input) => input.value === "what others want"));
    await what.fill("what both want");
    await dialog.getByRole("button", { name: "Save" }).click();
    await dialog.waitFor({ state: "detached" });
    await page.getByRole("cell", { name: "what both want" }).waitFor();
    await page.getByRole("button", { name: `Remove ${name}` }).click();
    await dialog.getByLabel(/to confirm/).fill(name);
    await dialog.getByRole("button", { name: "Remove", exact: true }).click();
    await dialog.waitFor({ state: "detached" });
    await context.close();
  },

  async "a device is held with a reason, and is not held any more"() {
    const context = await browser.newContext();
    const page = await open(context, (await details())[0]);
    await login(page, token);
    for (const reason of ["the e2e test looks at it", ""]) {
      await page.getByRole("button", { name: "Edit", exact: true }).click();
      await page.getByRole("dialog").getByLabel("Hold it, because").fill(reason);
      await page.getByRole("dialog").getByRole("button", { name: "Save" }).click();
      await page.getByRole("dialog").waitFor({ state: "detached" });
      const note = page.locator(".note", { hasText: "the e2e test looks at it" });
      await note.waitFor({ state: reason ? "visible" : "detached" });
    }
    await context.close();
  },

  async "a catalogue that nobody allowed is refused with what to do"() {
    const context = await browser.newContext();
    const page = await open(context, "/artifacts");
    await login(page, token);
    await page.getByLabel("Address of the catalogue").fill("https://firmware.invalid/catalogue.json");
    await page.getByRole("button", { name: "Mirror it" }).click();
    await page.getByRole("alert").getByText(/\[repository\]/).waitFor();
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
    // It says when it ends, or why that is not known; never nothing.
    assert.match(await page.locator(".ends").innerText(), /Campaign ends\s+(about \d|not known because )/);
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

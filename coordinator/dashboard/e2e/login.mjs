// Somebody logs in at the identity provider and comes back to the page he was on.
//   node e2e/login.mjs SUB NAME
// FIRMESH_URL: a coordinator whose provider is oidc-provider-mock, and who is to be known as NAME afterwards.
import assert from "node:assert/strict";
import { axe, browse } from "./browser.mjs";

const [sub, name] = process.argv.slice(2);
const browser = await browse();
try {
  const page = await (await browser.newContext()).newPage();
  const strangers = [];
  page.on("request", (request) => {
    const [asker, asked] = [request.frame().url(), request.url()].map((text) => new URL(text).origin);
    if (!request.isNavigationRequest() && asker === process.env.FIRMESH_URL && asked !== asker) strangers.push(request.url());
  });
  await page.goto(`${process.env.FIRMESH_URL}/fleet`);
  await page.getByRole("button", { name: "Log in", exact: true }).first().click();
  const there = page.getByRole("button", { name: /^Log in with 127\.0\.0\.1/ });
  await there.waitFor();
  assert.deepEqual(await axe(page), []);
  await there.click();
  await page.locator("input[name=sub]").fill(sub);
  await page.locator("input[name=sub]").press("Enter");
  await page.getByText(name).first().waitFor();
  assert.equal(new URL(page.url()).pathname, "/fleet", "he is back where he was");
  assert.deepEqual(strangers, [], "pages ask nobody else");
  // The same answer is good for nothing a second time, nor is one that nobody asked for.
  await page.goto(`${process.env.FIRMESH_URL}/login?state=x&code=y`);
  await page.getByText("This is not the login that was begun in this tab").waitFor();
  assert.deepEqual(await axe(page), []);
  console.log("logged in");
} finally {
  await browser.close();
}

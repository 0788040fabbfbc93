// Logging in at the identity provider: the authorization code flow with PKCE (RFC 7636). The browser goes there and comes
// back with a code; the coordinator exchanges it. Nothing but this coordinator is asked by the page itself.

import { tokenFor } from "./api";
import type { Oidc } from "./types";

/** Where the provider sends people back to; it is registered there. */
export const BACK = "/login";

const KEY = "firmesh-login";

interface Begun { state: string; nonce: string; verifier: string; from: string }

const base64url = (bytes: Uint8Array) => btoa(String.fromCharCode(...bytes)).replace(/\+/g, "-").replace(/\//g, "_").replace(/=+$/, "");
const random = () => base64url(crypto.getRandomValues(new Uint8Array(32)));

/** Whether people can log in there: browsers have their cryptography on https and on loopback only. */
export const canLogIn = (oidc: Oidc | undefined) => !!oidc?.authorization_endpoint && isSecureContext;

/** The provider's page for a login. */
export async function loginPage(oidc: Oidc, begun: Omit<Begun, "from">, origin: string): Promise<string> {
  const challenge = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(begun.verifier));
  const page = new URL(oidc.authorization_endpoint!);
  const asks = {
    response_type: "code",
    client_id: oidc.client_id,
    redirect_uri: origin + BACK,
    scope: oidc.scopes.join(" "),
    state: begun.state,
    nonce: begun.nonce,
    code_challenge: base64url(new Uint8Array(challenge)),
    code_challenge_method: "S256",
  };
  for (const [name, value] of Object.entries(asks)) page.searchParams.set(name, value);
  return page.href;
}

/** Goes there. */
export async function goThere(oidc: Oidc): Promise<void> {
  const begun = { state: random(), nonce: random(), verifier: random() };
  const page = await loginPage(oidc, begun, location.origin);
  const from = location.pathname === BACK ? "/" : location.pathname + location.search;
  sessionStorage.setItem(KEY, JSON.stringify({ ...begun, from } satisfies Begun));
  location.assign(page);
}

/** What somebody who comes back brings, or why it is nothing. Each login is looked at once. */
export function brought(query: URLSearchParams, kept: string | null): { begun: Begun; code: string } | { problem: string } {
  const begun = kept ? (JSON.parse(kept) as Begun) : null;
  if (!begun || query.get("state") !== begun.state) return { problem: "This is not the login that was begun in this tab. Log in again." };
  const error = query.get("error");
  if (error) return { problem: `The identity provider refused: ${query.get("error_description") ?? error}`.slice(0, 300) };
  const code = query.get("code");
  return code ? { begun, code } : { problem: "The identity provider sent no code. Log in again." };
}

let coming: Promise<{ token: string; from: string }> | null = null;

/** A token for who has come back, and where he was before. */
export function comeBack(): Promise<{ token: string; from: string }> {
  coming ??= exchange(new URLSearchParams(location.search)).finally(() => {
    coming = null;
  });
  return coming;
}

async function exchange(query: URLSearchParams): Promise<{ token: string; from: string }> {
  const kept = sessionStorage.getItem(KEY);
  sessionStorage.removeItem(KEY);
  const found = brought(query, kept);
  if ("problem" in found) throw new Error(found.problem);
  const { begun, code } = found;
  const oidc = { code, redirect_uri: location.origin + BACK, code_verifier: begun.verifier, nonce: begun.nonce };
  return { token: await tokenFor({ oidc }), from: begun.from };
}

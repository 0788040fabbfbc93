import { expect, it } from "vitest";
import { brought, loginPage } from "./oidc";

const begun = { state: "s", nonce: "n", verifier: "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk", from: "/fleet" };

it("a login asks for a code, with the digest of what is shown later (RFC 7636, appendix B)", async () => {
  const oidc = { issuer: "https://id.example.com", client_id: "firmesh", scopes: ["openid", "profile"], authorization_endpoint: "https://id.example.com/auth?tenant=a" };
  const page = new URL(await loginPage(oidc, begun, "https://firmesh.example.com"));
  expect(page.origin + page.pathname).toBe("https://id.example.com/auth");
  expect(Object.fromEntries(page.searchParams)).toEqual({
    tenant: "a",
    response_type: "code",
    client_id: "firmesh",
    redirect_uri: "https://firmesh.example.com/login",
    scope: "openid profile",
    state: "s",
    nonce: "n",
    code_challenge: "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM",
    code_challenge_method: "S256",
  });
});

it("only the answer to this tab's login counts", () => {
  const kept = JSON.stringify(begun);
  const back = (query: string, from: string | null = kept) => brought(new URLSearchParams(query), from);
  expect(back("state=s&code=c")).toEqual({ begun, code: "c" });
  expect(back("state=s&error=access_denied")).toEqual({ problem: "The identity provider refused: access_denied" });
  for (const bad of [back("state=t&code=c"), back("code=c"), back("state=s"), back("state=s&code=c", null)]) expect(bad).toHaveProperty("problem");
});

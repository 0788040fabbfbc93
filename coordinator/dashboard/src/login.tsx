// Logging in: an API key or a token, or a name and a password where the coordinator has a directory.

import { useEffect, useState } from "react";
import { Problem, read } from "./api";
import { Command, Dialog, Trouble } from "./parts/ui";
import { session } from "./session";
import type { LoginMethods, Who } from "./types";

export function Login() {
  const asks = session((state) => state.asks);
  return asks === null ? null : <LoginDialog why={asks} />;
}

async function whoIs(token: string): Promise<Who> {
  const answer = await fetch("/api/v1/auth/whoami", { headers: { Authorization: `Bearer ${token}` }, cache: "no-store" });
  const said = (await answer.json().catch(() => null)) as (Who & { detail?: string }) | null;
  if (!answer.ok || !said) throw new Problem(0, "login", said?.detail ?? "the coordinator does not answer");
  return said;
}

async function passwordToken(username: string, password: string): Promise<string> {
  const answer = await fetch("/api/v1/auth/token", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ username, password }),
  });
  const said = (await answer.json().catch(() => null)) as { access_token?: string; detail?: string } | null;
  if (!answer.ok || !said?.access_token) throw new Problem(0, "login", said?.detail ?? "the coordinator does not answer");
  return said.access_token;
}

function LoginDialog({ why }: { why: string }) {
  const [methods, setMethods] = useState<LoginMethods | null>(null);
  const [secret, setSecret] = useState("");
  const [name, setName] = useState("");
  const [password, setPassword] = useState("");
  const [error, setError] = useState<Error | null>(null);
  const [busy, setBusy] = useState(false);
  useEffect(() => {
    read<LoginMethods>("auth/methods").then(setMethods, () => setMethods({ passwords: false }));
  }, []);
  const enter = (token: () => Promise<string>) => {
    setBusy(true);
    setError(null);
    token()
      .then(async (token) => session.getState().login(token, await whoIs(token)))
      .catch((failure: Error) => {
        setError(failure);
        setBusy(false);
      });
  };
  return (
    <Dialog title="Log in" close={() => session.getState().dismiss()}>
      {why && <p className="quiet">{why}</p>}
      {error && <Trouble error={error} />}
      {methods?.passwords && (
        <form
          onSubmit={(event) => {
            event.preventDefault();
            enter(() => passwordToken(name, password));
          }}
        >
          <label className="field">
            <span>Name</span>
            <input value={name} onChange={(event) => setName(event.target.value)} autoComplete="username" required />
          </label>
          <label className="field">
            <span>Password</span>
            <input type="password" value={password} onChange={(event) => setPassword(event.target.value)} autoComplete="current-password" required />
          </label>
          <div className="actions">
            <button className="button primary" disabled={busy}>
              Log in with the directory
            </button>
          </div>
        </form>
      )}
      <form
        onSubmit={(event) => {
          event.preventDefault();
          enter(() => Promise.resolve(secret.trim()));
        }}
      >
        <label className="field">
          <span>API key or token</span>
          <input type="password" name="token" value={secret} onChange={(event) => setSecret(event.target.value)} autoComplete="off" required autoFocus />
          <small>Kept for this tab only. The first one is in the coordinator's state folder, in operator.token.</small>
        </label>
        <div className="actions">
          <button className="button primary" disabled={busy || !secret.trim()}>
            Log in
          </button>
          <button type="button" className="button" onClick={() => session.getState().dismiss()}>
            Only look
          </button>
        </div>
      </form>
      {methods?.oidc && (
        <div className="stack">
          <p className="small quiet">
            With {new URL(methods.oidc.issuer).host}: this page speaks to nobody but this coordinator, so log in at a terminal and paste
            the token above.
          </p>
          <Command line="firmesh login" />
        </div>
      )}
    </Dialog>
  );
}

// Logging in: an API key or a token, a name and a password where the coordinator has a directory, or at its identity provider.

import { useEffect, useState } from "react";
import { read, tokenFor, whoIs } from "./api";
import { canLogIn, comeBack, goThere } from "./oidc";
import { Command, Dialog, Trouble } from "./parts/ui";
import { go, useTitle } from "./router";
import { session } from "./session";
import type { LoginMethods } from "./types";

export function Login() {
  const asks = session((state) => state.asks);
  return asks === null ? null : <LoginDialog why={asks} />;
}

/** Where people come back to from the identity provider. */
export function ReturnPage() {
  const [error, setError] = useState<Error | null>(null);
  useTitle("Log in");
  useEffect(() => {
    comeBack()
      .then(async ({ token, from }) => {
        session.getState().login(token, await whoIs(token));
        go(from, true);
      })
      .catch(setError);
  }, []);
  return (
    <>
      <h1 tabIndex={-1}>Log in</h1>
      {error ? (
        <>
          <Trouble error={error} />
          <button className="button primary" onClick={() => session.getState().ask("")}>
            Log in again
          </button>
        </>
      ) : (
        <p className="loading">One moment…</p>
      )}
    </>
  );
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
      {methods?.oidc && canLogIn(methods.oidc) && (
        <div className="actions">
          <button type="button" className="button primary" onClick={() => void goThere(methods.oidc!).catch(setError)}>
            Log in with {new URL(methods.oidc.issuer).host}
          </button>
        </div>
      )}
      {methods?.passwords && (
        <form
          onSubmit={(event) => {
            event.preventDefault();
            enter(() => tokenFor({ username: name, password }));
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
      {methods?.oidc && !canLogIn(methods.oidc) && (
        <div className="stack">
          <p className="small quiet">
            {new URL(methods.oidc.issuer).host} cannot be reached from here now, or this page is neither on https nor on this machine: log in
            at a terminal and paste the token above.
          </p>
          <Command line="firmesh login" />
        </div>
      )}
    </Dialog>
  );
}

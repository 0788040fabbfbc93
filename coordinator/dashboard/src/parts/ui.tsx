// Small parts that every page is made of.

import { useEffect, useId, useLayoutEffect, useRef, useState, type ReactNode } from "react";
import { Problem } from "../api";
import { inOrder, number, sum, tone, words } from "../format";
import type { Loaded } from "../live";
import { Link, isNewPage, useTitle } from "../router";
import { session } from "../session";

const TOGETHER_MS = 3_000;

const SIGNS = { good: "✓", busy: "▸", wait: "·", warn: "!", bad: "×", idle: "–" };

/** A state in words, with colour and sign. */
export function State({ state, label }: { state: string; label?: string }) {
  const kind = tone(state);
  return (
    <span className={`tag ${kind}`}>
      <i aria-hidden="true">{SIGNS[kind]}</i>
      {label ?? words(state)}
    </span>
  );
}

/** How many are where, as one bar; the numbers stand in its name. */
export function StateBar({ states, tall = false }: { states: Record<string, number>; tall?: boolean }) {
  const rows = inOrder(states);
  const label = rows.map(([state, count]) => `${number(count)} ${words(state)}`).join(", ") || "none";
  return (
    <div className={tall ? "bar tall" : "bar"} role="img" aria-label={label} title={label}>
      {rows.map(([state, count]) => (
        <span key={state} className={`part ${tone(state)}`} style={{ flexGrow: count, flexBasis: 0 }} />
      ))}
    </div>
  );
}

export function StateKeys({ states }: { states: Record<string, number> }) {
  return (
    <ul className="keys">
      {inOrder(states).map(([state, count]) => (
        <li key={state} className={`key ${tone(state)}`}>
          <i aria-hidden="true" />
          <b>{number(count)}</b> {words(state)}
        </li>
      ))}
      {sum(states) === 0 && <li>none</li>}
    </ul>
  );
}

export function PageHead({ title, sub, children, crumbs }: { title: string; sub?: ReactNode; children?: ReactNode; crumbs?: [string, string][] }) {
  useTitle(title);
  const heading = useRef<HTMLHeadingElement>(null);
  useEffect(() => {
    if (isNewPage()) heading.current?.focus({ preventScroll: true });
  }, []);
  return (
    <div className="page-head">
      <div>
        {crumbs && (
          <nav className="crumbs" aria-label="Place">
            {crumbs.map(([name, href]) => (
              <span key={href}>
                <Link href={href}>{name}</Link> /
              </span>
            ))}
          </nav>
        )}
        <h1 ref={heading} tabIndex={-1}>
          {title}
        </h1>
        {sub && <p className="quiet">{sub}</p>}
      </div>
      {children && <div className="actions">{children}</div>}
    </div>
  );
}

export function Panel({ title, aside, children, flush = false }: { title: string; aside?: ReactNode; children: ReactNode; flush?: boolean }) {
  const id = useId();
  return (
    <section className="panel" aria-labelledby={id}>
      <header>
        <h2 id={id}>{title}</h2>
        {aside}
      </header>
      {flush ? children : <div className="body">{children}</div>}
    </section>
  );
}

export function Figures({ rows }: { rows: [string, ReactNode, ReactNode?][] }) {
  return (
    <dl className="figures">
      {rows.map(([name, value, more]) => (
        <div className="figure" key={name}>
          <dt>{name}</dt>
          <dd>
            {value}
            {more !== undefined || rows.some(([, , more]) => more !== undefined) ? <small>{more}</small> : null}
          </dd>
        </div>
      ))}
    </dl>
  );
}

export function Facts({ rows }: { rows: [string, ReactNode][] }) {
  return (
    <dl className="facts">
      {rows.map(([name, value]) => (
        <div key={name} style={{ display: "contents" }}>
          <dt>{name}</dt>
          <dd>{value}</dd>
        </div>
      ))}
    </dl>
  );
}

/** What went wrong, and what can be done. */
export function Trouble({ error, retry }: { error: Error; retry?: () => void }) {
  const status = error instanceof Problem ? error.status : 0;
  return (
    <div className="note bad" role="alert">
      <p>{error.message}</p>
      {(status === 401 || status === 403 || retry) && (
        <div className="actions" style={{ marginTop: 8 }}>
          {(status === 401 || status === 403) && (
            <button className="button small" onClick={() => session.getState().ask("This needs more than you may do as you are.")}>
              Log in
            </button>
          )}
          {retry && (
            <button className="button small" onClick={retry}>
              Try again
            </button>
          )}
        </div>
      )}
    </div>
  );
}

/** A page's data: while it comes, when it does not, and when it is there. */
export function Await<T>({ of, children }: { of: Loaded<T>; children: (data: T) => ReactNode }) {
  if (of.data === null) {
    if (of.error) return <Trouble error={of.error} retry={of.reload} />;
    return (
      <p className="loading" role="status">
        Loading…
      </p>
    );
  }
  return (
    <>
      {of.error && !(of.error instanceof Problem && of.error.status === 0) && <Trouble error={of.error} retry={of.reload} />}
      {children(of.data)}
    </>
  );
}

/** Parts that read each their own data, shown when all of them have it: else each would push the next ones down. */
export function Together({ children }: { children: ReactNode }) {
  const box = useRef<HTMLDivElement>(null);
  const [ready, setReady] = useState(false);
  useEffect(() => {
    const shown = box.current;
    if (ready || !shown) return;
    const look = () => {
      if (!shown.querySelector(".loading")) setReady(true);
    };
    const observer = new MutationObserver(look);
    observer.observe(shown, { childList: true, subtree: true });
    look();
    // One that is slow does not keep the others from being read.
    const timer = setTimeout(() => setReady(true), TOGETHER_MS);
    return () => {
      observer.disconnect();
      clearTimeout(timer);
    };
  }, [ready]);
  return (
    <>
      {!ready && (
        <p className="loading" role="status">
          Loading…
        </p>
      )}
      <div ref={box} className="together" hidden={!ready}>
        {children}
      </div>
    </>
  );
}

export function Empty({ children }: { children: ReactNode }) {
  return <div className="empty">{children}</div>;
}

/** A command to be run elsewhere, where the keys are. */
export function Command({ line }: { line: string }) {
  const [copied, setCopied] = useState(false);
  return (
    <div className="command">
      <code>{line}</code>
      <button
        className="button small"
        onClick={() =>
          void navigator.clipboard?.writeText(line).then(() => {
            setCopied(true);
            setTimeout(() => setCopied(false), 1500);
          })
        }
      >
        {copied ? "Copied" : "Copy"}
        <span className="hidden-visually"> the command {line}</span>
      </button>
    </div>
  );
}

export function Dialog({ title, close, children }: { title: string; close: () => void; children: ReactNode }) {
  const dialog = useRef<HTMLDialogElement>(null);
  const id = useId();
  // Before it leaves the page, so that the focus goes back to where it came from.
  useLayoutEffect(() => {
    const shown = dialog.current;
    shown?.showModal();
    return () => shown?.close();
  }, []);
  return (
    <dialog
      ref={dialog}
      aria-labelledby={id}
      onCancel={(event) => {
        event.preventDefault();
        close();
      }}
    >
      <div className="stack">
        <h2 id={id}>{title}</h2>
        {children}
      </div>
    </dialog>
  );
}

/** What is sent once, and can be left: while it is on its way it is not sent again, and what went wrong is said. */
export function Form<A>({ action = "Make it", working = "Working…", danger = false, disabled = false, instead, run, done, close, children }: {
  action?: string;
  working?: string;
  danger?: boolean;
  disabled?: boolean;
  /** Shown in place of what went wrong. */
  instead?: ReactNode;
  run: () => Promise<A>;
  done: (answer: A) => void;
  close: () => void;
  children: ReactNode;
}) {
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<Error | null>(null);
  return (
    <form
      onSubmit={(event) => {
        event.preventDefault();
        if (disabled || busy) return;
        setBusy(true);
        setError(null);
        run()
          .then(done, setError)
          .finally(() => setBusy(false));
      }}
    >
      {children}
      {instead ?? (error && <Trouble error={error} />)}
      <div className="actions">
        <button className={danger ? "button danger" : "button primary"} disabled={disabled || busy}>
          {busy ? working : action}
        </button>
        <button type="button" className="button" onClick={close}>
          Leave it
        </button>
      </div>
    </form>
  );
}

/** Asks for a word before something that touches devices. */
export function Confirm({ title, word, what, action, danger = false, run, close, children }: {
  title: string;
  word: string;
  what: ReactNode;
  action: string;
  danger?: boolean;
  run: () => Promise<unknown>;
  close: () => void;
  children?: ReactNode;
}) {
  const [typed, setTyped] = useState("");
  const id = useId();
  return (
    <Dialog title={title} close={close}>
      <Form action={action} danger={danger} disabled={typed.trim() !== word} run={run} done={close} close={close}>
        <div>{what}</div>
        {children}
        <div className="field">
          <label htmlFor={id}>
            Type <code>{word}</code> to confirm
          </label>
          <input id={id} value={typed} onChange={(event) => setTyped(event.target.value)} autoComplete="off" spellCheck={false} autoFocus />
        </div>
      </Form>
    </Dialog>
  );
}

/** A time that goes on by itself. */
export function useNow(every = 5_000): number {
  const [now, setNow] = useState(Date.now);
  useEffect(() => {
    const timer = setInterval(() => setNow(Date.now()), every);
    return () => clearInterval(timer);
  }, [every]);
  return now;
}

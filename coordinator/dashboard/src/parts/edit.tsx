// Changing something that others may change at the same time: what is sent back names the version that was read.

import { useEffect, useState, type ReactNode } from "react";
import { Problem, readTagged, send } from "../api";
import { Dialog, Trouble } from "./ui";

interface Props<T, F> {
  title: string;
  /** Where it is read, and put back. */
  path: string;
  /** What can be changed of it. */
  start: (found: T) => F;
  body: (form: F, found: T) => unknown;
  fields: (form: F, put: (changes: Partial<F>) => void, found: T) => ReactNode;
  close: (changed: boolean) => void;
}

export function EditDialog<T, F>({ title, path, start, body, fields, close }: Props<T, F>) {
  const [read, setRead] = useState<{ value: T; tag: string; form: F } | null>(null);
  const [error, setError] = useState<Error | null>(null);
  const [busy, setBusy] = useState(false);
  const [turn, setTurn] = useState(0);
  useEffect(() => {
    const stop = new AbortController();
    readTagged<T>(path, stop.signal).then(
      ({ value, tag }) => {
        if (stop.signal.aborted) return;
        setRead({ value, tag, form: start(value) });
        setError(null);
      },
      (failure: Error) => {
        if (!stop.signal.aborted) setError(failure);
      },
    );
    return () => stop.abort();
    // What begins the form does not change while it is open.
    // eslint-disable-next-line react-hooks/exhaustive-deps
  }, [path, turn]);
  const isStale = error instanceof Problem && error.status === 412;
  return (
    <Dialog title={title} close={() => close(false)}>
      {!read && !error && <p className="loading">Loading…</p>}
      {isStale ? (
        <div className="note warn stack" role="alert">
          <p>Somebody else has changed it since this was opened. Nothing was saved.</p>
          <div className="actions">
            <button className="button small" onClick={() => setTurn(turn + 1)}>
              See what it is now
            </button>
          </div>
        </div>
      ) : (
        error && <Trouble error={error} />
      )}
      {read && (
        <form
          onSubmit={(event) => {
            event.preventDefault();
            if (busy) return;
            setBusy(true);
            setError(null);
            send("PUT", path, body(read.form, read.value), { "If-Match": read.tag })
              .then(() => close(true), setError)
              .finally(() => setBusy(false));
          }}
        >
          {fields(read.form, (changes) => setRead({ ...read, form: { ...read.form, ...changes } }), read.value)}
          <div className="actions">
            <button className="button primary" disabled={busy || isStale}>
              {busy ? "Saving…" : "Save"}
            </button>
            <button type="button" className="button" onClick={() => close(false)}>
              Leave it
            </button>
          </div>
        </form>
      )}
    </Dialog>
  );
}

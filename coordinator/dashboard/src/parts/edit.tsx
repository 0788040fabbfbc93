// Changing something that others may change at the same time: what is sent back names the version that was read.

import { useEffect, useState, type ReactNode } from "react";
import { Problem, readTagged, send } from "../api";
import { Dialog, Form, Trouble } from "./ui";

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
  const [stale, setStale] = useState(false);
  const [turn, setTurn] = useState(0);
  useEffect(() => {
    const stop = new AbortController();
    readTagged<T>(path, stop.signal).then(
      ({ value, tag }) => {
        if (stop.signal.aborted) return;
        setRead({ value, tag, form: start(value) });
        setError(null);
        setStale(false);
      },
      (failure: Error) => {
        if (!stop.signal.aborted) setError(failure);
      },
    );
    return () => stop.abort();
    // What begins the form does not change while it is open.
    // eslint-disable-next-line react-hooks/exhaustive-deps
  }, [path, turn]);
  const meanwhile = (
    <div className="note warn stack" role="alert">
      <p>Somebody else has changed it since this was opened. Nothing was saved.</p>
      <div className="actions">
        <button type="button" className="button small" onClick={() => setTurn(turn + 1)}>
          See what it is now
        </button>
      </div>
    </div>
  );
  return (
    <Dialog title={title} close={() => close(false)}>
      {!read && !error && <p className="loading">Loading…</p>}
      {error && <Trouble error={error} />}
      {read && (
        <Form
          key={read.tag}
          action="Save"
          working="Saving…"
          disabled={stale}
          instead={stale ? meanwhile : undefined}
          run={() =>
            send("PUT", path, body(read.form, read.value), { "If-Match": read.tag }).catch((failure: Error) => {
              setStale(failure instanceof Problem && failure.status === 412);
              throw failure;
            })
          }
          done={() => close(true)}
          close={() => close(false)}
        >
          {fields(read.form, (changes) => setRead({ ...read, form: { ...read.form, ...changes } }), read.value)}
        </Form>
      )}
    </Dialog>
  );
}

// Mirroring a vendor's catalogue: begun here, done by the coordinator, seen as far as it is.

import { useEffect, useRef, useState } from "react";
import { list, send } from "../api";
import { bytes, moment, number, percent, plural } from "../format";
import { useLoaded } from "../live";
import { Panel, State, Trouble } from "../parts/ui";
import { progressOf } from "../replicas";
import type { Operation } from "../types";

/** As the coordinator's `Retry-After` has it. */
const LOOK_MS = 1_000;
const SHOWN = 8;
const FAILED_SHOWN = 50;

const begun = new EventTarget();

export function StartSync() {
  const [url, setUrl] = useState("");
  const [vendor, setVendor] = useState("");
  const [error, setError] = useState<Error | null>(null);
  const [busy, setBusy] = useState(false);
  return (
    <Panel title="Mirror a catalogue">
      <form
        className="stack"
        onSubmit={(event) => {
          event.preventDefault();
          setBusy(true);
          setError(null);
          send<Operation>("POST", "repository/sync", { url: url.trim(), ...(vendor.trim() ? { vendor: vendor.trim() } : {}) })
            .then(() => begun.dispatchEvent(new Event("begun")), setError)
            .finally(() => setBusy(false));
        }}
      >
        <label className="field">
          <span>Address of the catalogue</span>
          <input type="url" value={url} onChange={(event) => setUrl(event.target.value)} placeholder="https://firmware.example/catalogue.json" required maxLength={2000} spellCheck={false} />
        </label>
        <div className="beside">
          <label className="field">
            <span>Only this vendor</span>
            <input value={vendor} onChange={(event) => setVendor(event.target.value)} placeholder="all" maxLength={128} />
          </label>
          <button className="button primary" disabled={busy || !url.trim()}>
            {busy ? "Asking…" : "Mirror it"}
          </button>
        </div>
        <small className="quiet">What comes is drafts: no device takes it before release keys have signed. Done before, only what is new is fetched; broken off, it goes on.</small>
        {error && <Trouble error={error} />}
      </form>
    </Panel>
  );
}

/** Syncs, the newest first; while one runs, as far as it is. */
export function Syncs({ done }: { done: () => void }) {
  const loaded = useLoaded("operations", (signal) => list<Operation>("operations", 1000, signal));
  const { reload } = loaded;
  const items = (loaded.data?.items ?? []).filter((one) => one.kind === "repository_sync").slice(-SHOWN).reverse();
  const isRunning = items.some((one) => one.state === "running");
  const wasRunning = useRef(false);
  useEffect(() => {
    const listen = () => reload();
    begun.addEventListener("begun", listen);
    return () => begun.removeEventListener("begun", listen);
  });
  useEffect(() => {
    // What it has brought is to be seen as well.
    if (wasRunning.current && !isRunning) done();
    wasRunning.current = isRunning;
    if (!isRunning) return;
    const timer = setInterval(() => {
      if (!document.hidden) reload();
    }, LOOK_MS);
    return () => clearInterval(timer);
    // `reload` and `done` are other functions every time, and do the same.
    // eslint-disable-next-line react-hooks/exhaustive-deps
  }, [isRunning]);
  if (items.length === 0) return loaded.error ? <Trouble error={loaded.error} retry={reload} /> : null;
  return (
    <Panel title="Mirrored catalogues" aside={<span className="quiet small" role="status">{isRunning ? "one is under way" : ""}</span>} flush>
      <table className="stacked">
        <thead>
          <tr>
            <th scope="col" style={{ width: "34%" }}>Catalogue</th>
            <th scope="col">State</th>
            <th scope="col">Began</th>
            <th scope="col">How far</th>
          </tr>
        </thead>
        <tbody>
          {items.map((one) => (
            <tr key={one.id}>
              <th scope="row">{one.subject}</th>
              <td>
                <State state={one.state} />
              </td>
              <td className="nowrap long" data-label="Began">{moment(one.started)}</td>
              <td>
                <HowFar of={one} />
              </td>
            </tr>
          ))}
        </tbody>
      </table>
    </Panel>
  );
}

function HowFar({ of }: { of: Operation }) {
  const { result, problem } = of;
  const progress = progressOf(of.progress);
  if (of.state === "running") {
    return (
      <div className="measure">
        <progress {...(progress ? { value: progress[0], max: progress[1] } : {})} aria-label={`Progress of ${of.subject}`} />
        <span className="num">{progress ? `${of.progress}, ${percent(progress[0], progress[1])}` : of.progress || "reads the catalogue"}</span>
      </div>
    );
  }
  if (problem) return <span className="any">{problem}</span>;
  if (!result) return <>{of.state === "interrupted" ? "The coordinator was restarted: ask again, and it goes on where it was." : of.progress}</>;
  return (
    <>
      {plural(result.listed, "image")} listed: {number(result.fetched)} fetched ({bytes(result.bytes)}), {number(result.unchanged)} here already, {plural(result.drafted, "release")} drafted
      {result.failed.length > 0 && (
        <details>
          <summary className="tag bad">{number(result.failed.length)} could not be mirrored</summary>
          <ul className="evidence">
            {result.failed.slice(0, FAILED_SHOWN).map((one) => (
              <li key={one.url} className="any">
                {one.url}: {one.problem}
              </li>
            ))}
          </ul>
        </details>
      )}
    </>
  );
}

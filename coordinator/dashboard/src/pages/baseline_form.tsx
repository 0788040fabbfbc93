// Making, changing and removing baselines, and having a campaign drafted for what has drifted.

import { useState } from "react";
import { list, send } from "../api";
import { plural, releaseName } from "../format";
import { useLoaded } from "../live";
import { EditDialog } from "../parts/edit";
import { Await, Confirm, Dialog, Form, Trouble } from "../parts/ui";
import { Link, go } from "../router";
import { useMay } from "../session";
import type { Baseline, Firmware, Reconciled } from "../types";

interface Words { description: string; filter: string; releases: string[] }

const bodyOf = ({ description, filter, releases }: Words) => ({ description, releases, ...(filter.trim() ? { filter: filter.trim() } : {}) });

function Fields({ form, put }: { form: Words; put: (changes: Partial<Words>) => void }) {
  const loaded = useLoaded("approved", (signal) => list<Firmware>("firmware", 2000, signal));
  return (
    <>
      <Await of={loaded}>
        {({ items }) => {
          const targets = items.filter((one) => one.state === "approved").map((one) => one.release.target);
          const all = [...new Set([...form.releases, ...targets])].sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
          return (
            <fieldset>
              <legend>Releases, one for each component of a model</legend>
              {all.length === 0 && <p className="quiet">No release is approved yet.</p>}
              <div className="choices">
                {all.map((target) => (
                  <label className="check" key={target}>
                    <input type="checkbox" checked={form.releases.includes(target)} onChange={(event) => put({ releases: event.target.checked ? [...form.releases, target] : form.releases.filter((one) => one !== target) })} />
                    <span className="any">
                      {releaseName(target)}
                      {!targets.includes(target) && <span className="quiet"> (nobody signs for it any more)</span>}
                    </span>
                  </label>
                ))}
              </div>
            </fieldset>
          );
        }}
      </Await>
      <label className="field">
        <span>Devices for which this holds</span>
        <input value={form.filter} onChange={(event) => put({ filter: event.target.value })} placeholder="all devices" spellCheck={false} />
        <small>
          A filter, such as <code>path under "eu/fra1"</code>
        </small>
      </label>
      <label className="field">
        <span>What for</span>
        <input value={form.description} onChange={(event) => put({ description: event.target.value })} maxLength={2000} />
      </label>
    </>
  );
}

export function NewBaseline({ close }: { close: (made: boolean) => void }) {
  const [id, setId] = useState("");
  const [form, setForm] = useState<Words>({ description: "", filter: "", releases: [] });
  return (
    <Dialog title="New baseline" close={() => close(false)}>
      <Form disabled={form.releases.length === 0} run={() => send("POST", "baselines", { id, ...bodyOf(form) })} done={() => close(true)} close={() => close(false)}>
        <label className="field">
          <span>Name</span>
          <input value={id} onChange={(event) => setId(event.target.value)} required autoFocus spellCheck={false} />
        </label>
        <Fields form={form} put={(changes) => setForm({ ...form, ...changes })} />
      </Form>
    </Dialog>
  );
}

/** What can be done with a baseline, by those who may. */
export function BaselineActions({ baseline, changed }: { baseline: Baseline; changed: () => void }) {
  const mayWrite = useMay("policy:write");
  const mayDraft = useMay("campaign:draft");
  const [asked, setAsked] = useState<"edit" | "remove" | "reconcile" | null>(null);
  const path = `baselines/${encodeURIComponent(baseline.id)}`;
  return (
    <>
      {mayDraft && baseline.reconcile && (
        <button className="button primary" onClick={() => setAsked("reconcile")}>
          Draft a campaign
        </button>
      )}
      {mayWrite && (
        <button className="button" onClick={() => setAsked("edit")}>
          Edit
        </button>
      )}
      {mayWrite && (
        <button className="button danger" onClick={() => setAsked("remove")}>
          Remove
        </button>
      )}
      {asked === "edit" && (
        <EditDialog<Baseline, Words>
          title={`Edit ${baseline.id}`}
          path={path}
          start={({ description, filter, releases }) => ({ description, filter: filter ?? "", releases })}
          // The rules of its campaigns are not in the form: they stay as they are.
          body={(form, found) => ({ ...bodyOf(form), ...(found.reconcile ? { reconcile: found.reconcile } : {}) })}
          fields={(form, put) => <Fields form={form} put={put} />}
          close={(saved) => {
            setAsked(null);
            if (saved) changed();
          }}
        />
      )}
      {asked === "remove" && (
        <Confirm
          title={`Remove the baseline ${baseline.id}?`}
          word={baseline.id}
          what="Nobody is behind it any more. The devices stay what they are."
          action="Remove"
          danger
          close={() => setAsked(null)}
          run={async () => {
            await send("DELETE", path, undefined, { "If-Match": `"v${baseline.version}"` });
            go("/compliance");
          }}
        />
      )}
      {asked === "reconcile" && <Reconcile path={path} close={() => setAsked(null)} />}
    </>
  );
}

function Reconcile({ path, close }: { path: string; close: () => void }) {
  const [got, setGot] = useState<Reconciled | null>(null);
  const [error, setError] = useState<Error | null>(null);
  const [busy, setBusy] = useState(false);
  return (
    <Dialog title="Bring devices back?" close={close}>
      {!got && <p>A campaign is drafted for the devices that have drifted, by the baseline's own rules. Approvers sign it as any other, or nobody is touched.</p>}
      {error && <Trouble error={error} />}
      {got && (
        <div className="note" role="status">
          <p>
            {plural(got.drifted, "device has", "devices have")} drifted: {got.reason}
          </p>
          {got.draft && <Link href={`/campaigns/${encodeURIComponent(got.draft.id)}`}>{got.draft.id}</Link>}
        </div>
      )}
      <div className="actions">
        {!got && (
          <button
            className="button primary"
            disabled={busy}
            onClick={() => {
              setBusy(true);
              setError(null);
              send<Reconciled>("POST", `${path}/reconcile`)
                .then(setGot, setError)
                .finally(() => setBusy(false));
            }}
          >
            {busy ? "Planning…" : "Draft it"}
          </button>
        )}
        <button className="button" onClick={close}>
          {got ? "Close" : "Leave it"}
        </button>
      </div>
    </Dialog>
  );
}

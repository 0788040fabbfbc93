// Drafting a campaign: a form, and beside it what the coordinator would plan and how a rehearsal of it ends.

import { useEffect, useMemo, useState } from "react";
import { list, read, send } from "../api";
import { bytes, duration, number, plural, releaseName, short, words } from "../format";
import { useLoaded } from "../live";
import { Await, Command, Empty, Figures, PageHead, Panel, Trouble } from "../parts/ui";
import { go } from "../router";
import { useMay } from "../session";
import type { Firmware, Place } from "../types";

interface Plan {
  waves: { device: string; rack: string; release: string; from_version: string }[][];
  held?: { device: string; reason: string }[];
}
interface Spread { p50: number; p95: number; max: number }
interface Rehearsal {
  runs: number;
  waves: { wave: number; devices: number; takes_s: Spread | null; ended_s: Spread | null; bytes: { sites: Record<string, number>; racks: Record<string, number> } }[];
  scenarios: { fault?: { kind: string; share?: number }; endings: Record<string, number>; harmed: Spread; updated: Spread; ends_s: Spread; reason: string }[];
}

const STRATEGIES = {
  canary: "Canary: growing shares",
  rolling: "Rolling: batch after batch",
  growing: "Growing: batches that double",
  direct: "All at once",
} as const;

interface Form {
  id: string;
  releases: string[];
  paths: string[];
  models: string;
  strategy: keyof typeof STRATEGIES;
  shares: string;
  batch: number;
  atOnce: number;
  perRack: number;
  total: number;
  advance: number;
  rollback: number;
  sample: number;
  soak: number;
  attempt: number;
  back: number;
  days: number;
  automatic: boolean;
  operators: boolean;
}

const START: Form = {
  id: "", releases: [], paths: [], models: "", strategy: "canary", shares: "10, 50, 100", batch: 100, atOnce: 3, perRack: 1, total: 100,
  advance: 99, rollback: 90, sample: 1, soak: 3600, attempt: 1800, back: 300, days: 30, automatic: true, operators: false,
};

const names = (text: string) => text.split(",").map((part) => part.trim()).filter(Boolean);

function manifestOf(form: Form, firmware: Firmware[], permitKey: string) {
  const chosen = firmware.filter((one) => form.releases.includes(one.release.target));
  const ref = (one: Firmware) => ({ target: one.release.target, sha256: one.release.artifact.sha256 });
  // What devices may go back to: the other releases of the same models and component.
  const previous = firmware.filter(
    (one) =>
      !form.releases.includes(one.release.target) &&
      one.state !== "draft" &&
      one.state !== "revoked" &&
      chosen.some(
        ({ release }) =>
          release.info.vendor === one.release.info.vendor &&
          release.info.component === one.release.info.component &&
          release.info.models.some((model) => one.release.info.models.includes(model)),
      ),
  );
  const strategy = {
    canary: { kind: "canary", shares: names(form.shares).map((share) => Math.round(Number(share) * 100)) },
    // One after the other is what a manifest means that does not say it.
    rolling: { kind: "rolling", batch: form.batch, ...(form.atOnce > 1 ? { max_concurrent_batches: form.atOnce } : {}) },
    growing: { kind: "growing", first: form.batch, percent: 200 },
    direct: { kind: "direct" },
  }[form.strategy];
  return {
    schema: "firmesh-campaign/1",
    id: form.id,
    sequence: 1,
    expires: new Date(Date.now() + form.days * 86_400_000).toISOString().replace(/\.\d+Z$/, "Z"),
    releases: chosen.map(ref),
    ...(previous.length ? { previous: previous.map(ref) } : {}),
    selector: { ...(form.paths.length ? { paths: form.paths } : {}), ...(names(form.models).length ? { models: names(form.models) } : {}) },
    strategy,
    caps: { per_rack: form.perRack, total: form.total },
    gate: { advance: Math.round(form.advance * 100), rollback: Math.round(form.rollback * 100), sample_min: form.sample, soak_s: form.soak },
    deadlines: { attempt_s: form.attempt, back_s: form.back },
    automatic_rollback: form.automatic,
    ...(form.operators ? { operator_rollback: true } : {}),
    permit_keys: [permitKey],
    plan_sha256: "0".repeat(64),
  };
}

export function CreatePage() {
  const may = useMay("campaign:draft");
  const facts = useLoaded("create", async (signal) => {
    const [firmware, sites, about] = await Promise.all([
      list<Firmware>("firmware", 1000, signal),
      list<Place>("sites", 1000, signal),
      read<{ permit_key: string }>("about", signal),
    ]);
    return { firmware: firmware.items, sites: sites.items, permitKey: about.permit_key };
  });
  return (
    <>
      <PageHead title="New campaign" crumbs={[["Campaigns", "/campaigns"]]} sub="A draft: approvers sign it with their own keys before anything starts." />
      {!may && <div className="note warn">Drafting needs the role operator or approver. Log in to go on.</div>}
      <Await of={facts}>{(data) => <Editor {...data} />}</Await>
    </>
  );
}

function Editor({ firmware, sites, permitKey }: { firmware: Firmware[]; sites: Place[]; permitKey: string }) {
  const [form, setForm] = useState<Form>(START);
  const [error, setError] = useState<Error | null>(null);
  const [busy, setBusy] = useState(false);
  const may = useMay("campaign:draft");
  const approved = firmware.filter((one) => one.state === "approved" && one.stored);
  const put = (changes: Partial<Form>) => setForm((before) => ({ ...before, ...changes }));
  const isNamed = /^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/.test(form.id);
  const manifest = useMemo(
    () => (form.releases.length ? manifestOf({ ...form, id: isNamed ? form.id : "draft" }, firmware, permitKey) : null),
    [form, firmware, permitKey, isNamed],
  );
  const count = (name: keyof Form, label: string, min: number, max: number, unit?: string) => (
    <label className="field">
      <span>{label}</span>
      <input type="number" min={min} max={max} value={form[name] as number} onChange={(event) => put({ [name]: Number(event.target.value) })} required />
      {unit && <small>{unit}</small>}
    </label>
  );
  return (
    <div className="cols wide-left">
      <form
        className="stack"
        onSubmit={(event) => {
          event.preventDefault();
          if (!manifest || busy) return;
          setBusy(true);
          setError(null);
          send<{ id: string }>("POST", "campaigns", { manifest }).then(
            ({ id }) => go(`/campaigns/${id}`),
            (failure: Error) => {
              setError(failure);
              setBusy(false);
            },
          );
        }}
      >
        <Panel title="What">
          <label className="field">
            <span>Name</span>
            <input value={form.id} onChange={(event) => put({ id: event.target.value })} placeholder="spring-bmc" pattern="[A-Za-z0-9][A-Za-z0-9._\-]{0,63}" required spellCheck={false} autoComplete="off" />
          </label>
          <fieldset>
            <legend>Releases</legend>
            {approved.length === 0 && <p className="quiet">No release is approved and stored here yet.</p>}
            {approved.map((one) => (
              <label className="check" key={one.release.target}>
                <input
                  type="checkbox"
                  checked={form.releases.includes(one.release.target)}
                  onChange={(event) => put({ releases: event.target.checked ? [...form.releases, one.release.target] : form.releases.filter((name) => name !== one.release.target) })}
                />
                <span>
                  {releaseName(one.release.target)}{" "}
                  <span className="quiet small">
                    {one.release.info.vendor} {one.release.info.models.join(", ")} {one.release.info.component} {one.release.info.version}, {bytes(one.release.artifact.length)}
                  </span>
                </span>
              </label>
            ))}
          </fieldset>
        </Panel>
        <Panel title="For whom">
          <fieldset>
            <legend>Sites (all, if none is chosen)</legend>
            {sites.slice(0, 60).map((site) => (
              <label className="check" key={site.path}>
                <input
                  type="checkbox"
                  checked={form.paths.includes(site.path)}
                  onChange={(event) => put({ paths: event.target.checked ? [...form.paths, site.path] : form.paths.filter((path) => path !== site.path) })}
                />
                <span>
                  {site.path} <span className="quiet small">{plural(site.devices, "device")}</span>
                </span>
              </label>
            ))}
          </fieldset>
          <label className="field">
            <span>Models (all that the releases are for, if empty)</span>
            <input value={form.models} onChange={(event) => put({ models: event.target.value })} placeholder="R1, R2" />
          </label>
        </Panel>
        <Panel title="How it widens">
          <label className="field">
            <span>Strategy</span>
            <select value={form.strategy} onChange={(event) => put({ strategy: event.target.value as Form["strategy"] })}>
              {Object.entries(STRATEGIES).map(([kind, name]) => (
                <option key={kind} value={kind}>
                  {name}
                </option>
              ))}
            </select>
          </label>
          <div className="form-row">
            {form.strategy === "canary" && (
              <label className="field">
                <span>Shares</span>
                <input value={form.shares} onChange={(event) => put({ shares: event.target.value })} required />
                <small>percent, growing to 100</small>
              </label>
            )}
            {(form.strategy === "rolling" || form.strategy === "growing") && count("batch", form.strategy === "growing" ? "First batch" : "Batch", 1, 1_000_000, "devices")}
            {form.strategy === "rolling" && count("atOnce", "Batches at once", 1, 16)}
            {count("perRack", "At once per rack", 1, 100_000)}
            {count("total", "At once in all", 1, 1_000_000)}
          </div>
          <div className="form-row">
            {count("advance", "Gate opens at", 0, 100, "percent good")}
            {count("rollback", "Gate fails below", 0, 100, "percent good")}
            {count("sample", "Judged after", 1, 1_000_000, "ended attempts")}
            {count("soak", "Soak", 0, 604_800, "seconds after a wave")}
          </div>
          <div className="form-row">
            {count("attempt", "Attempt deadline", 1, 604_800, "seconds")}
            {count("back", "Back within", 1, 604_800, "seconds after a restart")}
            {count("days", "Good for", 1, 3650, "days")}
          </div>
          <label className="check">
            <input type="checkbox" checked={form.automatic} onChange={(event) => put({ automatic: event.target.checked })} />
            <span>A wave whose gate fails goes back by itself</span>
          </label>
          <label className="check">
            <input type="checkbox" checked={form.operators} onChange={(event) => put({ operators: event.target.checked })} />
            <span>Operators may send devices back without the approvers</span>
          </label>
        </Panel>
        {error && <Trouble error={error} />}
        <div className="actions">
          <button className="button primary" disabled={!may || !manifest || !isNamed || busy}>
            {busy ? "Working…" : "Draft the campaign"}
          </button>
        </div>
      </form>
      <div className="stack">
        <PlanBeside manifest={manifest} />
      </div>
    </div>
  );
}

function PlanBeside({ manifest }: { manifest: ReturnType<typeof manifestOf> | null }) {
  const may = useMay("campaign:plan");
  const key = manifest ? JSON.stringify({ ...manifest, expires: "" }) : "";
  const [state, setState] = useState<{ key: string; plan: Plan | null; sha256: string; error: Error | null }>({ key: "", plan: null, sha256: "", error: null });
  useEffect(() => {
    if (!manifest || !may) return;
    const timer = setTimeout(() => {
      send<{ plan: string; plan_sha256: string }>("POST", "plans", { manifest }).then(
        ({ plan, plan_sha256 }) => setState({ key, plan: JSON.parse(plan) as Plan, sha256: plan_sha256, error: null }),
        (error: Error) => setState({ key, plan: null, sha256: "", error }),
      );
    }, 500);
    return () => clearTimeout(timer);
    // The manifest is in its key, but for the moment it expires.
    // eslint-disable-next-line react-hooks/exhaustive-deps
  }, [key, may]);
  if (!may) return <Panel title="Plan"><Empty>Log in as an operator to see the plan.</Empty></Panel>;
  if (!manifest) return <Panel title="Plan"><Empty>Choose a release to see who would get it, in which wave, and who is left out.</Empty></Panel>;
  const { plan } = state;
  return (
    <>
      <Panel title="Plan, as of now" aside={<span className="quiet small" role="status">{state.key === key ? (plan ? short(state.sha256) : "") : "planning…"}</span>} flush>
        {state.error && <div className="body" style={{ padding: 14 }}><Trouble error={state.error} /></div>}
        {plan && <PlanView plan={plan} />}
      </Panel>
      {plan && plan.waves.length > 0 && state.key === key && <WhatIf manifest={manifest} />}
      <Panel title="The same at a terminal">
        <Command line={`firmesh campaign adopt ${manifest.id}`} />
        <p className="quiet small">takes the draft over for the approvers, once it is made here.</p>
      </Panel>
    </>
  );
}

function PlanView({ plan }: { plan: Plan }) {
  const devices = plan.waves.reduce((all, wave) => all + wave.length, 0);
  const held = new Map<string, number>();
  for (const { reason } of plan.held ?? []) held.set(reason, (held.get(reason) ?? 0) + 1);
  return (
    <>
      <div className="body" style={{ padding: 14 }}>
        <Figures rows={[["Devices", number(devices)], ["Waves", number(plan.waves.length)], ["Held", number(plan.held?.length ?? 0)]]} />
      </div>
      <table>
        <thead>
          <tr>
            <th scope="col">Wave</th>
            <th scope="col" className="num">Devices</th>
            <th scope="col" className="num">Racks</th>
            <th scope="col">From</th>
          </tr>
        </thead>
        <tbody>
          {plan.waves.slice(0, 50).map((wave, place) => (
            <tr key={place}>
              <th scope="row">{place}</th>
              <td className="num">{number(wave.length)}</td>
              <td className="num">{number(new Set(wave.map((device) => device.rack)).size)}</td>
              <td className="quiet">{[...new Set(wave.map((device) => device.from_version))].slice(0, 4).join(", ")}</td>
            </tr>
          ))}
        </tbody>
      </table>
      {held.size > 0 && (
        <div style={{ padding: 14, borderTop: "1px solid var(--line)" }}>
          <h3>Held</h3>
          <ul className="evidence">
            {[...held].sort((a, b) => b[1] - a[1]).slice(0, 12).map(([reason, count]) => (
              <li key={reason}>
                {number(count)}: {reason}
              </li>
            ))}
          </ul>
        </div>
      )}
    </>
  );
}

const FAULTS = [{ kind: "brick", share: 200 }, { kind: "unhealthy", share: 10_000 }, { kind: "stall", share: 100 }, { kind: "silent" }];
const faultName = (fault?: { kind: string; share?: number }) =>
  !fault ? "Undisturbed" : { brick: `The image bricks ${(fault.share ?? 0) / 100} %`, unhealthy: `The image fails on ${(fault.share ?? 0) / 100} %`, stall: `${(fault.share ?? 0) / 100} % stall`, silent: "A rack falls silent" }[fault.kind] ?? fault.kind;

function WhatIf({ manifest }: { manifest: object }) {
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<Error | null>(null);
  const [got, setGot] = useState<Rehearsal | null>(null);
  const run = () => {
    setBusy(true);
    setError(null);
    send<{ rehearsal: string }>("POST", "simulations", { manifest, faults: FAULTS })
      .then(({ rehearsal }) => setGot(JSON.parse(rehearsal) as Rehearsal), setError)
      .finally(() => setBusy(false));
  };
  const all = got?.waves.at(-1)?.ended_s;
  const wires = got?.waves.reduce((sum, wave) => sum + Object.values(wave.bytes.sites).reduce((a, b) => a + b, 0), 0) ?? 0;
  return (
    <Panel title="What if" aside={<button className="button small" onClick={run} disabled={busy}>{busy ? "Rehearsing…" : got ? "Rehearse again" : "Rehearse"}</button>} flush={got !== null}>
      {error && <Trouble error={error} />}
      {!got && <p className="quiet">Plays the campaign against the inventory as it is: how long it takes, and what a bad image, stalling devices or a silent rack would do.</p>}
      {got && (
        <>
          <div style={{ padding: 14 }}>
            <Figures rows={[["Takes", all ? duration(all.p50) : "–", all ? `95 % within ${duration(all.p95)}` : undefined], ["Into sites", bytes(wires)], ["Runs", number(got.runs)]]} />
          </div>
          <table>
            <thead>
              <tr>
                <th scope="col">If</th>
                <th scope="col">It ends</th>
                <th scope="col" className="num">Harmed</th>
                <th scope="col" className="num">Updated</th>
              </tr>
            </thead>
            <tbody>
              {got.scenarios.map((scenario, place) => (
                <tr key={place}>
                  <th scope="row">{faultName(scenario.fault)}</th>
                  <td title={scenario.reason}>{Object.entries(scenario.endings).map(([ending, count]) => `${words(ending)}${Object.keys(scenario.endings).length > 1 ? ` ${count}×` : ""}`).join(", ")}</td>
                  <td className="num">{number(scenario.harmed.p95)}</td>
                  <td className="num">{number(scenario.updated.p50)}</td>
                </tr>
              ))}
            </tbody>
          </table>
        </>
      )}
    </Panel>
  );
}

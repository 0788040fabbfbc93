// One device: what it is, how it is, where its attempt stands and why, and what operators say of it.

import { useState } from "react";
import { list, placePath, read, save, send } from "../api";
import { ago, bytes, duration, moment, number, releaseName, words } from "../format";
import { useLoaded } from "../live";
import { EditDialog } from "../parts/edit";
import { Await, Command, Confirm, Facts, Figures, PageHead, Panel, State, Trouble, useNow } from "../parts/ui";
import { Link } from "../router";
import { useMay } from "../session";
import type { Device, DeviceHealth, Explanation, Transcript, Update } from "../types";
import { FindingList } from "./campaign";

const UPDATES_MOST = 100;

export function DevicePage({ id }: { id: string }) {
  const path = `devices/${encodeURIComponent(id)}`;
  const mayClear = useMay("device:clear");
  const mayWrite = useMay("device:write");
  const [clearing, setClearing] = useState(false);
  const [editing, setEditing] = useState(false);
  const now = useNow();
  const isMine = (event: { kind: string; data: unknown }) => event.kind === "attempt" && (event.data as { device: string }).device === id;
  const loaded = useLoaded(path, (signal) => read<Device>(path, signal), isMine, 500);
  return (
    <Await of={loaded}>
      {(device) => (
        <>
          <PageHead title={device.facts.device} crumbs={[["Devices", "/devices"]]} sub={`${device.facts.vendor} ${device.facts.model}, ${device.facts.component}`}>
            {mayClear && device.status === "quarantined" && (
              <button className="button primary" onClick={() => setClearing(true)}>
                It was looked at
              </button>
            )}
            {mayWrite && (
              <button className="button" onClick={() => setEditing(true)}>
                Edit
              </button>
            )}
          </PageHead>
          {device.registration?.held && <div className="note warn">It is held, so campaigns leave it out: {device.registration.held}</div>}
          {device.registration?.mismatch && <div className="note bad">What its node tells does not fit what was registered: {device.registration.mismatch}</div>}
          <Figures
            rows={[
              ["Status", <State key="s" state={device.status} />],
              ["Runs", device.facts.version ?? "no answer"],
              ["Heard of", ago(device.last_seen, now)],
              ["Campaigns may", device.enabled ? "update it" : <State key="e" state="disabled" label="not touch it" />],
            ]}
          />
          <Attempt device={device} id={id} />
          <div className="cols">
            <Identity device={device} />
            <Health path={path} device={device} />
          </div>
          <Updates path={path} isMine={isMine} />
          <Transcripts path={path} device={device} id={id} isMine={isMine} />
          {clearing && (
            <Confirm
              title={`${id} was looked at?`}
              word={id}
              what="It leaves quarantine and its place under the caps: others may start in its stead."
              action="It was looked at"
              close={() => setClearing(false)}
              run={async () => {
                await send("POST", `${path}/clear`);
                loaded.reload();
              }}
            />
          )}
          {editing && (
            <Edit
              id={id}
              path={path}
              close={(changed) => {
                setEditing(false);
                if (changed) loaded.reload();
              }}
            />
          )}
        </>
      )}
    </Await>
  );
}

function Identity({ device }: { device: Device }) {
  const { facts, registration } = device;
  return (
    <Panel title="What it is">
      <Facts
        rows={[
          ["Place", <Link key="p" href={`/fleet/${placePath(device.path.split("/").slice(0, 3).join("/"))}`}>{device.path}</Link>],
          ["Node", device.node ?? "none has told of it yet"],
          ["Component", facts.component],
          ["Executor", facts.executor],
          ["Credentials", device.credentials_profile ? `of the profile ${device.credentials_profile}` : "of its own, or none"],
          ...Object.entries(facts.labels ?? {}).map(([name, value]): [string, string] => [`Label ${name}`, value]),
          ...(registration
            ? ([
                ...(registration.hardware_id ? [["Hardware", registration.hardware_id]] : []),
                ["Registered", moment(registration.registered)],
                ["Tags", registration.tags?.join(", ") || "none"],
              ] as [string, string][])
            : []),
        ]}
      />
    </Panel>
  );
}

/** How it is: by its node's word whether it answers, the rest by its own. */
function Health({ path, device }: { path: string; device: Device }) {
  const loaded = useLoaded(`${path}/health ${device.last_seen} ${device.said?.at}`, (signal) => read<DeviceHealth>(`${path}/health`, signal));
  const { said } = device;
  const percentOf = (value: number | null) => (value === null ? null : `${number(Math.round(value))} %`);
  return (
    <Panel title="How it is">
      <Await of={loaded}>
        {(health) => {
          const own: [string, string | null][] = [
            ["Processors", percentOf(health.cpuUsage)],
            ["Memory", percentOf(health.memoryUsage)],
            ["Up for", health.uptime === null ? null : duration(health.uptime)],
            ["Errors", percentOf(health.applicationMetrics.errorRate)],
            ...Object.entries(health.applicationMetrics.sensorReadings ?? {}).map(([name, value]): [string, string] => [words(name), String(value)]),
          ];
          const told = own.filter((row): row is [string, string] => row[1] !== null);
          return (
            <>
              <Facts
                rows={[
                  ["Answers its node", health.online === null ? "not known" : health.online ? <State key="o" state="success" label="yes" /> : <State key="o" state="offline" label="no" />],
                  ["Last word", health.lastHeartbeat ? moment(health.lastHeartbeat) : "never"],
                  ...told,
                ]}
              />
              {told.length === 0 && <p className="quiet small">It does not measure itself, or does not tell: load, memory and errors are not known.</p>}
              {said && (
                <>
                  <h3>What it says of itself, {moment(said.at)}</h3>
                  <p>
                    {[said.status?.status && words(said.status.status), said.status?.version && `runs ${said.status.version}`, said.status?.progress !== undefined && `${said.status.progress} %`, said.status?.message, said.validation && `${said.validation.ok ? "is well" : "is not well"} with ${said.validation.version}`, said.validation?.message]
                      .filter(Boolean)
                      .join(", ") || "nothing"}
                  </p>
                  <p className="quiet small">Nothing is decided by that: what counts is what its node reads back.</p>
                </>
              )}
            </>
          );
        }}
      </Await>
    </Panel>
  );
}

function Attempt({ device, id }: { device: Device; id: string }) {
  const { attempt } = device;
  const path = attempt ? `campaigns/${encodeURIComponent(attempt.campaign)}/explain?device=${encodeURIComponent(id)}` : "";
  const explained = useLoaded(
    `${path} ${attempt?.state} ${attempt?.attempt}`,
    (signal) => (attempt ? read<Explanation[]>(path, signal) : Promise.resolve([])),
    (event) => event.kind === "campaign" && event.data.id === attempt?.campaign,
    2_000,
  );
  if (!attempt) return <Panel title="Its attempt"><p className="quiet">It was never in a campaign.</p></Panel>;
  return (
    <Panel
      title="Its attempt, step by step"
      aside={
        <span className="quiet small">
          <Link href={`/campaigns/${encodeURIComponent(attempt.campaign)}`}>{attempt.campaign}</Link>, wave {attempt.wave}
          {attempt.attempt ? `, attempt ${attempt.attempt}` : ""}
        </span>
      }
      flush
    >
      <Steps state={attempt.state} />
      {explained.error && <div className="pad"><Trouble error={explained.error} /></div>}
      {explained.data && <FindingList rows={explained.data} />}
      {!explained.data && !explained.error && <p className="loading">Loading…</p>}
    </Panel>
  );
}

/** What was said to it in its last attempts, for those who may read it. */
function Transcripts({ path, device, id, isMine }: { path: string; device: Device; id: string; isMine: (event: { kind: string; data: unknown }) => boolean }) {
  const may = useMay("transcript:read");
  return (
    <Panel title="Transcripts" aside={<span className="quiet small">without passwords, keys and names of users</span>} flush={may}>
      {may ? <TranscriptList path={path} isMine={isMine} /> : <p className="quiet">What was said to it is for operators to read.</p>}
      <div className={may ? "body pad line" : undefined}>
        <p className="quiet small">What it supports, {device.node ?? "its node"} says:</p>
        <Command line={`firmesh device doctor ${id} --node http://127.0.0.1:8653`} />
      </div>
    </Panel>
  );
}

function TranscriptList({ path, isMine }: { path: string; isMine: (event: { kind: string; data: unknown }) => boolean }) {
  const [error, setError] = useState<Error | null>(null);
  // The node sends it a moment after it has told of the end.
  const loaded = useLoaded(`${path}/transcripts`, (signal) => list<Transcript>(`${path}/transcripts`, 10, signal), isMine, 3_000);
  return (
    <Await of={loaded}>
      {({ items }) =>
        items.length === 0 ? (
          <p className="quiet pad">None: nothing was tried yet, or its node writes none down (<code>transcript</code> in the device's configuration).</p>
        ) : (
          <>
            {error && <div className="pad"><Trouble error={error} /></div>}
            <table className="stacked">
              <thead>
                <tr>
                  <th scope="col">Campaign</th>
                  <th scope="col">Ended as</th>
                  <th scope="col">Ended</th>
                  <th scope="col" className="num">Exchanges</th>
                  <th scope="col" className="num">Size</th>
                  <th scope="col"><span className="hidden-visually">What to do</span></th>
                </tr>
              </thead>
              <tbody>
                {items.map((one) => (
                  <tr key={one.number}>
                    <th scope="row">{one.campaign}{one.kind === "rollback" ? ", back" : ""}</th>
                    <td><State state={one.state} /></td>
                    <td data-label="Ended" className="nowrap long">{moment(one.ended)}</td>
                    <td className="num" data-label="Exchanges">{number(one.exchanges)}</td>
                    <td className="num" data-label="Size">{bytes(one.bytes)}</td>
                    <td>
                      {one.kept_bytes === 0 ? (
                        <span className="quiet small">at {one.node}</span>
                      ) : (
                        <button className="button small" onClick={() => { setError(null); void save(`${path}/transcripts/${one.number}`, `${path.split("/").at(-1)}-${one.number}.jsonl`).catch(setError); }}>
                          Save{one.left_out > 0 ? ` its last ${bytes(one.kept_bytes)}` : ""}<span className="hidden-visually"> the transcript of {one.campaign}</span>
                        </button>
                      )}
                    </td>
                  </tr>
                ))}
              </tbody>
            </table>
          </>
        )
      }
    </Await>
  );
}

/** The way of an attempt. */
const WAY = ["pending", "downloading", "verifying", "staged", "installing", "rebooting", "validating", "success"];

/** Where an attempt stands that is not on its way; of one that has ended otherwise than well nobody says how far it came. */
const BESIDE: Record<string, number> = { waiting_window: 0, blocked: 0 };

function Steps({ state }: { state: string }) {
  const at = BESIDE[state] ?? WAY.indexOf(state);
  if (at < 0) {
    return (
      <p className="pad ended">
        <State state={state} />
      </p>
    );
  }
  return (
    <ol className="steps" aria-label="Steps">
      {WAY.map((step, place) => {
        const kind = state === "success" || place < at ? "done" : place === at ? "now" : "";
        return (
          <li key={step} className={kind} aria-current={place === at ? "step" : undefined}>
            <i aria-hidden="true" />
            <span>
              {place === at ? words(state) : words(step)}
              {kind === "done" && <span className="hidden-visually"> (done)</span>}
            </span>
          </li>
        );
      })}
    </ol>
  );
}

function Updates({ path, isMine }: { path: string; isMine: (event: { kind: string; data: unknown }) => boolean }) {
  const loaded = useLoaded(`${path}/updates`, (signal) => list<Update>(`${path}/updates`, UPDATES_MOST, signal), isMine, 500);
  return (
    <Panel title="Attempts, past and present" flush>
      <Await of={loaded}>
        {({ items, more }) =>
          items.length === 0 ? (
            <p className="quiet pad">None yet.</p>
          ) : (
            <div className="scroll-x">
              <table className="stacked">
                <thead>
                  <tr>
                    <th scope="col">Campaign</th>
                    <th scope="col">Release</th>
                    <th scope="col">From</th>
                    <th scope="col">State</th>
                    <th scope="col">Ended</th>
                    <th scope="col">Why</th>
                  </tr>
                </thead>
                <tbody>
                  {items.map((update) => (
                    <tr key={`${update.campaign} ${update.wave}`}>
                      <th scope="row">
                        <Link href={`/campaigns/${encodeURIComponent(update.campaign)}`}>{update.campaign}</Link>
                      </th>
                      <td>{releaseName(update.release)}</td>
                      <td data-label="From">{update.from_version}</td>
                      <td>
                        <State state={update.state} />
                      </td>
                      <td data-label="Ended" className="nowrap long">{update.ended ? moment(update.ended) : update.progress < 100 ? `not yet, ${update.progress} %` : "–"}</td>
                      <td className="quiet">{update.reason || "–"}</td>
                    </tr>
                  ))}
                </tbody>
              </table>
              {more && <p className="quiet small pad line">The first {UPDATES_MOST}.</p>}
            </div>
          )
        }
      </Await>
    </Panel>
  );
}

interface Form { enabled: boolean; held: string; tags: string }

function Edit({ id, path, close }: { id: string; path: string; close: (changed: boolean) => void }) {
  return (
    <EditDialog<Device, Form>
      title={`Edit ${id}`}
      path={path}
      start={(device) => ({ enabled: device.enabled, held: device.registration?.held ?? "", tags: device.registration?.tags?.join(", ") ?? "" })}
      // What the form does not show is sent back as it was read: what is absent would be emptied.
      body={(form, device) => ({
        enabled: form.enabled,
        tags: form.tags.split(",").map((tag) => tag.trim()).filter(Boolean),
        ...(device.registration?.metadata ? { metadata: device.registration.metadata } : {}),
        ...(form.held.trim() ? { held: form.held.trim() } : {}),
      })}
      close={close}
      fields={(form, put) => (
        <>
          <label className="check">
            <input type="checkbox" checked={form.enabled} onChange={(event) => put({ enabled: event.target.checked })} autoFocus />
            <span>
              Campaigns may update it <small className="quiet below">Those that are planned from now on; one that runs already goes on.</small>
            </span>
          </label>
          <label className="field">
            <span>Hold it, because</span>
            <input value={form.held} onChange={(event) => put({ held: event.target.value })} maxLength={256} placeholder="not held" />
            <small>With a reason, campaigns that are planned leave it out and say why.</small>
          </label>
          <label className="field">
            <span>Tags</span>
            <input value={form.tags} onChange={(event) => put({ tags: event.target.value })} placeholder="none" />
            <small>With commas between.</small>
          </label>
        </>
      )}
    />
  );
}

// What campaigns rest on, who is told, and who may do what.

import { useState, type ReactNode } from "react";
import { list, read, send } from "../api";
import { ago, duration, moment, plural, short } from "../format";
import { useLoaded } from "../live";
import { Await, Command, Confirm, Dialog, Empty, Facts, Form, PageHead, Panel, State, Together } from "../parts/ui";
import { Link } from "../router";
import { session, useMay } from "../session";
import type { ApiKey, Windows } from "../types";
import { Groups } from "./groups";
import { Notifications } from "./notifications";
import { Policies } from "./policies";

interface Approval { file: string; version: number | null; approved: boolean; threshold: number; key_ids: string[]; signed_by: string[] }
interface Permission { permission: string; what: string; roles: string[] }
interface About { version: string; online_key: string; permit_key: string; node_url: string }

const PARTS: [string, string][] = [
  ["windows", "Windows"],
  ["policies", "Policies"],
  ["groups", "Groups"],
  ["notifications", "Notifications"],
  ["signatures", "Signatures"],
  ["keys", "API keys"],
  ["roles", "Roles"],
  ["coordinator", "Coordinator"],
];

export function SettingsPage() {
  const mayKeys = useMay("access:manage");
  const parts: Record<string, ReactNode> = {
    windows: <WindowsPanel />,
    policies: <Policies />,
    groups: <Groups />,
    notifications: <Notifications />,
    signatures: <Approvals />,
    keys: mayKeys ? <Keys /> : <Panel title="API keys"><p className="quiet">Seeing and making API keys needs the role admin. At a terminal: <code>firmesh access --help</code></p></Panel>,
    roles: <Roles />,
    coordinator: <AboutPanel />,
  };
  return (
    <>
      <PageHead title="Settings" sub="What campaigns rest on, who is told, and who may do what." />
      <nav aria-label="On this page">
        <ul className="jumps">
          {PARTS.map(([id, name]) => (
            <li key={id}>
              <a href={`#${id}`}>{name}</a>
            </li>
          ))}
        </ul>
      </nav>
      <Together>
        {PARTS.map(([id]) => (
          <div id={id} key={id} className="jump-to">
            {parts[id]}
          </div>
        ))}
      </Together>
    </>
  );
}

const DAYS = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

function WindowsPanel() {
  const loaded = useLoaded("windows", (signal) => list<Windows>("windows", 1000, signal), (event) => event.kind === "campaign", 5_000);
  return (
    <Panel title="Maintenance windows" aside={<span className="quiet small">as approvers have signed them</span>} flush>
      <Await of={loaded}>
        {({ items }) => {
          const shown = items.filter((one) => one.windows.length > 0 || one.blackouts.length > 0);
          const always = items.length - shown.length;
          return (
            <>
              {shown.map((one) => (
                <div key={one.campaign} style={{ padding: 14, borderBottom: "1px solid var(--line)" }} className="stack">
                  <h3>
                    <Link href={`/campaigns/${one.campaign}`}>{one.campaign}</Link> <State state={one.state} />
                  </h3>
                  {one.windows.map((window, place) => (
                    <div key={place}>
                      {window.days?.length || window.from ? <Week days={window.days ?? []} from={window.from ?? "00:00"} seconds={window.duration_s} /> : null}
                      <p className="small quiet">
                        {window.recurs ? `from ${window.recurs.dtstart}${window.recurs.rrule ? `, ${window.recurs.rrule}` : ""}` : `${window.days?.join(", ") || "every day"} from ${window.from}`}, for {duration(window.duration_s)}, {window.zone}
                        {window.only ? `, only ${JSON.stringify(window.only)}` : ""}
                      </p>
                    </div>
                  ))}
                  {one.blackouts.map((blackout, place) => (
                    <p key={place} className="small">Nothing starts from {moment(blackout.from)} until {moment(blackout.until)}</p>
                  ))}
                </div>
              ))}
              <p className="quiet" style={{ padding: 14 }}>{always > 0 ? `${plural(always, "campaign")} may start devices at any time.` : shown.length === 0 ? "No campaigns yet." : ""}</p>
            </>
          );
        }}
      </Await>
    </Panel>
  );
}

/** A window in its week, in its own zone. */
function Week({ days, from, seconds }: { days: string[]; from: string; seconds: number }) {
  const [hour = 0, minute = 0] = from.split(":").map(Number);
  const begin = (hour * 60 + minute) / 1440;
  const length = seconds / 86_400;
  const open = (days.length ? days : DAYS).map((day) => DAYS.indexOf(day));
  return (
    <svg viewBox="0 0 700 34" width="100%" height="34" preserveAspectRatio="none" role="img" aria-label={`open ${days.join(", ") || "every day"} from ${from} for ${duration(seconds)}`}>
      <rect width="700" height="34" fill="var(--sunk)" />
      {open.flatMap((day) => [0, -7].map((shift) => <rect key={`${day} ${shift}`} x={(day + begin + shift) * 100} width={length * 100} y="4" height="26" rx="2" fill="var(--good)" />))}
      {DAYS.map((_, day) => (
        <line key={day} x1={day * 100} x2={day * 100} y1="0" y2="34" stroke="var(--line-strong)" strokeWidth=".6" vectorEffect="non-scaling-stroke" />
      ))}
    </svg>
  );
}

function Approvals() {
  const loaded = useLoaded("approvals", (signal) => list<Approval>("approvals", 1000, signal), (event) => event.kind === "campaign", 3_000);
  return (
    <Panel title="Signatures" aside={<span className="quiet small">made with people's own keys, never here</span>} flush>
      <Await of={loaded}>
        {({ items }) =>
          items.length === 0 ? (
            <Empty>Nothing is published yet.</Empty>
          ) : (
            <div className="scroll-x">
              <table className="stacked">
                <thead>
                  <tr>
                    <th scope="col">File</th>
                    <th scope="col">State</th>
                    <th scope="col">Signed by</th>
                    <th scope="col">Needs</th>
                  </tr>
                </thead>
                <tbody>
                  {items.map((one) => (
                    <tr key={one.file}>
                      <th scope="row">{one.file}</th>
                      <td><State state={one.approved ? "approved" : "pending"} label={one.approved ? "signed" : "waits"} /></td>
                      <td className="mono">{one.signed_by.map(short).join(", ") || "nobody yet"}</td>
                      <td>{one.threshold} of {one.key_ids.length} keys</td>
                    </tr>
                  ))}
                </tbody>
              </table>
            </div>
          )
        }
      </Await>
      <div className="body" style={{ padding: 14, borderTop: "1px solid var(--line)" }}>
        <Command line="firmesh trust doctor" />
      </div>
    </Panel>
  );
}

function Keys() {
  const loaded = useLoaded("keys", (signal) => list<ApiKey>("access/keys", 1000, signal));
  const [making, setMaking] = useState(false);
  const [revoking, setRevoking] = useState<ApiKey | null>(null);
  return (
    <Panel title="API keys" aside={<button className="button small" onClick={() => setMaking(true)}>New key</button>} flush>
      <Await of={loaded}>
        {({ items }) =>
          items.length === 0 ? (
            <Empty>No API keys yet.</Empty>
          ) : (
            <table className="stacked">
              <thead>
                <tr>
                  <th scope="col">Key</th>
                  <th scope="col">Role</th>
                  <th scope="col">Made</th>
                  <th scope="col">Expires</th>
                  <th scope="col"><span className="hidden-visually">What to do</span></th>
                </tr>
              </thead>
              <tbody>
                {items.map((key) => (
                  <tr key={key.id}>
                    <th scope="row">{key.name} <span className="quiet small">{key.id}</span></th>
                    <td>{key.role}</td>
                    <td>{ago(key.created)} by {key.created_by}</td>
                    <td>{key.revoked ? <State state="revoked" /> : moment(key.expires)}</td>
                    <td>{!key.revoked && <button className="button small danger" onClick={() => setRevoking(key)}>Revoke<span className="hidden-visually"> {key.name}</span></button>}</td>
                  </tr>
                ))}
              </tbody>
            </table>
          )
        }
      </Await>
      {making && <NewKey close={() => { setMaking(false); loaded.reload(); }} />}
      {revoking && (
        <Confirm
          title={`Revoke ${revoking.name}?`}
          word={revoking.name}
          what="The key and its tokens are good no more, at once and for good."
          action="Revoke"
          danger
          close={() => setRevoking(null)}
          run={async () => {
            await send("POST", `access/keys/${revoking.id}/revoke`);
            loaded.reload();
          }}
        />
      )}
    </Panel>
  );
}

function NewKey({ close }: { close: () => void }) {
  const [form, setForm] = useState({ name: "", role: "viewer", days: 90 });
  const [secret, setSecret] = useState<string | null>(null);
  return (
    <Dialog title="New API key" close={close}>
      {secret ? (
        <>
          <p>Its secret is shown this once:</p>
          <Command line={secret} />
          <div className="actions"><button className="button primary" onClick={close}>I have it</button></div>
        </>
      ) : (
        <Form run={() => send<{ secret: string }>("POST", "access/keys", form)} done={(made) => setSecret(made.secret)} close={close}>
          <label className="field"><span>Whose, or what for</span><input value={form.name} onChange={(event) => setForm({ ...form, name: event.target.value })} required maxLength={100} autoFocus /></label>
          <label className="field">
            <span>Role</span>
            <select value={form.role} onChange={(event) => setForm({ ...form, role: event.target.value })}>
              {["viewer", "operator", "approver", "admin"].map((role) => <option key={role}>{role}</option>)}
            </select>
          </label>
          <label className="field"><span>Days</span><input type="number" min={1} max={3650} value={form.days} onChange={(event) => setForm({ ...form, days: Number(event.target.value) })} required /></label>
        </Form>
      )}
    </Dialog>
  );
}

const ROLES = ["viewer", "operator", "approver", "admin"];

function Roles() {
  const who = session((state) => state.who);
  const loaded = useLoaded("permissions", (signal) => read<{ items: Permission[] }>("auth/permissions", signal));
  return (
    <Panel title="Roles" aside={who && <span className="quiet small">you: {plural(who.permissions.length, "permission")}</span>} flush>
      <Await of={loaded}>
        {({ items }) => (
          <div className="scroll-x" style={{ maxHeight: 420, overflowY: "auto" }} tabIndex={0} role="region" aria-label="Permissions by role">
            <table className="stacked">
              <thead>
                <tr>
                  <th scope="col">Permission</th>
                  {ROLES.map((role) => <th scope="col" key={role}>{role}</th>)}
                </tr>
              </thead>
              <tbody>
                {items.map((one) => (
                  <tr key={one.permission}>
                    <th scope="row">{one.permission} <span className="quiet small">{one.what}</span></th>
                    {ROLES.map((role) => <td key={role} data-label={role}>{one.roles.includes(role) ? "yes" : <span className="quiet">–</span>}</td>)}
                  </tr>
                ))}
              </tbody>
            </table>
          </div>
        )}
      </Await>
    </Panel>
  );
}

function AboutPanel() {
  const loaded = useLoaded("about", (signal) => read<About>("about", signal));
  return (
    <Panel title="This coordinator">
      <Await of={loaded}>
        {(about) => (
          <Facts
            rows={[
              ["Version", about.version],
              ["Nodes talk to", about.node_url],
              ["Online key", <code key="o">{about.online_key}</code>],
              ["Permit key", <code key="p">{about.permit_key}</code>],
            ]}
          />
        )}
      </Await>
    </Panel>
  );
}


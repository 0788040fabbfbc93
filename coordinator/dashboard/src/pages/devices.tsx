import { useState } from "react";
import { placePath, read, send } from "../api";
import { ago, moment, releaseName, words } from "../format";
import { useLoaded } from "../live";
import { Await, Confirm, Facts, Figures, PageHead, Panel, State } from "../parts/ui";
import { VirtualList } from "../parts/virtual";
import { Link, goQuery, useQuery } from "../router";
import { useMay } from "../session";
import type { Device, Update } from "../types";
import { asFilter } from "./fleet";

const EXAMPLES = [
  'state in ["failed", "rolled_back", "timed_out"]',
  'state == "quarantined"',
  'path under "eu/fra1"',
  'model == "R1" and component == "bmc" and version != "1.2.0"',
  'not label "cluster" == "k3"',
];

export function DevicesPage({ rest }: { rest: string }) {
  return rest ? <DevicePage key={rest} id={rest} /> : <Devices />;
}

function Devices() {
  const filter = useQuery().get("filter") ?? "";
  const [text, setText] = useState(filter);
  const [shown, setShown] = useState(filter);
  if (shown !== filter) {
    setShown(filter);
    setText(filter);
  }
  return (
    <>
      <PageHead title="Devices" sub="What is updated, where it stands, and what it runs." />
      <form
        className="search"
        onSubmit={(event) => {
          event.preventDefault();
          goQuery({ filter: text.trim() ? asFilter(text) : "" });
        }}
      >
        <input type="search" aria-label="A device, or a filter" placeholder='A device, or a filter: model == "R1" and path under "eu/fra1"' value={text} onChange={(event) => setText(event.target.value)} spellCheck={false} />
        <button className="button">Find</button>
        {filter && (
          <button type="button" className="button" onClick={() => goQuery({ filter: "" })}>
            All devices
          </button>
        )}
      </form>
      <details>
        <summary className="quiet small">How filters are written</summary>
        <div className="stack" style={{ marginTop: 8 }}>
          <p className="small quiet">
            Fields: device, vendor, model, component, version, executor, node, path, state, campaign, label "…". Tests: ==, !=, in ["…", "…"],
            path under "…". Joined by and, or, not and parentheses.
          </p>
          <ul className="stack">
            {EXAMPLES.map((example) => (
              <li key={example}>
                <button className="button small" onClick={() => goQuery({ filter: example })}>
                  <code>{example}</code>
                </button>
              </li>
            ))}
          </ul>
        </div>
      </details>
      <Panel title={filter ? "Devices found" : "All devices"} flush>
        <DeviceList filter={filter} />
      </Panel>
    </>
  );
}

export function DeviceList({ filter }: { filter: string }) {
  return (
    <VirtualList<Device>
      label="Devices"
      path="devices"
      query={filter ? `filter=${encodeURIComponent(filter)}` : ""}
      rowKey={(row) => row.facts.device}
      empty={<p>{filter ? "No device is so." : "No devices yet: nodes tell of them, and operators can register them ahead."}</p>}
      patch={(row, event) =>
        event.kind === "attempt" && event.data.device === row.facts.device
          ? { ...row, attempt: event.data, status: event.data.state, facts: { ...row.facts, version: event.data.version ?? row.facts.version } }
          : null
      }
      columns={[
        { name: "Device", width: "minmax(120px, 2fr)", phone: true, cell: (row) => <Link href={`/devices/${encodeURIComponent(row.facts.device)}`}>{row.facts.device}</Link> },
        { name: "Status", width: "minmax(112px, 1fr)", phone: true, cell: (row) => <State state={row.status} /> },
        { name: "Runs", width: "minmax(64px, 1fr)", phone: true, cell: (row) => row.facts.version ?? "no answer" },
        { name: "Kind", width: "minmax(120px, 2fr)", cell: (row) => `${row.facts.vendor} ${row.facts.model} ${row.facts.component}` },
        { name: "Place", width: "minmax(120px, 2fr)", cell: (row) => <span title={row.path}>{row.path}</span> },
        { name: "Campaign", width: "minmax(80px, 1fr)", cell: (row) => (row.attempt ? <Link href={`/campaigns/${row.attempt.campaign}`}>{row.attempt.campaign}</Link> : "–") },
      ]}
    />
  );
}

function DevicePage({ id }: { id: string }) {
  const path = `devices/${encodeURIComponent(id)}`;
  const mayClear = useMay("device:clear");
  const [clearing, setClearing] = useState(false);
  const isMine = (event: { kind: string; data: unknown }) => event.kind === "attempt" && (event.data as { device: string }).device === id;
  const loaded = useLoaded(path, (signal) => read<Device>(path, signal), isMine, 500);
  const updates = useLoaded(`${path}/updates`, (signal) => read<{ items: Update[] }>(`${path}/updates?limit=100`, signal), isMine, 500);
  return (
    <Await of={loaded}>
      {(device) => (
        <>
          <PageHead title={device.facts.device} crumbs={[["Devices", "/devices"]]} sub={`${device.facts.vendor} ${device.facts.model}, ${device.facts.component}`}>
            {mayClear && device.status === "quarantined" && (
              <button className="button" onClick={() => setClearing(true)}>
                It was looked at
              </button>
            )}
          </PageHead>
          <Figures
            rows={[
              ["Status", <State key="s" state={device.status} />],
              ["Runs", device.facts.version ?? "no answer"],
              ["Heard of", ago(device.last_seen)],
              ["Updates", device.enabled ? "allowed" : "disabled"],
            ]}
          />
          <div className="cols">
            <Panel title="What it is">
              <Facts
                rows={[
                  ["Place", <Link key="p" href={`/fleet/${placePath(device.path.split("/").slice(0, 3).join("/"))}`}>{device.path}</Link>],
                  ["Node", device.node ?? "none has told of it yet"],
                  ["Component", device.facts.component],
                  ["Executor", device.facts.executor],
                  ...Object.entries(device.facts.labels ?? {}).map(([name, value]): [string, string] => [`Label ${name}`, value]),
                  ...(device.registration
                    ? ([
                        ["Hardware", device.registration.hardware_id],
                        ["Registered", moment(device.registration.registered)],
                        ["Tags", device.registration.tags.join(", ") || "none"],
                        ...(device.registration.held ? [["Held", device.registration.held]] : []),
                        ...(device.registration.mismatch ? [["Does not fit", device.registration.mismatch]] : []),
                      ] as [string, string][])
                    : []),
                ]}
              />
            </Panel>
            <Panel title="Its attempt">
              {device.attempt ? (
                <>
                  <Steps state={device.attempt.state} />
                  <Facts
                    rows={[
                      ["Campaign", <Link key="c" href={`/campaigns/${device.attempt.campaign}`}>{device.attempt.campaign}</Link>],
                      ["Wave", device.attempt.wave],
                      ["Attempt", device.attempt.attempt ?? 1],
                      ["State", <State key="s" state={device.attempt.state} />],
                      ["Why", device.attempt.reason || "–"],
                    ]}
                  />
                </>
              ) : (
                <p className="quiet">It was never in a campaign.</p>
              )}
            </Panel>
          </div>
          <Panel title="Attempts, past and present" flush>
            <Await of={updates}>
              {({ items }) => (
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
                            <Link href={`/campaigns/${update.campaign}`}>{update.campaign}</Link>
                          </th>
                          <td>{releaseName(update.release)}</td>
                          <td data-label="From">{update.from_version}</td>
                          <td>
                            <State state={update.state} />
                          </td>
                          <td data-label="Ended">{update.ended ? moment(update.ended) : `${update.progress} %`}</td>
                          <td className="quiet">{update.reason || "–"}</td>
                        </tr>
                      ))}
                      {items.length === 0 && (
                        <tr>
                          <td colSpan={6} className="quiet">
                            none
                          </td>
                        </tr>
                      )}
                    </tbody>
                  </table>
                </div>
              )}
            </Await>
          </Panel>
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
        </>
      )}
    </Await>
  );
}

const WAY = ["pending", "downloading", "verifying", "staged", "installing", "rebooting", "validating", "success"];

/** The way of an attempt, and how far it is. */
function Steps({ state }: { state: string }) {
  const at = WAY.indexOf(state);
  return (
    <ol className="keys" aria-label="Steps">
      {WAY.map((step, place) => (
        <li key={step} className={`key ${place < at || state === "success" ? "good" : place === at ? "busy" : "idle"}`} aria-current={place === at ? "step" : undefined}>
          <i aria-hidden="true" />
          {place === at ? <b>{words(step)}</b> : words(step)}
        </li>
      ))}
      {at < 0 && (
        <li>
          <State state={state} />
        </li>
      )}
    </ol>
  );
}

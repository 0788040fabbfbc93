import { useState } from "react";
import { PageHead, Panel, State } from "../parts/ui";
import { VirtualList } from "../parts/virtual";
import { Link, goQuery, useQuery } from "../router";
import type { Device } from "../types";
import { DevicePage } from "./device";
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
        { name: "Device", width: "minmax(90px, 2fr)", phone: true, cell: (row) => <Link href={`/devices/${encodeURIComponent(row.facts.device)}`}>{row.facts.device}</Link> },
        { name: "Status", width: "minmax(104px, 1fr)", phone: true, cell: (row) => <State state={row.status} /> },
        { name: "Runs", width: "minmax(56px, 1fr)", phone: true, cell: (row) => row.facts.version ?? "no answer" },
        { name: "Kind", width: "minmax(120px, 2fr)", cell: (row) => `${row.facts.vendor} ${row.facts.model} ${row.facts.component}` },
        { name: "Place", width: "minmax(120px, 2fr)", cell: (row) => <span title={row.path}>{row.path}</span> },
        { name: "Campaign", width: "minmax(80px, 1fr)", cell: (row) => (row.attempt ? <Link href={`/campaigns/${row.attempt.campaign}`}>{row.attempt.campaign}</Link> : "–") },
      ]}
    />
  );
}

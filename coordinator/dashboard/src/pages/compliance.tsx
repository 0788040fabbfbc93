// Who runs what he is to run: per baseline, region and site; as CSV, and on paper.

import { useState } from "react";
import { read, save } from "../api";
import { add, moment, number, percent, plural, releaseName, sum } from "../format";
import { useLoaded } from "../live";
import { Await, Empty, Figures, PageHead, Panel, State, StateBar, StateKeys, Trouble } from "../parts/ui";
import { VirtualList } from "../parts/virtual";
import { told } from "../rules";
import { Link, goQuery, useQuery } from "../router";
import { useMay } from "../session";
import type { Baseline, Compliance, Drift } from "../types";
import { BaselineActions, NewBaseline } from "./baseline_form";

export function CompliancePage({ rest }: { rest: string }) {
  return rest ? <BaselinePage key={rest} id={rest} /> : <Report />;
}

const load = async (signal: AbortSignal) => (await read<{ items: Compliance[] }>("compliance", signal)).items;

const saveAll = () => save("compliance?format=csv", `firmesh-compliance-${new Date().toISOString().slice(0, 10)}.csv`);

const regionsOf = (one: Compliance) => {
  const regions: Record<string, Record<string, number>> = {};
  for (const [site, states] of Object.entries(one.sites)) add((regions[site.split("/")[0]!] ??= {}), states);
  return Object.entries(regions).sort(([a], [b]) => a.localeCompare(b));
};

function Report() {
  const loaded = useLoaded("compliance", load, (event) => event.kind === "campaign", 15_000);
  const [error, setError] = useState<Error | null>(null);
  const [making, setMaking] = useState(false);
  const mayWrite = useMay("policy:write");
  return (
    <>
      <PageHead title="Compliance" sub={`What devices are to run, and do. As of ${moment(new Date().toISOString())}.`}>
        {mayWrite && <button className="button primary" onClick={() => setMaking(true)}>New baseline</button>}
        <button className="button" onClick={() => void saveAll().catch(setError)}>Save as CSV</button>
        <button className="button" onClick={() => print()}>Print</button>
      </PageHead>
      {error && <Trouble error={error} />}
      {making && (
        <NewBaseline
          close={(made) => {
            setMaking(false);
            if (made) loaded.reload();
          }}
        />
      )}
      <Await of={loaded}>
        {(items) => {
          const states = items.reduce((all, one) => add(all, one.states), {} as Record<string, number>);
          return (
            <>
              {items.length === 0 && (
                <section className="panel">
                  <Empty>
                    <p>No baselines yet.</p>
                    <p className="small">A baseline says which releases devices are to run; this page then says who does, who is behind, and who is ahead.</p>
                  </Empty>
                </section>
              )}
              {items.length > 0 && (
                <Figures
                  rows={[
                    ["Baselines", number(items.length)],
                    ["Compliant", percent(states.compliant ?? 0, sum(states))],
                    ["Behind", number(states.behind ?? 0)],
                    ["Ahead", number(states.ahead ?? 0)],
                    ["Not known", number(states.unknown ?? 0)],
                  ]}
                />
              )}
              {items.map((one) => (
                <Panel key={one.baseline} title={one.baseline} aside={<Link href={`/compliance/${one.baseline}`}>Who has drifted</Link>} flush>
                  <div className="body" style={{ padding: 14 }}>
                    <StateBar states={one.states} tall />
                    <StateKeys states={one.states} />
                  </div>
                  <Places rows={regionsOf(one)} name="Region" />
                </Panel>
              ))}
            </>
          );
        }}
      </Await>
    </>
  );
}

function Places({ rows, name }: { rows: [string, Record<string, number>][]; name: string }) {
  return (
    <div className="scroll-x">
      <table className="stacked">
        <thead>
          <tr>
            <th scope="col">{name}</th>
            <th scope="col" className="num">Devices</th>
            <th scope="col" className="num">Compliant</th>
            <th scope="col" className="num">Behind</th>
            <th scope="col" className="num">Ahead</th>
            <th scope="col" className="num">Not known</th>
            <th scope="col" style={{ width: "30%" }}>States</th>
          </tr>
        </thead>
        <tbody>
          {rows.map(([place, states]) => (
            <tr key={place}>
              <th scope="row">{place}</th>
              <td className="num" data-label="Devices">{number(sum(states))}</td>
              <td className="num" data-label="Compliant">{percent(states.compliant ?? 0, sum(states))}</td>
              <td className="num" data-label="Behind">{number(states.behind ?? 0)}</td>
              <td className="num" data-label="Ahead">{number(states.ahead ?? 0)}</td>
              <td className="num" data-label="Not known">{number(states.unknown ?? 0)}</td>
              <td><StateBar states={states} /></td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

const STATES = ["behind", "ahead", "unknown", "not_covered", "compliant"];

function BaselinePage({ id }: { id: string }) {
  const state = useQuery().get("state") ?? "";
  const loaded = useLoaded(`baseline ${id}`, async (signal) => {
    const [baseline, all] = await Promise.all([read<Baseline>(`baselines/${encodeURIComponent(id)}`, signal), load(signal)]);
    return { baseline, compliance: all.find((one) => one.baseline === id) };
  });
  return (
    <>
      <PageHead title={id} crumbs={[["Compliance", "/compliance"]]} sub={loaded.data?.baseline.description}>
        {loaded.data && <BaselineActions baseline={loaded.data.baseline} changed={loaded.reload} />}
        <button className="button" onClick={() => print()}>Print</button>
      </PageHead>
      <Await of={loaded}>
        {({ baseline, compliance }) => (
          <>
            <Panel title="What devices are to run" aside={<span className="quiet small">{plural(baseline.releases.length, "release")}</span>}>
              <ul className="keys">
                {baseline.releases.map((release) => (
                  <li key={release}>
                    <Link href={`/artifacts/${encodeURIComponent(releaseName(release))}`}>{releaseName(release)}</Link>
                    {baseline.missing?.includes(release) && <State state="blocked" label="nobody signs for it any more" />}
                  </li>
                ))}
              </ul>
              <p className="quiet small">
                {baseline.reconcile ? `Devices that drift are brought back by campaigns that approvers sign: ${told(baseline.reconcile).map(([name, value]) => `${name} ${value}`).join("; ")}.` : "Nobody drafts campaigns for devices that drift: firmesh baseline set --reconcile FILE says by which rules."}
              </p>
              <p className="quiet small">For {baseline.filter ? <code>{baseline.filter}</code> : "all devices"}.</p>
            </Panel>
            {compliance && (
              <Panel title="By site" flush>
                <Places rows={Object.entries(compliance.sites).slice(0, 2000)} name="Site" />
              </Panel>
            )}
            <Panel
              title="Devices"
              aside={
                <select aria-label="State" style={{ width: 170 }} value={state} onChange={(event) => goQuery({ state: event.target.value })}>
                  <option value="">every state</option>
                  {STATES.map((one) => (
                    <option key={one} value={one}>{one.replaceAll("_", " ")}</option>
                  ))}
                </select>
              }
              flush
            >
              <VirtualList<Drift>
                label="Drift"
                path={`baselines/${encodeURIComponent(id)}/drift`}
                query={state ? `state=${state}` : ""}
                rowKey={(row) => row.device}
                empty={<p>No device is so.</p>}
                columns={[
                  { name: "Device", width: "minmax(90px, 2fr)", phone: true, cell: (row) => <Link href={`/devices/${encodeURIComponent(row.device)}`}>{row.device}</Link> },
                  { name: "State", width: "minmax(112px, 1fr)", phone: true, cell: (row) => <State state={row.state} /> },
                  { name: "Runs", width: "minmax(56px, 1fr)", phone: true, cell: (row) => row.version ?? "no answer" },
                  { name: "Is to run", width: "minmax(70px, 1fr)", cell: (row) => row.wanted ?? "–" },
                  { name: "Place", width: "minmax(120px, 2fr)", cell: (row) => row.path },
                ]}
              />
            </Panel>
          </>
        )}
      </Await>
    </>
  );
}

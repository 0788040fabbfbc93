// The fleet from above: regions, sites, racks, and what runs there. Never a list of all devices: the coordinator counts.

import { useMemo, useState } from "react";
import { list, page, placePath, read } from "../api";
import { add, leaf, number, percent, plural, quoted, rackOf, sum } from "../format";
import { useLoaded } from "../live";
import { Await, Empty, Figures, PageHead, Panel, State, StateBar, StateKeys } from "../parts/ui";
import { Link, go } from "../router";
import type { Compliance, MeshNode, Place } from "../types";
import { DeviceList } from "./devices";

/** Counting a million devices takes the coordinator a while: not at every event. */
const EVERY = 15_000;
const SITES_MOST = 5_000;
/** Nodes that are read to name a site's racks. */
const NODES_MOST = 5_000;

export function FleetPage({ rest }: { rest: string }) {
  return rest ? <PlacePage key={rest} path={rest} /> : <Regions />;
}

const total = (places: Place[]): Omit<Place, "path"> => {
  const all = { nodes: 0, nodes_silent: 0, devices: 0, statuses: {}, versions: {} as Place["versions"] };
  for (const place of places) {
    all.nodes += place.nodes;
    all.nodes_silent += place.nodes_silent;
    all.devices += place.devices;
    add(all.statuses, place.statuses);
    for (const [kind, versions] of Object.entries(place.versions)) add((all.versions[kind] ??= {}), versions);
  }
  return all;
};

const BAD = ["failed", "timed_out", "quarantined", "rolled_back"];
const wrong = (statuses: Record<string, number>) => BAD.reduce((count, state) => count + (statuses[state] ?? 0), 0);

function FilterSearch({ within }: { within?: string }) {
  const [text, setText] = useState("");
  return (
    <form
      className="search"
      onSubmit={(event) => {
        event.preventDefault();
        const parts = [within ? `path under ${quoted(within)}` : "", text.trim() ? asFilter(text) : ""].filter(Boolean);
        go(`/devices?filter=${encodeURIComponent(parts.length > 1 ? `${parts[0]} and (${parts[1]})` : (parts[0] ?? ""))}`);
      }}
    >
      <input type="search" aria-label="Find devices by a name or a filter" placeholder='A device, or a filter: model == "R1" and not state == "success"' value={text} onChange={(event) => setText(event.target.value)} spellCheck={false} />
      <button className="button">Find devices</button>
    </form>
  );
}

/** What is no filter is taken for a device's name. */
export const asFilter = (text: string) => (/^[\w.:-]+$/.test(text.trim()) ? `device == ${quoted(text.trim())}` : text.trim());

function Regions() {
  const loaded = useLoaded(
    "fleet",
    async (signal) => {
      const [regions, sites, compliance] = await Promise.all([
        list<Place>("regions", 1000, signal),
        list<Place>("sites", SITES_MOST, signal),
        read<{ items: Compliance[] }>("compliance", signal),
      ]);
      return { regions: regions.items, sites: sites.items, more: sites.more, compliance: compliance.items };
    },
    (event) => event.kind === "attempt" || event.kind === "campaign",
    EVERY,
  );
  return (
    <>
      <PageHead title="Fleet" sub="Regions, sites and racks, and what runs there." />
      <FilterSearch />
      <Await of={loaded}>
        {({ regions, sites, more, compliance }) => {
          const all = total(regions);
          return (
            <>
              <Overview place={all} />
              <Against compliance={compliance} />
              {regions.length === 0 && (
                <section className="panel">
                  <Empty>No nodes yet: a place is there with its first node.</Empty>
                </section>
              )}
              {regions.map((region) => (
                <PlaceTable key={region.path} title={region.path} aside={`${plural(region.devices, "device")} at ${plural(region.nodes, "node")}`} rows={sites.filter((site) => site.path.startsWith(`${region.path}/`))} compliance={compliance} />
              ))}
              {more && <p className="quiet">Only the first {number(SITES_MOST)} sites are shown.</p>}
              <Versions versions={all.versions} />
            </>
          );
        }}
      </Await>
    </>
  );
}

function Overview({ place }: { place: Omit<Place, "path"> }) {
  return (
    <>
      <Figures
        rows={[
          ["Devices", number(place.devices)],
          ["Nodes", number(place.nodes), place.nodes_silent ? <State key="s" state="offline" label={`${number(place.nodes_silent)} silent`} /> : "all heard of"],
          ["Went wrong", wrong(place.statuses) ? <span key="w" className="tag bad big">{number(wrong(place.statuses))}</span> : "0", percent(wrong(place.statuses), place.devices)],
          ["Do not answer", number(place.statuses.offline ?? 0)],
        ]}
      />
      <section className="panel" aria-label="Devices by status">
        <div className="body">
          <StateBar states={place.statuses} tall />
          <StateKeys states={place.statuses} />
        </div>
      </section>
    </>
  );
}

function Against({ compliance }: { compliance: Compliance[] }) {
  if (compliance.length === 0) return null;
  return (
    <Panel title="Against baselines" aside={<Link href="/compliance">Compliance</Link>} flush>
      <table className="stacked">
        <thead>
          <tr>
            <th scope="col">Baseline</th>
            <th scope="col" className="num">Devices</th>
            <th scope="col" className="num">Compliant</th>
            <th scope="col" style={{ width: "40%" }}>States</th>
          </tr>
        </thead>
        <tbody>
          {compliance.map((one) => (
            <tr key={one.baseline}>
              <th scope="row">
                <Link href={`/compliance/${one.baseline}`}>{one.baseline}</Link>
              </th>
              <td className="num" data-label="Devices">{number(one.devices)}</td>
              <td className="num" data-label="Compliant">{percent(one.states.compliant ?? 0, one.devices)}</td>
              <td>
                <StateBar states={one.states} />
              </td>
            </tr>
          ))}
        </tbody>
      </table>
    </Panel>
  );
}

function drifted(compliance: Compliance[], path: string): number {
  let count = 0;
  for (const one of compliance) {
    const states = one.sites[path];
    count += (states?.behind ?? 0) + (states?.ahead ?? 0);
  }
  return count;
}

function PlaceTable({ title, aside, rows, compliance }: { title: string; aside: string; rows: Place[]; compliance: Compliance[] }) {
  return (
    <Panel title={title} aside={<span className="quiet small">{aside}</span>} flush>
      <div className="scroll-x">
        <table className="stacked">
          <thead>
            <tr>
              <th scope="col">Site</th>
              <th scope="col" className="num">Devices</th>
              <th scope="col" className="num">Nodes</th>
              <th scope="col" style={{ width: "32%" }}>Status</th>
              <th scope="col" className="num">Went wrong</th>
              {compliance.length > 0 && <th scope="col" className="num">Drifted</th>}
              <th scope="col" className="num">Versions</th>
            </tr>
          </thead>
          <tbody>
            {rows.map((site) => (
              <tr key={site.path}>
                <th scope="row">
                  <Link href={`/fleet/${placePath(site.path)}`}>{site.path}</Link>
                </th>
                <td className="num" data-label="Devices">{number(site.devices)}</td>
                <td className="num" data-label="Nodes">
                  {number(site.nodes)}
                  {site.nodes_silent > 0 && <span className="tag warn"> ({number(site.nodes_silent)} silent)</span>}
                </td>
                <td>
                  <StateBar states={site.statuses} />
                </td>
                <td className="num" data-label="Went wrong">{number(wrong(site.statuses))}</td>
                {compliance.length > 0 && <td className="num" data-label="Drifted">{number(drifted(compliance, site.path))}</td>}
                <td className="num" data-label="Versions">{number(Object.values(site.versions).reduce((count, versions) => count + Object.keys(versions).length, 0))}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </Panel>
  );
}

function Versions({ versions }: { versions: Place["versions"] }) {
  const rows = Object.entries(versions);
  if (rows.length === 0) return null;
  return (
    <Panel title="What runs" flush>
      <div className="scroll-x">
        <table className="stacked">
          <thead>
            <tr>
              <th scope="col">Kind</th>
              <th scope="col" className="num">Devices</th>
              <th scope="col">Versions</th>
            </tr>
          </thead>
          <tbody>
            {rows.slice(0, 200).map(([kind, counts]) => {
              const all = sum(counts);
              return (
                <tr key={kind}>
                  <th scope="row">{kind}</th>
                  <td className="num" data-label="Devices">{number(all)}</td>
                  <td>
                    <ul className="keys">
                      {Object.entries(counts)
                        .sort((a, b) => b[1] - a[1])
                        .slice(0, 12)
                        .map(([version, count]) => (
                          <li key={version}>
                            <b>{version || "no answer"}</b> {number(count)} ({percent(count, all)})
                          </li>
                        ))}
                    </ul>
                  </td>
                </tr>
              );
            })}
          </tbody>
        </table>
      </div>
    </Panel>
  );
}

function PlacePage({ path }: { path: string }) {
  const levels = path.split("/");
  const loaded = useLoaded(`place ${path}`, (signal) => read<Place>(`sites/${placePath(path)}`, signal), (event) => event.kind === "attempt", EVERY);
  const crumbs = levels.slice(0, -1).map((_, at): [string, string] => [levels[at]!, `/fleet/${placePath(levels.slice(0, at + 1).join("/"))}`]);
  return (
    <>
      <PageHead title={path} crumbs={[["Fleet", "/fleet"], ...crumbs]} />
      <FilterSearch within={path} />
      <Await of={loaded}>
        {(place) => (
          <>
            <Overview place={place} />
            {levels.length === 1 && <div className="slow-part"><SitesOf region={path} /></div>}
            {levels.length === 2 && <div className="slow-part"><Racks site={path} /></div>}
            <Versions versions={place.versions} />
            <Panel title="Devices here" flush>
              <DeviceList filter={`path under ${quoted(path)}`} />
            </Panel>
          </>
        )}
      </Await>
    </>
  );
}

function SitesOf({ region }: { region: string }) {
  const loaded = useLoaded(`sites of ${region}`, (signal) => list<Place>("sites", SITES_MOST, signal));
  return <Await of={loaded}>{({ items }) => <PlaceTable title="Sites" aside="" rows={items.filter((site) => site.path.startsWith(`${region}/`))} compliance={[]} />}</Await>;
}

/** The API lists no racks: they are found where the nodes stand. */
function Racks({ site }: { site: string }) {
  const loaded = useLoaded(`racks of ${site}`, async (signal) => {
    const found: MeshNode[] = [];
    let read = 0;
    for (let query: string | null = "?limit=1000"; query && read < NODES_MOST; ) {
      const one: { items: MeshNode[]; next: string | null } = await page<MeshNode>("nodes", query, signal);
      read += one.items.length;
      found.push(...one.items.filter((node) => node.path.startsWith(`${site}/`)));
      query = one.next;
    }
    return found;
  });
  return <Await of={loaded}>{(nodes) => <RackTable nodes={nodes} />}</Await>;
}

function RackTable({ nodes }: { nodes: MeshNode[] }) {
  const racks = useMemo(() => {
    const racks = new Map<string, MeshNode[]>();
    for (const node of nodes) {
      const rack = rackOf(node.path);
      racks.set(rack, [...(racks.get(rack) ?? []), node]);
    }
    return [...racks].sort(([a], [b]) => a.localeCompare(b, "en", { numeric: true }));
  }, [nodes]);
  if (racks.length === 0) return null;
  return (
    <Panel title="Racks" aside={<span className="quiet small">{plural(racks.length, "rack")}</span>} flush>
      <div className="scroll-x" style={{ maxHeight: 360, overflowY: "auto" }} tabIndex={0} role="region" aria-label="Racks of the site">
        <table>
          <thead>
            <tr>
              <th scope="col">Rack</th>
              <th scope="col" className="num">Nodes</th>
              <th scope="col">Images held</th>
            </tr>
          </thead>
          <tbody>
            {racks.map(([rack, nodes]) => {
              const holdings = nodes.flatMap((node) => node.holdings);
              const [have, all] = holdings.reduce(([have, all], one) => [have + one.pieces, all + one.pieces_total], [0, 0]);
              return (
                <tr key={rack}>
                  <th scope="row">
                    <Link href={`/fleet/${placePath(rack)}`}>{leaf(rack)}</Link>
                  </th>
                  <td className="num">{number(nodes.length)}</td>
                  <td>{all ? `${percent(have, all)} of what its nodes fetch` : "none"}</td>
                </tr>
              );
            })}
          </tbody>
        </table>
      </div>
    </Panel>
  );
}


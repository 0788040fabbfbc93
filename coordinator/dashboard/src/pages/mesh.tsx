// The picture of Firmesh: an image leaves the origin about once, racks pass it on, and nodes fill up piece by piece.

import { memo, useEffect, useMemo, useReducer, useRef } from "react";
import { list, placePath } from "../api";
import { ago, bytes, leaf, number, percent, plural, rackOf, releaseName } from "../format";
import { useEvents, useLoaded } from "../live";
import { Await, Empty, Figures, PageHead, Panel, useNow } from "../parts/ui";
import { Link, goQuery, useQuery } from "../router";
import type { Artifact, MeshNode, Release, Traffic } from "../types";

/** More would neither be read by a person nor drawn at ease. */
const NODES_MOST = 4_000;
const RACKS_SHOWN = 40;
const RACK_PITCH = 114;
/** How long a wire counts as moving after its bytes have grown. */
const MOVING_MS = 4_000;
const SILENT_MS = 60_000;

interface Rack { path: string; nodes: MeshNode[]; traffic: Traffic; moving: { origin: boolean; peers: boolean } }
interface Grown { origin: number; peers: number }

export function MeshPage() {
  const loaded = useLoaded("mesh", async (signal) => {
    const [nodes, artifacts, releases] = await Promise.all([
      list<MeshNode>("nodes", NODES_MOST, signal),
      list<Artifact>("artifacts", 1000, signal),
      list<Release>("releases", 1000, signal).then(({ items }) => items as unknown as { release: Release }[]),
    ]);
    return { nodes: nodes.items, more: nodes.more, artifacts: artifacts.items, releases: releases.map((view) => view.release) };
  }, (event) => event.kind === "artifact");
  return (
    <>
      <PageHead title="Mesh" sub="Who feeds whom: each rack takes an image about once, and its nodes share it." />
      <Await of={loaded}>{(data) => <Mesh {...data} />}</Await>
    </>
  );
}

const NONE: Traffic = { from_origin: 0, from_rack: 0, from_other_racks: 0, to_rack: 0, to_other_racks: 0, verification_failures: 0, fetched_again: 0, reused: 0 };
const plus = (a: Traffic, b: Traffic): Traffic => {
  const all = { ...a };
  for (const name of Object.keys(all) as (keyof Traffic)[]) all[name] += b[name] ?? 0;
  return all;
};

function Mesh({ nodes: read, more, artifacts, releases }: { nodes: MeshNode[]; more: boolean; artifacts: Artifact[]; releases: Release[] }) {
  const query = useQuery();
  const nodes = useRef(new Map<string, MeshNode>());
  const grown = useRef(new Map<string, Grown>());
  const [turn, redraw] = useReducer((turn: number) => turn + 1, 0);
  const drawing = useRef(false);
  const now = useNow(1_000);
  useEffect(() => {
    nodes.current = new Map(read.map((node) => [node.node, node]));
    redraw();
  }, [read]);
  useEvents((event) => {
    if (event === "reload" || event.kind !== "node") return;
    const before = nodes.current.get(event.data.node);
    if (!before && nodes.current.size >= NODES_MOST) return;
    const last = grown.current.get(event.data.node) ?? { origin: 0, peers: 0 };
    if (before) {
      if (event.data.traffic.from_origin > before.traffic.from_origin) last.origin = Date.now();
      if (event.data.traffic.from_other_racks > before.traffic.from_other_racks) last.peers = Date.now();
    }
    grown.current.set(event.data.node, last);
    nodes.current.set(event.data.node, event.data);
    // One picture per frame, however many nodes speak.
    if (drawing.current) return;
    drawing.current = true;
    requestAnimationFrame(() => {
      drawing.current = false;
      redraw();
    });
  });

  const all = useMemo(() => [...nodes.current.values()].filter((node) => node.enrolled && !node.revoked), [turn]);
  const image = useImage(all, artifacts, releases, query.get("image"));
  const sites = useMemo(() => [...new Set(all.map((node) => node.path.split("/").slice(0, 2).join("/")))].sort(), [all]);
  const site = query.get("site") ?? "";
  const racks = useMemo(() => {
    const racks = new Map<string, Rack>();
    for (const node of all) {
      if (site && !node.path.startsWith(`${site}/`)) continue;
      const path = rackOf(node.path);
      const rack = racks.get(path) ?? { path, nodes: [], traffic: NONE, moving: { origin: false, peers: false } };
      const last = grown.current.get(node.node);
      rack.nodes.push(node);
      rack.traffic = plus(rack.traffic, node.traffic);
      if (last && now - last.origin < MOVING_MS) rack.moving.origin = true;
      if (last && now - last.peers < MOVING_MS) rack.moving.peers = true;
      racks.set(path, rack);
    }
    return [...racks.values()].sort((a, b) => a.path.localeCompare(b.path, "en", { numeric: true }));
  }, [all, site, now]);

  if (all.length === 0) return <section className="panel"><Empty>No nodes yet. Invite one: firmesh node invite --help</Empty></section>;
  const traffic = racks.map((rack) => rack.traffic).reduce(plus, NONE);
  const lengths = new Map(artifacts.map((artifact) => [artifact.id, artifact.length]));
  // One copy of every image that is here leaves the origin; every rack that has some of it takes it in about once.
  const held = new Set(racks.flatMap((rack) => rack.nodes.flatMap((node) => node.holdings.map((one) => one.artifact))));
  const originMin = [...held].reduce((sum, id) => sum + (lengths.get(id) ?? 0), 0);
  const intoRacks = racks.reduce((sum, rack) => sum + [...new Set(rack.nodes.flatMap((node) => node.holdings.map((one) => one.artifact)))].reduce((sum, id) => sum + (lengths.get(id) ?? 0), 0), 0);
  const crossMin = Math.max(0, intoRacks - originMin);
  const delivered = traffic.from_origin + traffic.from_other_racks + traffic.from_rack;
  const banned = all.flatMap((node) => Object.entries(node.banned).map(([peer, why]) => ({ by: node.node, peer, why })));
  const bannedPeers = new Set(banned.map((one) => one.peer));
  return (
    <>
      <Figures
        rows={[
          ["Left the origin", bytes(traffic.from_origin), originMin ? `${(traffic.from_origin / originMin).toFixed(2)} of one copy` : undefined],
          ["Between racks", bytes(traffic.from_other_racks), crossMin ? `${(traffic.from_other_racks / crossMin).toFixed(2)} of the minimum` : undefined],
          ["Within racks", bytes(traffic.from_rack)],
          ["From the origin", percent(traffic.from_origin, delivered), "of all that was delivered"],
          ["Reused", bytes(traffic.reused), "had not to be fetched"],
          ["Refused", number(traffic.verification_failures), "pieces that did not verify"],
        ]}
      />
      <div className="search">
        <label className="field" style={{ flex: "2 1 240px" }}>
          <span>Image</span>
          <select value={image?.id ?? ""} onChange={(event) => goQuery({ image: event.target.value })}>
            {artifacts.filter((artifact) => held.has(artifact.id)).map((artifact) => (
              <option key={artifact.id} value={artifact.id}>
                {imageName(artifact, releases)}, {bytes(artifact.length)}
              </option>
            ))}
          </select>
        </label>
        <label className="field" style={{ flex: "1 1 160px" }}>
          <span>Site</span>
          <select value={site} onChange={(event) => goQuery({ site: event.target.value })}>
            <option value="">all sites</option>
            {sites.map((one) => (
              <option key={one}>{one}</option>
            ))}
          </select>
        </label>
      </div>
      <Panel title="From the origin into the racks" aside={<Legend />}>
        <div className="mesh">
          <div className="mesh-origin">
            <div className="origin-box">
              <strong>Origin</strong>
              <p className="small quiet">{image ? imageName(image, releases) : ""}</p>
              <p className="small">{bytes(traffic.from_origin)} out</p>
            </div>
          </div>
          <Wires racks={racks.slice(0, RACKS_SHOWN)} />
          <ol aria-label="Racks">
            {racks.slice(0, RACKS_SHOWN).map((rack) => (
              <RackRow key={rack.path} rack={rack} image={image} most={Math.max(...racks.map((one) => one.traffic.from_origin + one.traffic.from_other_racks + one.traffic.from_rack), 1)} banned={bannedPeers} now={now} />
            ))}
          </ol>
        </div>
        {racks.length > RACKS_SHOWN && <p className="quiet">{plural(racks.length - RACKS_SHOWN, "more rack")}: choose a site to see its own.</p>}
        {more && <p className="quiet">Only the first {number(NODES_MOST)} nodes are drawn; the API lists nodes by name, not by place.</p>}
        <p className="quiet small">A square is a node: it fills as pieces of the image arrive and verify (how many, not which). Bytes count since each node was started.</p>
      </Panel>
      {banned.length > 0 && (
        <Panel title="Banned peers" flush>
          <table>
            <thead>
              <tr>
                <th scope="col">Peer</th>
                <th scope="col">Banned by</th>
                <th scope="col">Why</th>
              </tr>
            </thead>
            <tbody>
              {banned.slice(0, 200).map((one) => (
                <tr key={`${one.by} ${one.peer}`}>
                  <th scope="row">{one.peer}</th>
                  <td>{one.by}</td>
                  <td>{one.why}</td>
                </tr>
              ))}
            </tbody>
          </table>
        </Panel>
      )}
    </>
  );
}

const imageName = (artifact: Artifact, releases: Release[]) => {
  const named = releases.filter((release) => release.artifact.id === artifact.id).map((release) => releaseName(release.target));
  return named.length > 1 ? `${named[0]} and ${plural(named.length - 1, "other")}` : (named[0] ?? artifact.id.slice(0, 12));
};

/** The one that was asked for; else the one that is least complete, then the largest. */
function useImage(nodes: MeshNode[], artifacts: Artifact[], releases: Release[], asked: string | null): Artifact | null {
  return useMemo(() => {
    const chosen = artifacts.find((artifact) => artifact.id === asked);
    if (chosen) return chosen;
    const left = new Map<string, number>();
    for (const node of nodes) for (const one of node.holdings) left.set(one.artifact, (left.get(one.artifact) ?? 0) + one.pieces_total - one.pieces);
    const order = (artifact: Artifact) => (left.get(artifact.id) ?? -1) * 1e6 + artifact.length / 1e6;
    return artifacts.filter((artifact) => left.has(artifact.id)).sort((a, b) => order(b) - order(a))[0] ?? null;
  }, [nodes, artifacts, releases, asked]);
}

function Legend() {
  return (
    <ul className="keys src-legend">
      <li className="key"><i className="src-origin" aria-hidden="true" /> origin</li>
      <li className="key"><i className="src-peer" aria-hidden="true" /> other racks</li>
      <li className="key"><i className="src-rack" aria-hidden="true" /> own rack</li>
      <li className="key"><i className="src-reused" aria-hidden="true" /> reused</li>
    </ul>
  );
}

/** Wires from the origin, as thick as what went through them; between racks an arc down the side. */
function Wires({ racks }: { racks: Rack[] }) {
  const height = Math.max(1, racks.length * RACK_PITCH);
  const middle = height / 2;
  const most = Math.max(...racks.map((rack) => Math.max(rack.traffic.from_origin, rack.traffic.from_other_racks)), 1);
  const thick = (count: number) => (count === 0 ? 0 : 1 + 7 * Math.sqrt(count / most));
  return (
    <svg className="wires" height={height} viewBox={`0 0 120 ${height}`} aria-hidden="true">
      {racks.map((rack, place) => {
        const y = place * RACK_PITCH + 42;
        return <path key={rack.path} className={rack.moving.origin ? "wire-origin wire-moving" : "wire-origin"} strokeWidth={thick(rack.traffic.from_origin)} opacity={0.85} d={`M 0 ${middle} C 60 ${middle}, 50 ${y}, 118 ${y}`} />;
      })}
      {racks.length > 1 && (
        <path className="wire-peer" strokeWidth={2} opacity={0.5} d={`M 92 ${58} L 92 ${height - RACK_PITCH + 62}`} />
      )}
      {racks.length > 1 && racks.map((rack, place) => {
        const y = place * RACK_PITCH + 60;
        return <path key={rack.path} className={rack.moving.peers ? "wire-peer wire-moving" : "wire-peer"} strokeWidth={thick(rack.traffic.from_other_racks)} opacity={0.85} d={`M 92 ${y} L 118 ${y}`} />;
      })}
    </svg>
  );
}

function RackRow({ rack, image, most, banned, now }: { rack: Rack; image: Artifact | null; most: number; banned: Set<string>; now: number }) {
  const { traffic } = rack;
  const side = rack.nodes.length <= 8 ? 46 : rack.nodes.length <= 24 ? 30 : rack.nodes.length <= 60 ? 20 : 13;
  const holdings = rack.nodes.map((node) => node.holdings.find((one) => one.artifact === image?.id));
  const have = holdings.reduce((sum, one) => sum + (one?.pieces ?? 0), 0);
  const all = rack.nodes.length * (holdings.find((one) => one)?.pieces_total ?? 0);
  const delivered = traffic.from_origin + traffic.from_other_racks + traffic.from_rack + traffic.reused;
  const sources: [string, string, number][] = [["origin", "src-origin", traffic.from_origin], ["other racks", "src-peer", traffic.from_other_racks], ["own rack", "src-rack", traffic.from_rack], ["reused", "src-reused", traffic.reused]];
  return (
    <li className="rack">
      <div>
        <strong>
          <Link href={`/fleet/${placePath(rack.path)}`}>{leaf(rack.path)}</Link>
        </strong>
        <p className="small quiet">{plural(rack.nodes.length, "node")}, {all ? `${percent(have, all)} here` : "takes no part"}</p>
      </div>
      <div className="rack-cells">
        {rack.nodes.map((node, place) => (
          <Cell key={node.node} name={node.node} pieces={holdings[place]?.pieces ?? 0} total={holdings[place]?.pieces_total ?? 0} side={side} silent={!node.last_seen || now - Date.parse(node.last_seen) > SILENT_MS} banned={banned.has(node.node)} seen={node.last_seen} />
        ))}
      </div>
      <div>
        <div className="bar" role="img" aria-label={sources.map(([name, , count]) => `${bytes(count)} from ${name}`).join(", ")} style={{ width: `${Math.max(12, (100 * delivered) / most)}%` }}>
          {sources.map(([name, kind, count]) => (count > 0 ? <span key={name} className={kind} style={{ flexGrow: count, flexBasis: 0 }} /> : null))}
        </div>
        <p className="small quiet">
          {bytes(traffic.from_origin)} origin, {bytes(traffic.from_other_racks)} other racks, {bytes(traffic.from_rack)} own
        </p>
      </div>
    </li>
  );
}

/** One node: its share of the image, from the bottom up, in up to 36 fields. */
const Cell = memo(function Cell({ name, pieces, total, side, silent, banned, seen }: { name: string; pieces: number; total: number; side: number; silent: boolean; banned: boolean; seen: string | null }) {
  const grid = side >= 30 ? 6 : 3;
  const on = total === 0 ? 0 : pieces === total ? grid * grid : Math.floor((grid * grid * pieces) / total);
  const field = (side - 4) / grid;
  const says = `${name}: ${total ? `${number(pieces)} of ${number(total)} pieces` : "nothing of this image"}${silent ? `, silent (${ago(seen)})` : ""}${banned ? ", banned by peers" : ""}`;
  return (
    <svg className={`cell${silent ? " silent" : ""}${banned ? " banned" : ""}`} width={side} height={side} role="img" aria-label={says}>
      <title>{says}</title>
      {Array.from({ length: grid * grid }, (_, place) => (
        <rect key={place} className={place < on ? "on" : "off"} x={2 + (place % grid) * field + 0.5} y={side - 2 - (Math.floor(place / grid) + 1) * field + 0.5} width={field - 1} height={field - 1} />
      ))}
      <rect className="frame" x={0.75} y={0.75} width={side - 1.5} height={side - 1.5} rx={3} />
    </svg>
  );
});

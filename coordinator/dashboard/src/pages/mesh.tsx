// The picture of Firmesh: an image leaves the origin about once, racks pass it on, and nodes fill up piece by piece.

import { memo, useEffect, useMemo, useReducer, useRef } from "react";
import { list, placePath } from "../api";
import { NONE, findings, groupBy, into, leastOf, look, plus, racksOf, rateOf, silence, siteOf, taken, times, type Look, type Rack } from "../flows";
import { bytes, leaf, number, percent, plural, releaseName } from "../format";
import { useEvents, useLoaded } from "../live";
import { Await, Command, Empty, Figures, PageHead, Panel, useNow } from "../parts/ui";
import { Link, goQuery, useQuery } from "../router";
import type { Artifact, MeshNode, Release, Traffic } from "../types";
import { Feeds, Links, Members, Watch } from "./links";

/** More would neither be read by a person nor drawn at ease. */
const NODES_MOST = 4_000;
const RACKS_SHOWN = 40;
const RACK_PITCH = 114;

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

function Mesh({ nodes: read, more, artifacts, releases }: { nodes: MeshNode[]; more: boolean; artifacts: Artifact[]; releases: Release[] }) {
  const query = useQuery();
  const nodes = useRef(new Map<string, MeshNode>());
  const looks = useRef(new Map<string, Look[]>());
  const [turn, redraw] = useReducer((turn: number) => turn + 1, 0);
  const drawing = useRef(false);
  const now = useNow(1_000);
  const note = (node: MeshNode) => {
    nodes.current.set(node.node, node);
    looks.current.set(node.node, look(looks.current.get(node.node) ?? [], { at: Date.now(), traffic: node.traffic }));
  };
  useEffect(() => {
    nodes.current = new Map();
    for (const node of read) note(node);
    redraw();
  }, [read]);
  useEvents((event) => {
    if (event === "reload" || event.kind !== "node") return;
    if (!nodes.current.has(event.data.node) && nodes.current.size >= NODES_MOST) return;
    note(event.data);
    // However many nodes speak: up to twenty pictures a second of a hall, two of thousands of nodes.
    if (drawing.current) return;
    drawing.current = true;
    setTimeout(() => {
      drawing.current = false;
      redraw();
    }, Math.max(50, nodes.current.size / 8));
  });

  const all = useMemo(() => [...nodes.current.values()].filter((node) => node.enrolled && !node.revoked), [turn]);
  const image = useImage(all, artifacts, query.get("image"));
  const lengths = useMemo(() => new Map(artifacts.map((artifact) => [artifact.id, artifact.length])), [artifacts]);
  const sites = useMemo(() => [...new Set(all.map((node) => siteOf(node.path)))].sort(), [all]);
  const site = query.get("site") ?? "";
  const here = useMemo(() => (site ? all.filter((node) => siteOf(node.path) === site) : all), [all, site]);
  const rates = useMemo(() => new Map(here.map((node) => [node.node, rateOf(looks.current.get(node.node) ?? [], now)])), [here, now]);
  const racks = useMemo(() => racksOf(here, rates, lengths), [here, rates, lengths]);
  const found = useMemo(() => findings(here, rates), [here, rates]);

  if (all.length === 0) {
    return (
      <section className="panel">
        <Empty>
          <p>No nodes yet. Each one gets a ticket, by its name and place, and enrols itself:</p>
          <Command line="firmesh node enrol NODE --path REGION/SITE/RACK/NODE --out NODE.ticket.json" />
        </Empty>
      </section>
    );
  }
  const traffic = total(racks.map((rack) => rack.traffic));
  const rate = total(racks.map((rack) => rack.rate));
  // A site's WAN link is paid once for each image, and so is each rack's uplink.
  const sitesLeast = leastOf(groupBy(here, (node) => siteOf(node.path)).values(), lengths);
  const racksLeast = leastOf(racks.map((rack) => rack.nodes), lengths);
  const held = new Set(here.flatMap((node) => node.holdings.map((one) => one.artifact)));
  const isSilent = silence(all);
  const banned = new Set(found.filter((one) => one.kind === "banned").map((one) => one.node));
  const most = Math.max(...racks.map((one) => taken(one.traffic) + one.traffic.reused), 1);
  return (
    <>
      <Figures
        rows={[
          ["Left the origin", bytes(traffic.from_origin), sitesLeast.counted ? `${times(traffic.from_origin, sitesLeast)} one copy per site` : "since nodes were restarted"],
          ["Into racks", bytes(into(traffic)), racksLeast.counted ? `${times(into(traffic), racksLeast)} one copy per rack` : "since nodes were restarted"],
          ["Within racks", bytes(traffic.from_rack), "shared by neighbours"],
          ["Origin share", percent(traffic.from_origin, taken(traffic)), "of all that was delivered"],
          ["Moving now", taken(rate) > 0 ? `${bytes(taken(rate))}/s` : "nothing", rate.from_origin > 0 ? `${bytes(rate.from_origin)}/s from the origin` : "nothing from the origin"],
          ["Need a look", found.length === 0 ? "0" : <a key="n" href="#look">{number(found.length)}</a>, plural(here.length, "node")],
        ]}
      />
      <div className="search">
        <label className="field" style={{ flex: "2 1 240px" }}>
          <span>Image</span>
          <select value={image?.id ?? ""} onChange={(event) => goQuery({ image: event.target.value })}>
            {held.size === 0 && <option value="">no image has been fetched yet</option>}
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
              <RackRow key={rack.path} rack={rack} image={image} most={most} banned={banned} isSilent={isSilent} />
            ))}
          </ol>
        </div>
        {racks.length > RACKS_SHOWN && <p className="quiet">{plural(racks.length - RACKS_SHOWN, "more rack")}: choose a site to see its own.</p>}
        {more && <p className="quiet">Only the first {number(NODES_MOST)} nodes are drawn; the API lists nodes by name, not by place.</p>}
        <p className="quiet small">A square is a node: it fills as pieces of the image arrive and verify (how many, not which). Bytes are of all images, since each node was started.</p>
      </Panel>
      <Links racks={racks} />
      <Feeds racks={racks} site={site} />
      <Watch found={found} />
      <Members nodes={here} rates={rates} isSilent={isSilent} />
    </>
  );
}

const total = (all: Traffic[]): Traffic => all.reduce(plus, NONE);

const imageName = (artifact: Artifact, releases: Release[]) => {
  const named = releases.filter((release) => release.artifact.id === artifact.id).map((release) => releaseName(release.target));
  return named.length > 1 ? `${named[0]} and ${plural(named.length - 1, "other")}` : (named[0] ?? artifact.id.slice(0, 12));
};

/** The one that was asked for; else the one that is least complete, then the largest. */
function useImage(nodes: MeshNode[], artifacts: Artifact[], asked: string | null): Artifact | null {
  return useMemo(() => {
    const chosen = artifacts.find((artifact) => artifact.id === asked);
    if (chosen) return chosen;
    const left = new Map<string, number>();
    for (const node of nodes) for (const one of node.holdings) left.set(one.artifact, (left.get(one.artifact) ?? 0) + one.pieces_total - one.pieces);
    const order = (artifact: Artifact) => (left.get(artifact.id) ?? -1) * 1e6 + artifact.length / 1e6;
    return artifacts.filter((artifact) => left.has(artifact.id)).sort((a, b) => order(b) - order(a))[0] ?? null;
  }, [nodes, artifacts, asked]);
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
        return <path key={rack.path} className={rack.rate.from_origin > 0 ? "wire-origin wire-moving" : "wire-origin"} strokeWidth={thick(rack.traffic.from_origin)} opacity={0.85} d={`M 0 ${middle} C 60 ${middle}, 50 ${y}, 118 ${y}`} />;
      })}
      {racks.length > 1 && (
        <path className="wire-peer" strokeWidth={2} opacity={0.5} d={`M 92 ${58} L 92 ${height - RACK_PITCH + 62}`} />
      )}
      {racks.length > 1 && racks.map((rack, place) => {
        const y = place * RACK_PITCH + 60;
        return <path key={rack.path} className={rack.rate.from_other_racks > 0 ? "wire-peer wire-moving" : "wire-peer"} strokeWidth={thick(rack.traffic.from_other_racks)} opacity={0.85} d={`M 92 ${y} L 118 ${y}`} />;
      })}
    </svg>
  );
}

function RackRow({ rack, image, most, banned, isSilent }: { rack: Rack; image: Artifact | null; most: number; banned: Set<string>; isSilent: (node: MeshNode) => boolean }) {
  const { traffic } = rack;
  const side = rack.nodes.length <= 8 ? 46 : rack.nodes.length <= 24 ? 30 : rack.nodes.length <= 60 ? 20 : 13;
  const holdings = rack.nodes.map((node) => node.holdings.find((one) => one.artifact === image?.id));
  const have = holdings.reduce((sum, one) => sum + (one?.pieces ?? 0), 0);
  const all = rack.nodes.length * (holdings.find((one) => one)?.pieces_total ?? 0);
  const delivered = taken(traffic) + traffic.reused;
  const sources: [string, string, number][] = [["origin", "src-origin", traffic.from_origin], ["other racks", "src-peer", traffic.from_other_racks], ["own rack", "src-rack", traffic.from_rack], ["reused", "src-reused", traffic.reused]];
  return (
    <li className="rack">
      <div>
        <strong>
          <Link href={`/fleet/${placePath(rack.path)}`} title={rack.path}>
            {leaf(rack.path)}
          </Link>
        </strong>
        <p className="small quiet">{plural(rack.nodes.length, "node")}, {all ? `${percent(have, all)} here` : "takes no part"}</p>
      </div>
      <div className="rack-cells">
        {rack.nodes.map((node, place) => (
          <Cell key={node.node} name={node.node} pieces={holdings[place]?.pieces ?? 0} total={holdings[place]?.pieces_total ?? 0} side={side} silent={isSilent(node)} banned={banned.has(node.node)} />
        ))}
      </div>
      <div>
        <div className="bar" role="img" aria-label={sources.map(([name, , count]) => `${bytes(count)} from ${name}`).join(", ")} style={{ width: `${Math.max(12, (100 * delivered) / most)}%` }}>
          {sources.map(([name, kind, count]) => (count > 0 ? <span key={name} className={kind} style={{ flexGrow: count, flexBasis: 0 }} /> : null))}
        </div>
        <p className="small quiet rack-rate">
          {!rack.least.counted ? "was restarted with what it holds" : `${times(into(traffic), rack.least)} ${rack.least.exact ? "the minimum came in" : "of what is here came in"}`}
          <span>{taken(rack.rate) > 0 ? `${bytes(taken(rack.rate))}/s now` : "quiet now"}</span>
        </p>
      </div>
    </li>
  );
}

/** One node: its share of the image, from the bottom up, in up to 36 fields. */
const Cell = memo(function Cell({ name, pieces, total, side, silent, banned }: { name: string; pieces: number; total: number; side: number; silent: boolean; banned: boolean }) {
  const grid = side >= 30 ? 6 : 3;
  const on = total === 0 ? 0 : pieces === total ? grid * grid : Math.floor((grid * grid * pieces) / total);
  const field = (side - 4) / grid;
  const says = `${name}: ${total ? `${number(pieces)} of ${number(total)} pieces` : "nothing of this image"}${silent ? ", silent" : ""}${banned ? ", banned by peers" : ""}`;
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

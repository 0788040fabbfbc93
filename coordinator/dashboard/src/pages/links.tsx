// The mesh in numbers: each rack's links, who needs a look, and who does the work.

import { useState } from "react";
import { placePath, read } from "../api";
import { given, into, pieces, rateOf, taken, times, type Finding, type Rack } from "../flows";
import { bytes, leaf, number, percent, plural, rackOf } from "../format";
import { useLoaded } from "../live";
import { Await, Panel, State } from "../parts/ui";
import { Link } from "../router";
import type { MeshLink, MeshLinks, MeshNode, Traffic } from "../types";

const RACKS_MOST = 200;
const MEMBERS_FIRST = 12;
const MEMBERS_MOST = 200;

const rate = (count: number) => (count > 0 ? `${bytes(count)}/s` : "–");
const amount = (count: number) => (count > 0 ? bytes(count) : "–");

/** What went through each rack's uplink, in and out, against the least that would have done. */
export function Links({ racks }: { racks: Rack[] }) {
  const isFilling = racks.some((rack) => !rack.least.exact);
  return (
    <Panel title="Links" aside={<span className="quiet small">bytes since each node was started</span>} flush>
      <div className="scroll-x">
        <table className="stacked">
          <thead>
            <tr>
              <th scope="col">Rack</th>
              <th scope="col" className="num">From the origin</th>
              <th scope="col" className="num">From other racks</th>
              <th scope="col" className="num">Into the rack</th>
              <th scope="col" className="num">Minimum</th>
              <th scope="col" className="num">Times</th>
              <th scope="col" className="num">Inside</th>
              <th scope="col" className="num">To other racks</th>
              <th scope="col" className="num">In now</th>
            </tr>
          </thead>
          <tbody>
            {racks.slice(0, RACKS_MOST).map((rack) => (
              <tr key={rack.path}>
                <th scope="row">
                  <Link href={`/fleet/${placePath(rack.path)}`}>{rack.path}</Link>
                </th>
                <td className="num" data-label="From the origin">{amount(rack.traffic.from_origin)}</td>
                <td className="num" data-label="From other racks">{amount(rack.traffic.from_other_racks)}</td>
                <td className="num" data-label="Into the rack">{amount(into(rack.traffic))}</td>
                <td className="num" data-label="Minimum">{rack.least.exact ? amount(rack.least.bytes) : <span className="quiet">{bytes(rack.least.bytes)} so far</span>}</td>
                <td className="num" data-label="Times the minimum">{rack.least.counted ? times(into(rack.traffic), rack.least) : <span className="quiet">restarted</span>}</td>
                <td className="num" data-label="Inside">{amount(rack.traffic.from_rack)}</td>
                <td className="num" data-label="To other racks">{amount(rack.traffic.to_other_racks)}</td>
                <td className="num" data-label="In now">{rate(into(rack.rate))}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
      <p className="quiet small pad line">
        The minimum is one copy of every image that the rack holds{isFilling ? "; where none is whole yet, what has come of it so far" : ""}. Less than 1 means that nodes made some of it out of other images;
        where a node was started with what it holds, there is nothing to compare.
        {racks.length > RACKS_MOST ? ` The first ${RACKS_MOST} of ${number(racks.length)} racks.` : ""}
      </p>
    </Panel>
  );
}

const FEEDS_MOST = 60;
/** Nodes tell with their heartbeats, every five seconds by default. */
const FEEDS_EVERY_MS = 5_000;

/** Who feeds whom: each link by its two ends, against one copy of what there is at the end that was fed. */
export function Feeds({ racks, site }: { racks: Rack[]; site: string }) {
  const [chosen, setBy] = useState<"rack" | "node">("rack");
  // Between nodes there are too many to be shown of a whole fleet.
  const by = site ? chosen : "rack";
  const path = `mesh/links?by=${by}${site ? `&within=${encodeURIComponent(site)}` : ""}`;
  const loaded = useLoaded(path, (signal) => read<MeshLinks>(path, signal), (event) => event.kind === "node", FEEDS_EVERY_MS);
  const least = new Map(racks.map((rack) => [rack.path, rack.least]));
  const isSame = (link: MeshLink) => link.from === link.to;
  return (
    <Panel
      title="Who feeds whom"
      aside={
        <select className="fit" aria-label="Links between" value={by} onChange={(event) => setBy(event.target.value as "rack" | "node")}>
          <option value="rack">between racks</option>
          {site && <option value="node">between nodes</option>}
        </select>
      }
      flush
    >
      <Await of={loaded}>
        {({ links, left_out, unnamed_bytes }) => {
          const most = links[0]?.bytes ?? 1;
          const hidden = left_out + Math.max(0, links.length - FEEDS_MOST);
          return links.length === 0 ? (
            <p className="quiet pad">Nobody has been fed since the nodes were started.</p>
          ) : (
            <>
              <table className="stacked">
                <thead>
                  <tr>
                    <th scope="col">From</th>
                    <th scope="col">To</th>
                    <th scope="col" className="num">Bytes</th>
                    <th scope="col" className="num">Copies</th>
                    <th scope="col"><span className="hidden-visually">Against the busiest link</span></th>
                  </tr>
                </thead>
                <tbody>
                  {links.slice(0, FEEDS_MOST).map((link) => {
                    const one = least.get(by === "rack" ? link.to : rackOf(link.to));
                    return (
                      <tr key={`${link.from ?? ""} ${link.to}`}>
                        <th scope="row">{link.from ?? "the origin"}</th>
                        <td data-label="To">{by === "rack" && isSame(link) ? <span className="quiet">its own nodes</span> : link.to}</td>
                        <td className="num" data-label="Bytes">{bytes(link.bytes)}</td>
                        <td className="num" data-label="Copies">{one ? times(link.bytes, one) : "–"}</td>
                        <td className="feed" aria-hidden="true">
                          <i style={{ width: `${Math.max(1, (100 * link.bytes) / most)}%` }} className={link.from ? "" : "origin"} />
                        </td>
                      </tr>
                    );
                  })}
                </tbody>
              </table>
              <p className="quiet small pad line">
                Bytes since each node was started, by the word of those who were fed; copies are of all that the {by === "rack" ? "rack" : "node's rack"} holds, of which one has to come from outside.
                {unnamed_bytes > 0 ? ` ${bytes(unnamed_bytes)} more came from peers that nodes do not name: they name the sixteen that gave most.` : ""}
                {hidden > 0 ? ` ${number(hidden)} quieter links are left out${site ? "" : ": choose a site"}.` : ""}
              </p>
            </>
          );
        }}
      </Await>
    </Panel>
  );
}

const KINDS: Record<Finding["kind"], [tone: string, name: string]> = {
  audit: ["failed", "no trust"],
  silent: ["offline", "silent"],
  slow: ["hold", "slow"],
  banned: ["quarantined", "banned"],
  refuses: ["idle", "refused bytes"],
};
const FOUND_MOST = 100;

export function Watch({ found }: { found: Finding[] }) {
  return (
    <div id="look">
      <Panel title="Slow, silent and banned peers" aside={<span className="quiet small">{found.length ? plural(found.length, "finding") : ""}</span>} flush={found.length > 0}>
        {found.length === 0 && <p className="quiet">None: every node is heard of, none has banned another one, and none takes much less than the others.</p>}
        {found.length > 0 && (
          <table className="stacked">
            <thead>
              <tr>
                <th scope="col">Node</th>
                <th scope="col">What</th>
                <th scope="col">Rack</th>
                <th scope="col">Why</th>
              </tr>
            </thead>
            <tbody>
              {found.slice(0, FOUND_MOST).map((one) => {
                const [state, label] = KINDS[one.kind];
                return (
                  <tr key={`${one.node} ${one.kind}`}>
                    <th scope="row">{one.node}</th>
                    <td>
                      <State state={state} label={label} />
                    </td>
                    <td className="quiet">{one.path ? leaf(rackOf(one.path)) : "not of this fleet"}</td>
                    <td>{one.says}</td>
                  </tr>
                );
              })}
            </tbody>
          </table>
        )}
        {found.some((one) => one.kind === "slow") && <p className="quiet small pad line">Slow is this page's own reckoning, from what nodes tell with their heartbeats: below a quarter of what others take that lack pieces as well.</p>}
        {found.length > FOUND_MOST && <p className="quiet small pad line">The first {FOUND_MOST} of {number(found.length)}.</p>}
      </Panel>
    </div>
  );
}

/** Who serves most comes first, and then who takes most: as `firmesh mesh top` has it. */
export function Members({ nodes, rates, isSilent }: { nodes: MeshNode[]; rates: Map<string, ReturnType<typeof rateOf>>; isSilent: (node: MeshNode) => boolean }) {
  const [all, setAll] = useState(false);
  const now = (node: MeshNode): Traffic | null => rates.get(node.node) ?? null;
  const order = (node: MeshNode) => {
    const rate = now(node);
    return [rate ? given(rate) : 0, rate ? taken(rate) : 0, given(node.traffic), taken(node.traffic)];
  };
  const rows = nodes
    .map((node) => ({ node, order: order(node) }))
    .sort((a, b) => {
      const at = a.order.findIndex((count, place) => count !== b.order[place]);
      return at < 0 ? a.node.node.localeCompare(b.node.node, "en", { numeric: true }) : b.order[at]! - a.order[at]!;
    });
  const shown = rows.slice(0, all ? MEMBERS_MOST : MEMBERS_FIRST);
  return (
    <Panel
      title="Nodes, the busiest first"
      aside={
        rows.length > MEMBERS_FIRST && (
          <button className="button small" onClick={() => setAll(!all)} aria-expanded={all}>
            {all ? `The first ${MEMBERS_FIRST}` : `${number(Math.min(rows.length, MEMBERS_MOST))} of ${number(rows.length)}`}
          </button>
        )
      }
      flush
    >
      <div className="scroll-x">
        <table className="stacked">
          <thead>
            <tr>
              <th scope="col">Node</th>
              <th scope="col">Rack</th>
              <th scope="col" className="num">Held</th>
              <th scope="col" className="num">Taken</th>
              <th scope="col" className="num">Given</th>
              <th scope="col" className="num">Taking now</th>
              <th scope="col" className="num">Giving now</th>
              <th scope="col">State</th>
            </tr>
          </thead>
          <tbody>
            {shown.map(({ node }) => {
              const [have, total] = pieces(node);
              const moving = now(node);
              return (
                <tr key={node.node}>
                  <th scope="row">{node.node}</th>
                  <td className="quiet">{leaf(rackOf(node.path))}</td>
                  <td className="num" data-label="Held">{percent(have, total)}</td>
                  <td className="num" data-label="Taken">{amount(taken(node.traffic))}</td>
                  <td className="num" data-label="Given">{amount(given(node.traffic))}</td>
                  <td className="num" data-label="Taking now">{moving ? rate(taken(moving)) : "–"}</td>
                  <td className="num" data-label="Giving now">{moving ? rate(given(moving)) : "–"}</td>
                  <td>
                    <State state={isSilent(node) ? "offline" : total === 0 ? "idle" : have < total ? "downloading" : "completed"} label={isSilent(node) ? "silent" : total === 0 ? "holds nothing" : have < total ? "fetching" : "whole"} />
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

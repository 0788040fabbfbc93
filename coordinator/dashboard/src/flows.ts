// What nodes have moved, added up: bytes on each link, against the least that would do; how fast; who needs a look.
// By what nodes took, and from what kind of place: a link goes into a rack, or out of it. Who fed whom stands in `mesh/links`.

import { moment, rackOf } from "./format";
import type { MeshNode, Traffic } from "./types";

export const NONE: Traffic = { from_origin: 0, from_rack: 0, from_other_racks: 0, to_rack: 0, to_other_racks: 0, verification_failures: 0, fetched_again: 0, reused: 0 };

const each = (a: Traffic, b: Traffic, of: (a: number, b: number) => number): Traffic => {
  const all = { ...NONE };
  for (const name of Object.keys(all) as (keyof Traffic)[]) all[name] = of(a[name] ?? 0, b[name] ?? 0);
  return all;
};
export const plus = (a: Traffic, b: Traffic) => each(a, b, (a, b) => a + b);
export const taken = (traffic: Traffic) => traffic.from_origin + traffic.from_rack + traffic.from_other_racks;
export const given = (traffic: Traffic) => traffic.to_rack + traffic.to_other_racks;
export const into = (traffic: Traffic) => traffic.from_origin + traffic.from_other_racks;

/** What a node had told, and when this page heard of it. */
export interface Look { at: number; traffic: Traffic }

/** Nodes tell with their heartbeats, every five seconds by default. */
const RATE_MS = 20_000;
const LOOKS_MAX = 12;

/** The looks at a node with one more; a node that was started again counts from 0, and so does what is remembered of it. */
export function look(looks: Look[], next: Look): Look[] {
  const last = looks.at(-1);
  if (last && (taken(next.traffic) < taken(last.traffic) || given(next.traffic) < given(last.traffic))) return [{ at: last.at, traffic: NONE }, next];
  const first = Math.max(0, looks.findLastIndex((one) => one.at <= next.at - RATE_MS));
  return [...looks.slice(first), next].slice(-LOOKS_MAX);
}

/** Bytes a second, over the last looks. Null as long as there are not two. */
export function rateOf(looks: Look[], now: number): Traffic | null {
  const last = looks.at(-1);
  if (!last || looks.length < 2) return null;
  if (now - last.at > RATE_MS) return NONE;
  const base = looks.findLast((one) => one.at <= now - RATE_MS) ?? looks[0]!;
  const seconds = (now - base.at) / 1000;
  return seconds > 0 ? each(last.traffic, base.traffic, (last, base) => Math.max(0, last - base) / seconds) : null;
}

/** The least that has to come to where these nodes are, for what they hold. */
export interface Least {
  bytes: number;
  /** No image is half there: then it is a count, else about what is there. */
  exact: boolean;
  /** Whether nodes have counted how all of it came: not what they held already when they were started. */
  counted: boolean;
}

/** What a node holds and has not counted is more than rounding. */
const UNCOUNTED_SHARE = 0.02;

/**
 * One copy of every image. Of one that is not whole yet at any node, as much as is there: nodes fetch different pieces
 * first, so that what they hold adds up, to one copy at most.
 */
export function least(nodes: MeshNode[], lengths: Map<string, number>): Least {
  const images = new Map<string, { most: number; all: number; total: number }>();
  for (const node of nodes) {
    for (const { artifact, pieces, pieces_total } of node.holdings) {
      const image = images.get(artifact) ?? { most: 0, all: 0, total: pieces_total };
      image.most = Math.max(image.most, pieces);
      image.all += pieces;
      images.set(artifact, image);
    }
  }
  let [bytes, exact] = [0, true];
  const counted = nodes.every((node) => {
    const held = node.holdings.reduce((sum, one) => sum + (one.pieces_total ? ((lengths.get(one.artifact) ?? 0) * one.pieces) / one.pieces_total : 0), 0);
    return taken(node.traffic) + node.traffic.reused >= held * (1 - UNCOUNTED_SHARE);
  });
  for (const [id, { most, all, total }] of images) {
    const length = lengths.get(id) ?? 0;
    if (total === 0) continue;
    if (most >= total) bytes += length;
    else if (all > 0) {
      bytes += (length * Math.min(all, total)) / total;
      exact = false;
    }
  }
  return { bytes, exact, counted };
}

export const siteOf = (path: string) => path.split("/").slice(0, 2).join("/");

export function groupBy<T>(rows: T[], key: (row: T) => string): Map<string, T[]> {
  const groups = new Map<string, T[]>();
  for (const row of rows) {
    const group = groups.get(key(row));
    if (group) group.push(row);
    else groups.set(key(row), [row]);
  }
  return groups;
}

/** One copy of what is there to each of the places. */
export function leastOf(places: Iterable<MeshNode[]>, lengths: Map<string, number>): Least {
  const all: Least = { bytes: 0, exact: true, counted: true };
  for (const nodes of places) {
    const one = least(nodes, lengths);
    all.bytes += one.bytes;
    all.exact &&= one.exact;
    all.counted &&= one.counted;
  }
  return all;
}

/** `1.08 ×`; nothing, where there is no minimum, or not all was counted. */
export const times = (bytes: number, { bytes: least, counted }: Least) => (counted && least > 0 ? `${(bytes / least).toFixed(2)} ×` : "–");

export const pieces = (node: MeshNode) =>
  node.holdings.reduce(([have, all], one) => [have + one.pieces, all + one.pieces_total] as [number, number], [0, 0] as [number, number]);

/** A node that somebody should look at. */
export interface Finding { node: string; path: string; kind: "banned" | "silent" | "slow" | "refuses" | "audit"; says: string }

export const SILENT_MS = 60_000;
/** Below a quarter of what others get who lack pieces as well. */
const SLOW_SHARE = 0.25;
const SLOW_MIN = 3;

/** Who was heard of so much later than the others: by the coordinator's clock, as this browser's may be wrong. */
export function silence(nodes: MeshNode[]): (node: MeshNode) => boolean {
  const newest = nodes.reduce((newest, node) => Math.max(newest, node.last_seen ? Date.parse(node.last_seen) : 0), 0);
  return (node) => !node.last_seen || newest - Date.parse(node.last_seen) >= SILENT_MS;
}

/** Whom others have banned, who is silent, and who gets his pieces much more slowly than the others: the last one is this page's reckoning. */
export function findings(nodes: MeshNode[], rates: Map<string, Traffic | null>): Finding[] {
  const found: Finding[] = [];
  const known = new Map(nodes.map((node) => [node.node, node]));
  const banned = new Map<string, { by: string[]; why: string }>();
  for (const node of nodes) {
    for (const [peer, why] of Object.entries(node.banned)) {
      const one = banned.get(peer) ?? { by: [], why };
      one.by.push(node.node);
      banned.set(peer, one);
    }
  }
  const names = (all: string[]) => (all.length > 4 ? `${all.slice(0, 3).join(", ")} and ${all.length - 3} others` : all.join(", "));
  for (const [peer, { by, why }] of banned) {
    found.push({ node: peer, path: known.get(peer)?.path ?? "", kind: "banned", says: `${why}; by ${names(by)}` });
  }
  const isSilent = silence(nodes);
  const lacking = nodes
    .filter((node) => {
      const [have, all] = pieces(node);
      return have < all && !isSilent(node) && rates.get(node.node) !== null && rates.get(node.node) !== undefined;
    })
    .map((node) => ({ node, rate: taken(rates.get(node.node)!) }));
  const sorted = lacking.map((one) => one.rate).sort((a, b) => a - b);
  const median = sorted[Math.floor(sorted.length / 2)] ?? 0;
  for (const node of nodes) {
    const { node: name, path } = node;
    if (node.audit_fork) found.push({ node: name, path, kind: "audit", says: `does not believe the audit log any more: ${node.audit_fork}` });
    if (isSilent(node)) found.push({ node: name, path, kind: "silent", says: node.last_seen ? `was not heard of since ${moment(node.last_seen)}` : "was never heard of" });
  }
  if (lacking.length >= SLOW_MIN && median > 0) {
    for (const { node, rate } of lacking) {
      if (rate < SLOW_SHARE * median) found.push({ node: node.node, path: node.path, kind: "slow", says: `takes ${Math.round((100 * rate) / median)} % of what others take that lack pieces as well` });
    }
  }
  for (const node of nodes) {
    const count = node.traffic.verification_failures;
    if (count > 0 && Object.keys(node.banned).length === 0) found.push({ node: node.node, path: node.path, kind: "refuses", says: `refused ${count} ${count === 1 ? "slice or file" : "slices or files"} that did not verify` });
  }
  const order = ["audit", "silent", "slow", "banned", "refuses"];
  return found.sort((a, b) => order.indexOf(a.kind) - order.indexOf(b.kind));
}

export interface Rack { path: string; nodes: MeshNode[]; traffic: Traffic; rate: Traffic; least: Least }

/** Racks with what their nodes have moved, and move. */
export function racksOf(nodes: MeshNode[], rates: Map<string, Traffic | null>, lengths: Map<string, number>): Rack[] {
  return [...groupBy(nodes, (node) => rackOf(node.path))]
    .map(([path, nodes]) => ({
      path,
      nodes,
      traffic: nodes.map((node) => node.traffic).reduce(plus, NONE),
      rate: nodes.map((node) => rates.get(node.node) ?? NONE).reduce(plus, NONE),
      least: least(nodes, lengths),
    }))
    .sort((a, b) => a.path.localeCompare(b.path, "en", { numeric: true }));
}

import { describe, expect, it } from "vitest";
import { NONE, findings, least, leastOf, look, racksOf, rateOf, times, type Look } from "./flows";
import type { MeshNode, Traffic } from "./types";

const NOW = Date.parse("2026-11-23T12:00:00Z");

const node = (name: string, held: [artifact: string, pieces: number, all: number][] = [], rest: Partial<MeshNode> = {}): MeshNode => ({
  node: name,
  path: `eu/s1/${name.split("-")[0]}/${name}`,
  enrolled: true,
  revoked: false,
  last_seen: new Date(NOW - 3_000).toISOString(),
  holdings: held.map(([artifact, pieces, pieces_total]) => ({ artifact, pieces, pieces_total })),
  traffic: NONE,
  banned: {},
  ...rest,
});

const traffic = (some: Partial<Traffic>): Traffic => ({ ...NONE, ...some });
const LENGTHS = new Map([["a", 1000], ["b", 400]]);

describe("the least that has to come", () => {
  const has = (name: string, held: [string, number, number][], bytes: number) => node(name, held, { traffic: traffic({ from_origin: bytes }) });

  it("is one copy of each image, however many hold it", () => {
    const nodes = [has("r1-n1", [["a", 10, 10]], 1000), has("r1-n2", [["a", 10, 10], ["b", 4, 4]], 1400)];
    expect(least(nodes, LENGTHS)).toEqual({ bytes: 1400, exact: true, counted: true });
  });

  it("is what is there while none is whole, one copy at most", () => {
    expect(least([has("r1-n1", [["a", 3, 10]], 300), has("r1-n2", [["a", 2, 10]], 200)], LENGTHS)).toEqual({ bytes: 500, exact: false, counted: true });
    expect(least([has("r1-n1", [["a", 8, 10]], 800), has("r1-n2", [["a", 9, 10]], 900)], LENGTHS)).toEqual({ bytes: 1000, exact: false, counted: true });
    expect(least([has("r1-n1", [["a", 0, 10]], 0)], LENGTHS)).toEqual({ bytes: 0, exact: true, counted: true });
  });

  it("is counted for each place on its own", () => {
    const all = leastOf([[has("r1-n1", [["a", 10, 10]], 1000)], [has("r2-n1", [["a", 10, 10]], 1000)]], LENGTHS);
    expect(all).toEqual({ bytes: 2000, exact: true, counted: true });
    expect([times(2100, all), times(5, { bytes: 0, exact: true, counted: true })]).toEqual(["1.05 ×", "–"]);
  });

  it("is compared with nothing when a node was started with what it holds", () => {
    const all = leastOf([[has("r1-n1", [["a", 10, 10]], 0), has("r1-n2", [["a", 10, 10]], 1000)]], LENGTHS);
    expect([all.counted, times(1000, all)]).toEqual([false, "–"]);
    const reused = node("r1-n1", [["a", 10, 10]], { traffic: traffic({ from_origin: 400, reused: 600 }) });
    expect(least([reused], LENGTHS).counted).toBe(true);
  });
});

describe("how fast a node goes", () => {
  const run = (...taken: [seconds: number, bytes: number][]) =>
    taken.reduce<Look[]>((looks, [seconds, bytes]) => look(looks, { at: seconds * 1000, traffic: traffic({ from_origin: bytes }) }), []);

  it("is told over the last looks, and not before there are two", () => {
    expect(rateOf(run([0, 100]), 1_000)).toBeNull();
    expect(rateOf(run([0, 100], [5, 600], [10, 1100]), 10_000)!.from_origin).toBe(100);
  });

  it("is nothing when nobody has heard of it", () => {
    expect(rateOf(run([0, 100], [5, 600]), 60_000)).toEqual(NONE);
  });

  it("does not go backwards when a node is started again", () => {
    expect(rateOf(run([0, 5_000], [5, 6_000], [10, 500]), 10_000)!.from_origin).toBe(100);
  });

  it("remembers a bounded number of looks", () => {
    expect(run(...Array.from({ length: 500 }, (_, at): [number, number] => [at / 100, at])).length).toBeLessThanOrEqual(12);
  });
});

describe("who needs a look", () => {
  it("whom others have banned, once, with those who did", () => {
    const why = "served bytes that do not hash to the artifact's root";
    const found = findings([node("r1-n1", [], { banned: { evil: why } }), node("r1-n2", [], { banned: { evil: why } })], new Map());
    expect(found).toEqual([{ node: "evil", path: "", kind: "banned", says: `${why}; by r1-n1, r1-n2` }]);
  });

  it("who is silent while others are not, whatever this browser's clock says", () => {
    const nodes = [node("r1-n1"), node("r1-n2", [], { last_seen: new Date(NOW - 90_000).toISOString() }), node("r1-n3", [], { last_seen: null })];
    expect(findings(nodes, new Map()).map((one) => [one.node, one.kind])).toEqual([["r1-n2", "silent"], ["r1-n3", "silent"]]);
  });

  it("who gets his pieces much more slowly than others that lack some", () => {
    const lacks = (name: string) => node(name, [["a", 1, 10]]);
    const nodes = [lacks("r1-n1"), lacks("r1-n2"), lacks("r1-n3"), node("r1-n4", [["a", 10, 10]])];
    const rates = new Map<string, Traffic | null>([["r1-n1", traffic({ from_rack: 1000 })], ["r1-n2", traffic({ from_rack: 900 })], ["r1-n3", traffic({ from_rack: 100 })], ["r1-n4", NONE]]);
    expect(findings(nodes, rates).map((one) => [one.node, one.kind])).toEqual([["r1-n3", "slow"]]);
    expect(findings(nodes.slice(1), rates)).toEqual([]);
  });
});

it("racks are the sums of their nodes, in the order of people", () => {
  const nodes = [node("r10-n1", [], { traffic: traffic({ from_origin: 5 }) }), node("r2-n1", [], { traffic: traffic({ from_rack: 1 }) }), node("r2-n2", [], { traffic: traffic({ from_rack: 2 }) })];
  const racks = racksOf(nodes, new Map([["r2-n1", traffic({ from_rack: 7 })]]), LENGTHS);
  expect(racks.map((rack) => [rack.path, rack.nodes.length, rack.traffic.from_rack, rack.rate.from_rack])).toEqual([["eu/s1/r2", 2, 3, 7], ["eu/s1/r10", 1, 0, 0]]);
});

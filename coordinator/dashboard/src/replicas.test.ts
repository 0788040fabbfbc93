import { expect, it } from "vitest";
import { NONE } from "./flows";
import { progressOf, replicasOf } from "./replicas";
import type { MeshNode } from "./types";

const node = (path: string, pieces?: number): MeshNode => ({
  node: path.slice(path.lastIndexOf("/") + 1),
  path,
  enrolled: true,
  revoked: false,
  last_seen: null,
  holdings: pieces === undefined ? [] : [{ artifact: "a", pieces, pieces_total: 10 }, { artifact: "b", pieces: 1, pieces_total: 1 }],
  traffic: NONE,
  banned: {},
});

it("an image is where nodes hold it, the rack that lacks most of it first and those without it last", () => {
  const racks = replicasOf("a", [node("eu/s/r1/a", 10), node("eu/s/r1/b", 10), node("eu/s/r2/a", 10), node("eu/s/r2/b", 5), node("eu/s/r3/a")]);
  expect(racks).toEqual([
    { path: "eu/s/r2", nodes: 2, whole: 1, part: 1, pieces: 15, total: 20 },
    { path: "eu/s/r1", nodes: 2, whole: 2, part: 0, pieces: 20, total: 20 },
    { path: "eu/s/r3", nodes: 1, whole: 0, part: 0, pieces: 0, total: 0 },
  ]);
});

it("progress is read where it is told in numbers", () => {
  expect([progressOf("37 of 120 images"), progressOf(""), progressOf("5 of 0 images"), progressOf("9 of 3 images"), progressOf("reads the catalogue")]).toEqual([[37, 120], null, null, null, null]);
});

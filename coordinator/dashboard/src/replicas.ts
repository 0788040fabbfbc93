// Where an image is, rack by rack.

import { groupBy } from "./flows";
import { rackOf } from "./format";
import type { MeshNode } from "./types";

export interface Replica { path: string; nodes: number; whole: number; part: number; pieces: number; total: number }

/** Racks with some of it first, and of those the least complete; then those that have nothing of it. */
export function replicasOf(artifact: string, nodes: MeshNode[]): Replica[] {
  const racks = [...groupBy(nodes, (node) => rackOf(node.path))].map(([path, nodes]): Replica => {
    const held = nodes.flatMap((node) => node.holdings.filter((one) => one.artifact === artifact));
    return {
      path,
      nodes: nodes.length,
      whole: held.filter((one) => one.pieces >= one.pieces_total).length,
      part: held.filter((one) => one.pieces < one.pieces_total).length,
      pieces: held.reduce((sum, one) => sum + one.pieces, 0),
      total: held.reduce((sum, one) => sum + one.pieces_total, 0),
    };
  });
  const order = (rack: Replica) => (rack.total === 0 ? 2 : rack.pieces / rack.total);
  return racks.sort((a, b) => order(a) - order(b) || a.path.localeCompare(b.path, "en", { numeric: true }));
}

/** `37 of 120 images` as numbers, where an operation says it so. */
export function progressOf(progress: string): [done: number, all: number] | null {
  const found = /^(\d+) of (\d+)\b/.exec(progress);
  const [done, all] = [Number(found?.[1]), Number(found?.[2])];
  return found && all > 0 && done <= all ? [done, all] : null;
}

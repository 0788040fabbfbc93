import { describe, expect, it } from "vitest";
import { leafHash, readCheckpoint, rootOf, unhex } from "./merkle";

const hex = (bytes: Uint8Array) => Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
const node = async (left: string, right: string) =>
  hex(new Uint8Array(await crypto.subtle.digest("SHA-256", Uint8Array.of(1, ...unhex(left), ...unhex(right)))));

/** The tree of RFC 6962, written as its definition has it: another way than the one that is tested. */
async function tree(leaves: string[]): Promise<string> {
  if (leaves.length === 1) return leaves[0]!;
  const split = 2 ** Math.floor(Math.log2(leaves.length - 1));
  return node(await tree(leaves.slice(0, split)), await tree(leaves.slice(split)));
}
async function proof(index: number, leaves: string[]): Promise<string[]> {
  if (leaves.length === 1) return [];
  const split = 2 ** Math.floor(Math.log2(leaves.length - 1));
  const [left, right] = [leaves.slice(0, split), leaves.slice(split)];
  return index < split ? [...(await proof(index, left)), await tree(right)] : [...(await proof(index - split, right)), await tree(left)];
}

describe("inclusion proofs", () => {
  it("lead to the root for every entry of every small log, and for no other entry", async () => {
    for (let size = 1; size <= 20; size += 1) {
      const entries = Array.from({ length: size }, (_, index) => `entry ${index}`);
      const leaves = await Promise.all(entries.map(leafHash));
      const root = await tree(leaves);
      for (let index = 0; index < size; index += 1) {
        const path = await proof(index, leaves);
        expect(await rootOf(index, size, entries[index]!, path)).toBe(root);
        expect(await rootOf(index, size, "another entry", path)).not.toBe(root);
      }
    }
  });

  it("of the wrong length, or of an entry beyond the log, are refused", async () => {
    const leaves = await Promise.all(["a", "b", "c"].map(leafHash));
    const path = await proof(0, leaves);
    await expect(rootOf(0, 3, "a", path.slice(1))).rejects.toThrow("too short");
    await expect(rootOf(0, 3, "a", [...path, leaves[0]!])).rejects.toThrow("too long");
    await expect(rootOf(3, 3, "a", path)).rejects.toThrow("not in a log");
    await expect(rootOf(0, 3, "a", ["zz", leaves[0]!])).rejects.toThrow("hexadecimal");
  });
});

describe("checkpoints", () => {
  it("are read as C2SP has them, and refused otherwise", () => {
    const read = readCheckpoint("firmesh/audit/x\n54\ni2BvEpOtjwX8na5cJtPg3Eze1mRKK5fiv709gQu4pY4=\n\n— x y\n");
    expect([read.origin, read.size, read.root.length]).toEqual(["firmesh/audit/x", 54, 64]);
    expect(() => readCheckpoint("firmesh\nmany\nAAAA\n")).toThrow("form");
  });
});

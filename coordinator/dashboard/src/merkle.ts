// Inclusion proofs of the audit log (RFC 6962), checked by this browser.

const hex = (bytes: Uint8Array) => Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
export function unhex(text: string): Uint8Array<ArrayBuffer> {
  if (!/^([0-9a-f]{2})+$/.test(text)) throw new Error("a hash is not hexadecimal");
  return Uint8Array.from(text.match(/../g)!, (pair) => Number.parseInt(pair, 16));
}

async function digest(...parts: Uint8Array[]): Promise<Uint8Array<ArrayBuffer>> {
  const all = new Uint8Array(parts.reduce((length, part) => length + part.length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return new Uint8Array(await crypto.subtle.digest("SHA-256", all));
}

export async function sha256Hex(bytes: Uint8Array): Promise<string> {
  return hex(await digest(bytes));
}

export async function leafHash(entry: string): Promise<string> {
  return hex(await digest(Uint8Array.of(0), new TextEncoder().encode(entry)));
}

/** The root that a log of `size` entries must have if this entry is the one at `index`. */
export async function rootOf(index: number, size: number, entry: string, path: string[]): Promise<string> {
  if (index >= size) throw new Error(`entry ${index} is not in a log of ${size} entries`);
  let hash = await digest(Uint8Array.of(0), new TextEncoder().encode(entry));
  let [at, last] = [index, size - 1];
  const up = () => {
    at = Math.floor(at / 2);
    last = Math.floor(last / 2);
  };
  for (const text of path) {
    if (last === 0) throw new Error("the proof is too long");
    const sibling = unhex(text);
    if (at % 2 === 1 || at === last) {
      hash = await digest(Uint8Array.of(1), sibling, hash);
      while (at % 2 === 0 && at !== 0) up();
    } else {
      hash = await digest(Uint8Array.of(1), hash, sibling);
    }
    up();
  }
  if (last !== 0) throw new Error("the proof is too short");
  return hex(hash);
}

export interface Checkpoint { origin: string; size: number; root: string; note: string }

/** The three lines of a checkpoint that are checked here; its signature is checked by nodes and by `firmesh audit`. */
export function readCheckpoint(note: string): Checkpoint {
  const [origin, size, root] = note.split("\n");
  if (!origin || !/^\d+$/.test(size ?? "") || !root) throw new Error("the checkpoint does not have the expected form");
  return { origin, size: Number(size), root: hex(Uint8Array.from(atob(root), (char) => char.charCodeAt(0))), note };
}

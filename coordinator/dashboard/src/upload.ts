// Images in parts, by the tus 1.0 protocol: a broken upload goes on where the coordinator has it.

import { sha256 } from "@noble/hashes/sha2.js";
import { bytesToHex } from "@noble/hashes/utils.js";
import { Problem, ask, list, read } from "./api";
import { pause } from "./sse";
import type { Upload } from "./types";

const PART = 8 << 20;
const HASH_PART = 2 << 20;
const TRIES = 12;
const TUS = { "Tus-Resumable": "1.0.0" };

export interface Progress { step: "reading" | "sending" | "waiting"; done: number; total: number }

/** The file's digest, part by part: nothing of it is kept. */
async function digestOf(file: File, tell: (progress: Progress) => void, stop: AbortSignal): Promise<string> {
  const hasher = sha256.create();
  for (let at = 0; at < file.size; at += HASH_PART) {
    stop.throwIfAborted();
    hasher.update(new Uint8Array(await file.slice(at, at + HASH_PART).arrayBuffer()));
    tell({ step: "reading", done: Math.min(at + HASH_PART, file.size), total: file.size });
  }
  return bytesToHex(hasher.digest());
}

const base64 = (text: string) => btoa(String.fromCharCode(...new TextEncoder().encode(text)));

/** Sends a file, or the rest of one that was begun before. */
export async function upload(file: File, tell: (progress: Progress) => void, stop: AbortSignal): Promise<Upload> {
  const digest = await digestOf(file, tell, stop);
  const begun = (await list<Upload>("uploads", 1000)).items.find((one) => one.sha256 === digest && one.length === file.size);
  const id = begun?.id ?? (await create(file, digest));
  let offset = begun?.offset ?? 0;
  let tries = 0;
  while (offset < file.size) {
    tell({ step: tries ? "waiting" : "sending", done: offset, total: file.size });
    try {
      if (tries) offset = (await read<Upload>(`uploads/${id}`)).offset;
      const answer = await ask(`/api/v1/uploads/${id}`, {
        method: "PATCH",
        headers: { ...TUS, "Content-Type": "application/offset+octet-stream", "Upload-Offset": String(offset) },
        body: file.slice(offset, offset + PART),
        signal: stop,
      });
      offset = Number(answer.headers.get("Upload-Offset") ?? offset + PART);
      tries = 0;
    } catch (error) {
      // Only what can be otherwise the next time is tried again.
      const passes = error instanceof Problem && (error.status === 0 || error.status === 409 || error.status === 429 || error.status >= 500);
      if (!passes || stop.aborted || ++tries > TRIES) throw error;
      await new Promise((resolve) => setTimeout(resolve, pause(tries)));
    }
  }
  tell({ step: "sending", done: file.size, total: file.size });
  return read<Upload>(`uploads/${id}`);
}

async function create(file: File, digest: string): Promise<string> {
  const metadata = `sha256 ${base64(digest)},filename ${base64(file.name)}`;
  const answer = await ask("/api/v1/uploads", {
    method: "POST",
    headers: { ...TUS, "Upload-Length": String(file.size), "Upload-Metadata": metadata },
  });
  return ((await answer.json()) as Upload).id;
}

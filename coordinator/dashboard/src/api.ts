// One door to the public API: tokens, problems (RFC 9457), pages.

import { session } from "./session";
import type { Who } from "./types";

export class Problem extends Error {
  constructor(
    readonly status: number,
    readonly code: string,
    detail: string,
  ) {
    super(detail);
  }
}

/** A request with the proof of who asks. Anything but 2xx is thrown as a `Problem`. */
export async function ask(path: string, init: RequestInit = {}): Promise<Response> {
  const headers = new Headers(init.headers);
  const { token } = session.getState();
  if (token) headers.set("Authorization", `Bearer ${token}`);
  let answer: Response;
  try {
    answer = await fetch(path, { ...init, headers, cache: "no-store" });
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    throw new Problem(0, "unreachable", "the coordinator does not answer");
  }
  if (answer.ok) return answer;
  const said: unknown = await answer.json().catch(() => null);
  const { type, detail } = (said ?? {}) as { type?: string; detail?: string };
  const code = type?.split(":").pop() ?? String(answer.status);
  if (answer.status === 401 && token) session.getState().expired();
  throw new Problem(answer.status, code, detail ?? (answer.statusText || `status ${answer.status}`));
}

export async function read<T>(path: string, signal?: AbortSignal): Promise<T> {
  return (await ask(`/api/v1/${path}`, { signal: signal ?? null })).json() as Promise<T>;
}

/** Something with the tag that a change of it has to name, so that nobody else's change is lost. */
export async function readTagged<T>(path: string, signal?: AbortSignal): Promise<{ value: T; tag: string }> {
  const answer = await ask(`/api/v1/${path}`, { signal: signal ?? null });
  const tag = answer.headers.get("ETag");
  if (!tag) throw new Problem(0, "untagged", "the coordinator has not said which version this is: it cannot be changed from here");
  return { value: (await answer.json()) as T, tag };
}

/** Has the browser keep an answer as a file. */
export async function save(path: string, name: string): Promise<void> {
  const answer = await ask(`/api/v1/${path}`);
  const url = URL.createObjectURL(await answer.blob());
  const anchor = document.createElement("a");
  anchor.href = url;
  anchor.download = name;
  anchor.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/** POST, PUT or DELETE with a JSON body. */
export async function send<T>(method: string, path: string, body?: unknown, headers: Record<string, string> = {}): Promise<T> {
  const answer = await ask(`/api/v1/${path}`, {
    method,
    headers: body === undefined ? headers : { "Content-Type": "application/json", ...headers },
    body: body === undefined ? null : JSON.stringify(body),
  });
  const text = await answer.text();
  return (text ? JSON.parse(text) : undefined) as T;
}

/** Who shows this token. */
export async function whoIs(token: string): Promise<Who> {
  return said<Who>(await fetch("/api/v1/auth/whoami", { headers: { Authorization: `Bearer ${token}` }, cache: "no-store" }));
}

/** A token for a name and a password, or for what the identity provider gave. */
export async function tokenFor(proof: object): Promise<string> {
  const headers = { "Content-Type": "application/json" };
  const answer = await fetch("/api/v1/auth/token", { method: "POST", headers, body: JSON.stringify(proof) });
  return (await said<{ access_token: string }>(answer)).access_token;
}

async function said<T>(answer: Response): Promise<T> {
  const said = (await answer.json().catch(() => null)) as (T & { detail?: string }) | null;
  if (!answer.ok || !said) throw new Problem(0, "login", said?.detail ?? "the coordinator does not answer");
  return said;
}

export interface PageOf<T> { items: T[]; next: string | null }

/** One page of a list. `query` is what `next` of the page before says, or a query of one's own. */
export async function page<T>(path: string, query: string, signal?: AbortSignal): Promise<PageOf<T>> {
  const answer = await ask(`/api/v1/${path}${query}`, { signal: signal ?? null });
  const { items } = (await answer.json()) as { items: T[] };
  return { items, next: nextOf(answer.headers.get("Link")) };
}

export function nextOf(link: string | null): string | null {
  return /<(\?[^>]*)>;\s*rel="next"/.exec(link ?? "")?.[1] ?? null;
}

/** A list as far as `most` rows, and whether there is more. */
export async function list<T>(path: string, most: number, signal?: AbortSignal): Promise<{ items: T[]; more: boolean }> {
  const items: T[] = [];
  let query: string | null = `?limit=${Math.min(most, 1000)}`;
  while (query && items.length < most) {
    const one: PageOf<T> = await page<T>(path, query, signal);
    items.push(...one.items);
    query = one.next;
  }
  return { items, more: query !== null };
}

/** An `encodeURIComponent` that keeps the slashes of a place. */
export const placePath = (path: string) => path.split("/").map(encodeURIComponent).join("/");

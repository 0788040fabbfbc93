// The event stream: one connection per tab, taken up where it broke off.

import { useEffect, useRef, useState } from "react";
import { create } from "zustand";
import { ask } from "./api";
import { session } from "./session";
import { SseParser, pause } from "./sse";
import type { LiveEvent } from "./types";

type Listener = (event: LiveEvent | "reload") => void;

/** A connection that says nothing for so long is dead: the coordinator sends a comment every 15 s. */
const SILENCE = 40_000;

interface Link { state: "connecting" | "live" | "reconnecting"; since: number }

export const link = create<Link>(() => ({ state: "connecting", since: Date.now() }));

const listeners = new Set<Listener>();
const tell = (event: LiveEvent | "reload") => listeners.forEach((listener) => listener(event));

let current: AbortController | null = null;

/** Follows the events until it is called again (with another token, say). */
export function follow(): void {
  current?.abort();
  const stop = new AbortController();
  current = stop;
  void run(stop.signal);
}

async function run(stop: AbortSignal): Promise<void> {
  let last: string | null = null;
  let tries = 0;
  while (!stop.aborted) {
    const turn = new AbortController();
    const end = () => turn.abort();
    stop.addEventListener("abort", end);
    let timer = setTimeout(end, SILENCE);
    try {
      const answer = await ask("/api/v1/events", {
        headers: { Accept: "text/event-stream", ...(last ? { "Last-Event-ID": last } : {}) },
        signal: turn.signal,
      });
      // What was missed is in the stream, as far as it is kept; what was shown while away may be older.
      if (link.getState().state === "reconnecting") tell("reload");
      link.setState({ state: "live", since: Date.now() });
      tries = 0;
      const reader = answer.body!.pipeThrough(new TextDecoderStream()).getReader();
      const parser = new SseParser();
      for (;;) {
        const { value, done } = await reader.read();
        if (done) break;
        clearTimeout(timer);
        timer = setTimeout(end, SILENCE);
        for (const message of parser.push(value)) {
          if (message.id) last = message.id;
          if (message.event === "reload") tell("reload");
          else tell(JSON.parse(message.data) as LiveEvent);
        }
      }
    } catch {
      // Whatever it was, the remedy is the same; what the API refuses the pages say themselves.
    } finally {
      clearTimeout(timer);
      stop.removeEventListener("abort", end);
      turn.abort();
    }
    if (stop.aborted) return;
    if (link.getState().state === "live") link.setState({ state: "reconnecting", since: Date.now() });
    await new Promise((resolve) => setTimeout(resolve, pause(tries)));
    tries += 1;
    if (tries > 1 && link.getState().state === "connecting") link.setState({ state: "reconnecting", since: Date.now() });
  }
}

/** Calls with each event while the component is there. */
export function useEvents(listener: Listener): void {
  const latest = useRef(listener);
  latest.current = listener;
  useEffect(() => {
    const call: Listener = (event) => latest.current(event);
    listeners.add(call);
    return () => void listeners.delete(call);
  }, []);
}

export interface Loaded<T> {
  data: T | null;
  error: Error | null;
  reload: () => void;
  /** Puts in what an event or an answer has said. */
  set: (data: T) => void;
}

/**
 * Reads something, and again when an event says that it may have changed: at most once in `every` ms. What was read
 * stays on the page meanwhile, also when the coordinator is away.
 */
export function useLoaded<T>(
  key: string,
  load: (signal: AbortSignal) => Promise<T>,
  changes: (event: LiveEvent) => boolean = () => false,
  every = 1_000,
): Loaded<T> {
  const [state, setState] = useState<{ key: string; data: T | null; error: Error | null }>({ key, data: null, error: null });
  const token = session((session) => session.token);
  const loadNow = useRef(load);
  loadNow.current = load;
  const [turn, setTurn] = useState(0);
  const due = useRef<ReturnType<typeof setTimeout> | null>(null);
  const loadedAt = useRef(0);

  useEffect(() => {
    const stop = new AbortController();
    loadNow.current(stop.signal).then(
      (data) => {
        if (stop.signal.aborted) return;
        loadedAt.current = Date.now();
        setState({ key, data, error: null });
      },
      (error: Error) => {
        if (stop.signal.aborted) return;
        loadedAt.current = Date.now();
        setState((before) => ({ key, data: before.key === key ? before.data : null, error }));
      },
    );
    return () => stop.abort();
  }, [key, token, turn]);

  useEffect(
    () => () => {
      if (due.current) clearTimeout(due.current);
      due.current = null;
    },
    [],
  );

  useEvents((event) => {
    if (event !== "reload" && !changes(event)) return;
    if (due.current) return;
    const wait = event === "reload" ? Math.random() * 300 : Math.max(50, loadedAt.current + every - Date.now());
    due.current = setTimeout(() => {
      due.current = null;
      setTurn((turn) => turn + 1);
    }, wait);
  });

  const isCurrent = state.key === key;
  return {
    data: isCurrent ? state.data : null,
    error: isCurrent ? state.error : null,
    reload: () => setTurn((turn) => turn + 1),
    set: (data) => setState({ key, data, error: null }),
  };
}

// A list of any length: pages are read as they are scrolled to, rows are there only while they are seen.

import { useCallback, useEffect, useLayoutEffect, useRef, useState, type ReactNode } from "react";
import { page } from "../api";
import { number } from "../format";
import { useEvents } from "../live";
import { session } from "../session";
import type { LiveEvent } from "../types";
import { Empty, Trouble } from "./ui";

const ROW = 40;
const HEAD = 36;
const PAGE = 200;

export interface Column<T> { name: string; width: string; cell: (row: T) => ReactNode; phone?: boolean }

interface Props<T> {
  label: string;
  path: string;
  /** Without `limit` and `cursor`. */
  query: string;
  columns: Column<T>[];
  rowKey: (row: T) => string;
  empty: ReactNode;
  /** What an event changes in a row that was read already. */
  patch?: (row: T, event: LiveEvent) => T | null;
}

const useNarrow = () => {
  const [media] = useState(() => matchMedia("(max-width: 760px)"));
  const [narrow, setNarrow] = useState(media.matches);
  useEffect(() => {
    const listen = () => setNarrow(media.matches);
    media.addEventListener("change", listen);
    return () => media.removeEventListener("change", listen);
  }, [media]);
  return narrow;
};

export function VirtualList<T>({ label, path, query, columns, rowKey, empty, patch }: Props<T>) {
  const [rows, setRows] = useState<T[]>([]);
  const [next, setNext] = useState<string | null>(null);
  const [busy, setBusy] = useState(true);
  const [error, setError] = useState<Error | null>(null);
  const [turn, setTurn] = useState(0);
  const [seen, setSeen] = useState<[number, number]>([0, 30]);
  const box = useRef<HTMLDivElement>(null);
  const token = session((state) => state.token);
  const narrow = useNarrow();
  const reading = useRef(false);
  /** Ends with the list that is shown: what comes after that belongs to another one. */
  const current = useRef<AbortController | null>(null);

  const readPage = useCallback(
    async (more: string, signal: AbortSignal, keep: boolean) => {
      reading.current = true;
      setBusy(true);
      try {
        const got = await page<T>(path, more, signal);
        if (signal.aborted) return;
        setRows((before) => (keep ? [...before, ...got.items] : got.items));
        setNext(got.next);
        setError(null);
      } catch (failure) {
        if (!signal.aborted) setError(failure as Error);
      } finally {
        if (!signal.aborted) {
          reading.current = false;
          setBusy(false);
        }
      }
    },
    [path],
  );

  useEffect(() => {
    const stop = new AbortController();
    current.current = stop;
    box.current?.scrollTo(0, 0);
    void readPage(`?limit=${PAGE}${query ? `&${query}` : ""}`, stop.signal, false);
    return () => stop.abort();
  }, [readPage, query, token, turn]);

  const look = useCallback(() => {
    const shown = box.current;
    if (!shown) return;
    const first = Math.max(0, Math.floor(shown.scrollTop / ROW) - 8);
    setSeen([first, first + Math.ceil(shown.clientHeight / ROW) + 16]);
  }, []);
  useLayoutEffect(look, [look, rows.length]);
  useEffect(() => {
    const stop = current.current;
    if (stop && next && !reading.current && !error && seen[1] > rows.length - 20) void readPage(next, stop.signal, true);
  }, [seen, next, rows.length, readPage, error]);

  useEvents((event) => {
    if (event === "reload" || !patch) return;
    setRows((before) => {
      let changed = false;
      const after = before.map((row) => {
        const patched = patch(row, event);
        if (patched) changed = true;
        return patched ?? row;
      });
      return changed ? after : before;
    });
  });

  const shown = narrow ? columns.filter((column) => column.phone) : columns;
  // A list that is all there, and short, takes no more room than it needs.
  const short = !busy && !error && next === null && rows.length > 0 ? `min(62vh, 720px, ${HEAD + rows.length * ROW + 2}px)` : null;
  const template = shown.map((column) => column.width).join(" ");
  return (
    <>
      {error && <Trouble error={error} retry={() => setTurn((turn) => turn + 1)} />}
      <div ref={box} className="virtual" onScroll={look} tabIndex={0} style={short ? { height: short } : undefined} role="table" aria-label={label} aria-rowcount={next ? -1 : rows.length + 1} aria-busy={busy}>
        <div role="rowgroup">
          <div className="virtual-head" role="row" style={{ gridTemplateColumns: template }}>
            {shown.map((column) => (
              <span role="columnheader" key={column.name}>
                {column.name}
              </span>
            ))}
          </div>
        </div>
        <div role="rowgroup" style={{ height: rows.length * ROW, position: "relative" }}>
          {rows.slice(seen[0], seen[1]).map((row, place) => (
            <div
              key={rowKey(row)}
              role="row"
              aria-rowindex={seen[0] + place + 2}
              className="virtual-row"
              style={{ top: (seen[0] + place) * ROW, gridTemplateColumns: template }}
            >
              {shown.map((column) => (
                <span role="cell" key={column.name}>
                  {column.cell(row)}
                </span>
              ))}
            </div>
          ))}
        </div>
        {!busy && rows.length === 0 && !error && <Empty>{empty}</Empty>}
      </div>
      <p className="quiet small" role="status" style={{ padding: "8px 14px", borderTop: "1px solid var(--line)" }}>
        {busy && rows.length === 0 ? "Loading…" : `${number(rows.length)} read${next ? ", more as you scroll" : ", all of them"}`}
      </p>
    </>
  );
}

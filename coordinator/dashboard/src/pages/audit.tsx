// The audit log: search it, and have this browser check that an entry is in it.

import { useState } from "react";
import { ask, read } from "../api";
import { moment, number, short, words } from "../format";
import { useLoaded } from "../live";
import { leafHash, readCheckpoint, rootOf, sha256Hex } from "../merkle";
import { Await, Command, Empty, Facts, Figures, PageHead, Panel, State, Trouble } from "../parts/ui";
import type { AuditEntry } from "../types";

const CHUNK = 200;
/** How far one search looks back before it asks whether to go on. */
const LOOK = 5_000;

interface Entry { index: number; at: string; event: { kind: string } & Record<string, unknown>; document?: { sha256: string; length: number } }
interface Row { raw: AuditEntry; entry: Entry }

const rowOf = (raw: AuditEntry): Row => ({ raw, entry: JSON.parse(raw.entry) as Entry });

export function AuditPage() {
  const [kind, setKind] = useState("");
  const [word, setWord] = useState("");
  const [shown, setShown] = useState<Row | null>(null);
  const head = useLoaded("audit head", async (signal) => {
    const note = await (await ask("/api/v1/audit/checkpoint", { signal })).text();
    return readCheckpoint(note);
  }, (event) => event.kind === "campaign", 3_000);
  return (
    <>
      <PageHead title="Audit" sub="What was allowed, decided and done, in a log that anybody can check." />
      <Await of={head}>
        {(checkpoint) => (
          <>
            <Figures rows={[["Entries", number(checkpoint.size)], ["Root", <code key="r">{short(checkpoint.root)}</code>]]} />
            <div className="cols wide-left">
              <Search size={checkpoint.size} kind={kind} word={word} setKind={setKind} setWord={setWord} shown={shown} show={setShown} />
              <div className="stack">
                {shown ? <Proof key={shown.entry.index} row={shown} /> : <Panel title="Proof"><Empty>Choose an entry to see all of it, and to check that it is in the log.</Empty></Panel>}
                <Panel title="Checkpoint">
                  <pre className="mono" style={{ whiteSpace: "pre-wrap", overflowWrap: "anywhere", margin: 0 }}>{checkpoint.note.trim()}</pre>
                  <p className="quiet small">This page checks hashes. That the checkpoint is signed by the right key, and that nodes have seen the same one, is checked at a terminal:</p>
                  <Command line="firmesh audit verify" />
                </Panel>
              </div>
            </div>
          </>
        )}
      </Await>
    </>
  );
}

const KINDS = ["campaign", "gate", "permit", "result", "manifest", "plan", "metadata", "rollback", "brake", "enrolment", "invitation", "revocation", "access", "change", "login", "log"];

function Search({ size, kind, word, setKind, setWord, shown, show }: { size: number; kind: string; word: string; setKind: (kind: string) => void; setWord: (word: string) => void; shown: Row | null; show: (row: Row) => void }) {
  const [asked, setAsked] = useState({ kind: "", word: "" });
  const [depth, setDepth] = useState(1);
  const key = `audit ${size} ${asked.kind} ${asked.word} ${depth}`;
  const loaded = useLoaded(key, async (signal) => {
    const rows: Row[] = [];
    const wanted = asked.word.toLowerCase();
    let before = size;
    const floor = Math.max(0, size - LOOK * depth);
    while (before > floor && rows.length < CHUNK * depth) {
      const from = Math.max(floor, before - (wanted || asked.kind ? 1_000 : CHUNK));
      const { items } = await read<{ items: AuditEntry[] }>(`audit/entries?from=${from}&count=${before - from}`, signal);
      for (const raw of items.reverse()) {
        const row = rowOf(raw);
        if ((!asked.kind || row.entry.event.kind === asked.kind) && (!wanted || raw.entry.toLowerCase().includes(wanted))) rows.push(row);
      }
      before = from;
    }
    return { rows, before };
  });
  return (
    <Panel title="Entries, the newest first" flush>
      <form
        className="search"
        style={{ padding: 14 }}
        onSubmit={(event) => {
          event.preventDefault();
          setDepth(1);
          setAsked({ kind, word });
        }}
      >
        <input type="search" aria-label="Search the log" placeholder="A campaign, a device, a person" value={word} onChange={(event) => setWord(event.target.value)} />
        <select aria-label="Kind of entry" style={{ width: 150 }} value={kind} onChange={(event) => { setKind(event.target.value); setDepth(1); setAsked({ kind: event.target.value, word }); }}>
          <option value="">every kind</option>
          {KINDS.map((one) => (
            <option key={one}>{one}</option>
          ))}
        </select>
        <button className="button">Search</button>
      </form>
      <div className="reading">
        <Await of={loaded}>
          {({ rows, before }) => (
            <>
              <div className="scroll-x" style={{ maxHeight: "60vh", overflowY: "auto" }} tabIndex={0} role="region" aria-label="Entries">
                <table className="stacked">
                  <thead>
                    <tr>
                      <th scope="col" className="num">No.</th>
                      <th scope="col">When</th>
                      <th scope="col">Kind</th>
                      <th scope="col">What</th>
                      <th scope="col"><span className="hidden-visually">Proof</span></th>
                    </tr>
                  </thead>
                  <tbody>
                    {rows.map((row) => (
                      <tr key={row.entry.index}>
                        <th scope="row" className="num">{row.entry.index}</th>
                        <td className="nowrap quiet half">{moment(row.entry.at)}</td>
                        <td className="half">{row.entry.event.kind}</td>
                        <td className="any">{told(row.entry)}</td>
                        <td>
                          <button className="button small" aria-pressed={shown?.entry.index === row.entry.index} onClick={() => show(row)}>
                            Check<span className="hidden-visually"> entry {row.entry.index}</span>
                          </button>
                        </td>
                      </tr>
                    ))}
                  </tbody>
                </table>
              </div>
              <p className="quiet small" role="status" style={{ padding: "8px 14px", borderTop: "1px solid var(--line)" }}>
                {rows.length === 0 ? "Nothing found" : `${number(rows.length)} found`} in the last {number(size - before)} entries{" "}
                {before > 0 && (
                  <button className="button small" onClick={() => setDepth(depth + 1)}>
                    Look further back
                  </button>
                )}
              </p>
            </>
          )}
        </Await>
      </div>
    </Panel>
  );
}

/** An entry in a line: its fields, without those that are long. */
function told({ event }: Entry): string {
  return Object.entries(event)
    .filter(([name, value]) => name !== "kind" && (typeof value !== "string" || value.length <= 160) && value !== null)
    .map(([name, value]) => `${words(name)} ${typeof value === "object" ? JSON.stringify(value) : String(value)}`)
    .join(", ");
}

interface Checked { size: number; root: string; found: string; leaf: boolean; path: number; document: boolean | null }

function Proof({ row }: { row: Row }) {
  const [checked, setChecked] = useState<Checked | null>(null);
  const [error, setError] = useState<Error | null>(null);
  const check = async () => {
    const note = await (await ask("/api/v1/audit/checkpoint")).text();
    const checkpoint = readCheckpoint(note);
    const { path } = await read<{ path: string[] }>(`audit/proof/inclusion?index=${row.entry.index}&size=${checkpoint.size}`);
    const found = await rootOf(row.entry.index, checkpoint.size, row.raw.entry, path);
    const document = row.entry.document && row.raw.document ? (await sha256Hex(Uint8Array.from(atob(row.raw.document), (char) => char.charCodeAt(0)))) === row.entry.document.sha256 : null;
    setChecked({ size: checkpoint.size, root: checkpoint.root, found, leaf: (await leafHash(row.raw.entry)) === row.raw.leaf, path: path.length, document });
  };
  const isSound = checked && checked.leaf && checked.found === checked.root && checked.document !== false;
  return (
    <Panel
      title={`Entry ${row.entry.index}`}
      aside={
        <button className="button small primary" onClick={() => { setError(null); check().catch(setError); }}>
          Check the proof
        </button>
      }
    >
      {error && <Trouble error={error} />}
      {checked && (
        <div className={isSound ? "note good" : "note bad"} role="status" data-proof={isSound ? "sound" : "broken"}>
          <p>
            <State state={isSound ? "success" : "failed"} label={isSound ? "This entry is in the log" : "This entry is not what the log has"} />
          </p>
          <Facts
            rows={[
              ["Leaf", checked.leaf ? "hash is right" : "hash is wrong"],
              ["Proof", `${checked.path} hashes, in a log of ${number(checked.size)}`],
              ["Root found", <code key="f">{checked.found}</code>],
              ["Root signed", <code key="r">{checked.root}</code>],
              ...(checked.document === null ? [] : ([["Document", checked.document ? "is the one that is named" : "is another one"]] as [string, string][])),
            ]}
          />
        </div>
      )}
      <pre className="mono" style={{ whiteSpace: "pre-wrap", overflowWrap: "anywhere", margin: 0 }}>{JSON.stringify(row.entry, null, 2)}</pre>
    </Panel>
  );
}

// One campaign: where it stands, why, and what can be done about it.

import { useMemo, useState } from "react";
import { list, page, read, send } from "../api";
import { inOrder, number, percent, plural, sum, words } from "../format";
import { useEvents, useLoaded, type Loaded } from "../live";
import { Await, Command, Confirm, Empty, Facts, PageHead, Panel, State, StateBar, Trouble } from "../parts/ui";
import { VirtualList } from "../parts/virtual";
import { told } from "../rules";
import { Link, goQuery, useQuery } from "../router";
import { session, useMay } from "../session";
import { Progress } from "./pace";
import type { Attempt, Campaign, CampaignState, Counts, Explanation, Policy, Wave, WaveApproval } from "../types";

const ENDED: CampaignState[] = ["completed", "rolled_back", "failed", "cancelled"];
const HELD_SHOWN = 500;

export function CampaignPage({ id }: { id: string }) {
  const path = `campaigns/${encodeURIComponent(id)}`;
  const loaded = useLoaded<Campaign>(path, (signal) => read(path, signal), (event) => event.kind === "attempt" && event.data.campaign === id, 1_000);
  useEvents((event) => {
    if (event !== "reload" && event.kind === "campaign" && event.data.id === id) loaded.set(event.data);
  });
  // Every policy is looked through, once: what was signed does not change.
  const policy = useLoaded(`policy ${id} ${loaded.data?.state === "pending_approval"}`, (signal) => policyOf(id, signal));
  return (
    <Await of={loaded}>
      {(campaign) => (
        <>
          <PageHead title={campaign.id} crumbs={[["Campaigns", "/campaigns"]]} sub={campaign.reason}>
            <Actions campaign={campaign} policy={policy.data} loaded={loaded} />
          </PageHead>
          <Progress campaign={campaign} policy={policy.data} />
          {campaign.state === "pending_approval" && <Draft id={id} path={path} />}
          {campaign.state !== "pending_approval" && <Asked campaign={campaign} path={path} />}
          <Waves campaign={campaign} path={path} />
          <div className="cols">
            <Findings campaign={campaign} path={path} />
            <div className="stack">
              <Held campaign={campaign} />
              <Rules policy={policy.data} />
            </div>
          </div>
          {campaign.state !== "pending_approval" && <Attempts id={id} path={path} states={campaign.states} />}
          {!ENDED.includes(campaign.state) && campaign.state !== "pending_approval" && <ForGood id={id} campaign={campaign} loaded={loaded} />}
        </>
      )}
    </Await>
  );
}

type Verb = "start" | "pause" | "resume" | "cancel" | "rollback";

function Actions({ campaign, policy, loaded }: { campaign: Campaign; policy: Policy | null; loaded: Loaded<Campaign> }) {
  const [asked, setAsked] = useState<Verb | null>(null);
  const mayOrder = useMay("campaign:order");
  const mayRollBack = useMay("campaign:rollback");
  const { state, id } = campaign;
  const verbs: [Verb, boolean][] = [
    ["start", mayOrder && state === "scheduled"],
    ["pause", mayOrder && state === "active"],
    ["resume", mayOrder && state === "paused"],
    ["rollback", mayRollBack && ["active", "paused", "completed"].includes(state)],
    ["cancel", mayOrder && ["scheduled", "active", "paused"].includes(state)],
  ];
  const names: Record<Verb, string> = { start: "Start", pause: "Pause", resume: "Resume", cancel: "Abort", rollback: "Roll back" };
  const what: Record<Exclude<Verb, "rollback">, string> = {
    start: `Opens the first wave: ${plural(campaign.waves[0]?.devices ?? 0, "device")} of ${number(sum(campaign.states))}.`,
    pause: "No device starts until the campaign is resumed. Devices in flight finish.",
    resume: "Waves go on opening.",
    cancel: "Ends the campaign for good. Devices in flight finish; the others are never touched. This cannot be taken back.",
  };
  return (
    <>
      {verbs
        .filter(([, offered]) => offered)
        .map(([verb]) => (
          <button
            key={verb}
            className={verb === "cancel" || verb === "rollback" ? "button danger" : verb === "start" || verb === "resume" ? "button primary" : "button"}
            onClick={() => setAsked(verb)}
          >
            {names[verb]}
          </button>
        ))}
      {asked === "rollback" && <RollBack campaign={campaign} policy={policy} loaded={loaded} close={() => setAsked(null)} />}
      {asked && asked !== "rollback" && (
        <Confirm
          title={`${names[asked]} ${id}?`}
          word={id}
          what={what[asked]}
          action={names[asked]}
          danger={asked === "cancel"}
          close={() => setAsked(null)}
          run={async () => loaded.set(await send<Campaign>("POST", `campaigns/${encodeURIComponent(id)}/${asked}`))}
        />
      )}
    </>
  );
}

/** Every policy is looked through: the API has no list by campaign. */
async function policyOf(id: string, signal: AbortSignal): Promise<Policy | null> {
  for (let query: string | null = "?limit=1000"; query; ) {
    const one: { items: Policy[]; next: string | null } = await page<Policy>("policies", query, signal);
    const found = one.items.find((policy) => policy.campaign === id);
    if (found) return found;
    query = one.next;
  }
  return null;
}

function RollBack({ campaign, policy, loaded, close }: { campaign: Campaign; policy: Policy | null; loaded: Loaded<Campaign>; close: () => void }) {
  const [reason, setReason] = useState("");
  const [wave, setWave] = useState("all");
  const scope = wave === "all" ? {} : { waves: [Number(wave)] };
  const flag = wave === "all" ? "" : ` --wave ${wave}`;
  const isOpen = (one: Wave) => one.open;
  return (
    <Confirm
      title={`Roll back ${campaign.id}?`}
      word={campaign.id}
      what="Devices that run the campaign's release go back to the version they had before."
      action="Roll back"
      danger
      close={close}
      run={async () => {
        if (!reason.trim()) throw new Error("say why: those who ask later will read it");
        loaded.set(await send<Campaign>("POST", `campaigns/${encodeURIComponent(campaign.id)}/rollback`, { scope, reason: reason.trim() }));
      }}
    >
      <label className="field">
        <span>Who</span>
        <select value={wave} onChange={(event) => setWave(event.target.value)}>
          <option value="all">the whole campaign</option>
          {campaign.waves.filter(isOpen).map((one) => (
            <option key={one.wave} value={one.wave}>
              wave {one.wave} ({plural(one.devices, "device")})
            </option>
          ))}
        </select>
      </label>
      <label className="field">
        <span>Why</span>
        <input value={reason} onChange={(event) => setReason(event.target.value)} required />
      </label>
      {policy && policy.rules.operator_rollback !== true && (
        <div className="note warn stack">
          <p>The manifest leaves this to the approvers: the coordinator will refuse it from here. Where their keys are:</p>
          <Command line={`firmesh campaign rollback ${campaign.id}${flag} --reason "${reason || "…"}" --key KEY-1 --key KEY-2`} />
        </div>
      )}
    </Confirm>
  );
}

function Draft({ id, path }: { id: string; path: string }) {
  const who = session((state) => state.who);
  const loaded = useLoaded(`${path}/draft`, (signal) => read<{ manifest_sha256: string; plan_sha256: string; version: number }>(`${path}/draft`, signal));
  const may = useMay("campaign:draft");
  const [asked, setAsked] = useState(false);
  return (
    <Panel title="Waits for its approvers" aside={may && <button className="button small danger" onClick={() => setAsked(true)}>Take the draft back</button>}>
      <p>Nothing happens before approvers have signed this campaign with their own keys, which this coordinator does not have. Each of them, in the trust folder:</p>
      <Command line={`firmesh campaign adopt ${id}`} />
      <Command line="firmesh campaign sign --key KEY" />
      <Command line={`firmesh campaign publish && firmesh campaign start ${id}`} />
      {loaded.error && <Trouble error={loaded.error} />}
      {loaded.data && (
        <Facts
          rows={[
            ["Manifest, SHA-256", <code key="m">{loaded.data.manifest_sha256}</code>],
            ["Plan, SHA-256", <code key="p">{loaded.data.plan_sha256}</code>],
          ]}
        />
      )}
      {asked && (
        <Confirm
          title={`Take the draft of ${id} back?`}
          word={id}
          what={`The draft is removed${who ? "" : ""}; its name is free again.`}
          action="Take it back"
          danger
          close={() => setAsked(false)}
          run={async () => {
            await send("DELETE", path);
            location.assign("/campaigns");
          }}
        />
      )}
    </Panel>
  );
}

/** What approvers are asked between two waves, and have said. */
function Asked({ campaign, path }: { campaign: Campaign; path: string }) {
  const loaded = useLoaded(`${path}/approvals`, (signal) => list<WaveApproval>(`${path}/approvals`, 1000, signal), (event) => event.kind === "campaign" && event.data.id === campaign.id);
  const items = loaded.data?.items ?? [];
  if (items.length === 0) return null;
  const open = items.find((one) => one.approved === undefined);
  return (
    <Panel title={open && !ENDED.includes(campaign.state) ? "Waits for an approver" : "What approvers were asked"}>
      {open && !ENDED.includes(campaign.state) && (
        <>
          <p>Wave {open.wave} has passed its gate; the next one opens with an approver's signed yes. Where the key is:</p>
          <Command line={`firmesh campaign approve ${campaign.id} --reason "…" --key KEY`} />
          <Command line={`firmesh campaign refuse ${campaign.id} --reason "…" --key KEY`} />
        </>
      )}
      <ul className="stack">
        {items
          .filter((one) => one.approved !== undefined)
          .map((one) => (
            <li key={one.wave}>
              <State state={one.approved ? "approved" : "failed"} label={one.approved ? "yes" : "no"} /> after wave {one.wave}
              {one.reason ? `: ${one.reason}` : ""} <span className="quiet small mono">{one.by?.map((key) => key.slice(0, 12)).join(", ")}</span>
            </li>
          ))}
      </ul>
    </Panel>
  );
}

/** What is for the worst case: by force, and by a signed brake. */
function ForGood({ id, campaign, loaded }: { id: string; campaign: Campaign; loaded: Loaded<Campaign> }) {
  const may = useMay("campaign:order");
  const [asked, setAsked] = useState(false);
  const [reason, setReason] = useState("");
  return (
    <Panel title="If all else fails">
      <p>
        A brake stops the campaign at every node, for good, even while this coordinator is away. It is signed where the keys are:
      </p>
      <Command line={`firmesh brake campaign ${id} --reason "…" --key KEY`} />
      {may && campaign.state !== "scheduled" && (
        <div className="actions">
          <button className="button danger" onClick={() => setAsked(true)}>
            Close by force
          </button>
        </div>
      )}
      {asked && (
        <Confirm
          title={`Close ${id} by force?`}
          word={id}
          what="Ends the campaign with all that is in flight, which nobody reports the end of. What may have been touched is quarantined."
          action="Close by force"
          danger
          close={() => setAsked(false)}
          run={async () => loaded.set(await send<Campaign>("POST", `campaigns/${encodeURIComponent(id)}/close`, { reason: reason.trim() }))}
        >
          <label className="field">
            <span>Why</span>
            <input value={reason} onChange={(event) => setReason(event.target.value)} required />
          </label>
        </Confirm>
      )}
    </Panel>
  );
}

const GATES = { unknown: "gate: not judged", pass: "gate: passed", hold: "gate: holds", fail: "gate: failed" };

function Waves({ campaign, path }: { campaign: Campaign; path: string }) {
  const [shown, setShown] = useState<number | null>(null);
  const explained = useLoaded(
    `${path}/explain?wave=${shown ?? -1}`,
    (signal) => (shown === null ? Promise.resolve([]) : read<Explanation[]>(`${path}/explain?wave=${shown}`, signal)),
    (event) => shown !== null && event.kind === "campaign" && event.data.id === campaign.id,
  );
  if (campaign.waves.length === 0) return null;
  return (
    <Panel title="Waves and gates" aside={<span className="quiet small">{plural(campaign.waves.length, "wave")}; a gate stands behind each</span>} flush>
      <ol className="waves" tabIndex={0} aria-label="Waves">
        {campaign.waves.map((wave) => {
          const good = (wave.states.success ?? 0) + (wave.states.skipped ?? 0);
          return (
            <li key={wave.wave} className={wave.open ? "wave" : "wave closed"} aria-current={wave.open && wave.wave === campaign.wave && !ENDED.includes(campaign.state) ? "step" : undefined}>
              <div className="wave-head">
                <strong>Wave {wave.wave}</strong>
                <span className="quiet small">{wave.open ? percent(good, wave.devices) : "closed"}</span>
              </div>
              <StateBar states={wave.states} tall />
              <span className="small">
                {inOrder(wave.states)
                  .map(([state, count]) => `${number(count)} ${words(state)}`)
                  .join(", ")}
              </span>
              <span>
                <State state={wave.open ? wave.gate : "pending"} label={wave.open ? GATES[wave.gate] : "not opened"} />
              </span>
              <span>
                <button className="button small" aria-expanded={shown === wave.wave} onClick={() => setShown(shown === wave.wave ? null : wave.wave)}>
                  Explain<span className="hidden-visually"> wave {wave.wave}</span>
                </button>
              </span>
            </li>
          );
        })}
      </ol>
      {shown !== null && (
        <div style={{ borderTop: "1px solid var(--line)" }}>
          {explained.error && <Trouble error={explained.error} />}
          {explained.data && <FindingList rows={explained.data} />}
        </div>
      )}
    </Panel>
  );
}

export function FindingList({ rows }: { rows: Explanation[] }) {
  if (rows.length === 0) return <Empty>Nothing to say about it yet.</Empty>;
  return (
    <ol className="findings">
      {rows.map((row, place) => (
        <li key={place}>
          <span className="quiet">{row.subject}</span>
          <div>
            {row.finding}
            {row.evidence.length > 0 && (
              <ul className="evidence">
                {row.evidence.map((line, at) => (
                  <li key={at}>{line}</li>
                ))}
              </ul>
            )}
          </div>
        </li>
      ))}
    </ol>
  );
}

function Findings({ campaign, path }: { campaign: Campaign; path: string }) {
  const [tab, setTab] = useState<"explain" | "logs">("explain");
  const loaded = useLoaded(
    `${path}/${tab}`,
    async (signal) => (tab === "explain" ? { items: await read<Explanation[]>(`${path}/explain`, signal), more: false } : list<Explanation>(`${path}/logs`, 2000, signal)),
    (event) => (event.kind === "campaign" && event.data.id === campaign.id) || (event.kind === "attempt" && event.data.campaign === campaign.id),
    2_000,
  );
  return (
    <Panel
      title={tab === "explain" ? "Why it stands where it stands" : "What was decided, in order"}
      aside={
        <button className="button small" onClick={() => setTab(tab === "explain" ? "logs" : "explain")}>
          {tab === "explain" ? "Decisions" : "Explain"}
        </button>
      }
      flush
    >
      <div className="scroll-y" tabIndex={0} role="region" aria-label="Findings">
        <Await of={loaded}>{({ items }) => <FindingList rows={items.slice(0, 400)} />}</Await>
      </div>
    </Panel>
  );
}

function Held({ campaign }: { campaign: Campaign }) {
  const [word, setWord] = useState("");
  const reasons = useMemo(() => {
    const counts = new Map<string, number>();
    for (const { reason } of campaign.held) counts.set(reason, (counts.get(reason) ?? 0) + 1);
    return [...counts].sort((a, b) => b[1] - a[1]).slice(0, 8);
  }, [campaign.held]);
  if (campaign.held.length === 0) return null;
  const found = campaign.held.filter((held) => `${held.device} ${held.reason}`.includes(word));
  return (
    <Panel title="Held: left out by the plan" aside={<span className="quiet small">{plural(campaign.held.length, "device")}</span>} flush>
      <div className="body" style={{ padding: 14 }}>
        <ul className="keys">
          {reasons.map(([reason, count]) => (
            <li key={reason}>
              <b>{number(count)}</b> {reason}
            </li>
          ))}
        </ul>
        <input type="search" aria-label="Search held devices" placeholder="Search by device or reason" value={word} onChange={(event) => setWord(event.target.value)} style={{ marginTop: 10 }} />
      </div>
      <div className="scroll-x" style={{ maxHeight: 320, overflowY: "auto" }} tabIndex={0} role="region" aria-label="Held devices">
        <table>
          <thead>
            <tr>
              <th scope="col">Device</th>
              <th scope="col">Reason</th>
            </tr>
          </thead>
          <tbody>
            {found.slice(0, HELD_SHOWN).map((held) => (
              <tr key={held.device}>
                <th scope="row">
                  <Link href={`/devices/${encodeURIComponent(held.device)}`}>{held.device}</Link>
                </th>
                <td>{held.reason}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
      {found.length > HELD_SHOWN && <p className="quiet small" style={{ padding: 10 }}>The first {HELD_SHOWN} of {number(found.length)}: search to see others.</p>}
    </Panel>
  );
}

function Rules({ policy }: { policy: Policy | null }) {
  if (!policy) return null;
  const { rules } = policy;
  return (
    <Panel title="Rules that approvers have signed">
      <Facts rows={told(rules)} />
    </Panel>
  );
}

function Attempts({ id, path, states }: { id: string; path: string; states: Counts }) {
  const state = useQuery().get("state") ?? "";
  const [device, setDevice] = useState<string | null>(null);
  const explained = useLoaded(
    `${path}/explain ${device}`,
    (signal) => (device ? read<Explanation[]>(`${path}/explain?device=${encodeURIComponent(device)}`, signal) : Promise.resolve([])),
    (event) => event.kind === "attempt" && event.data.device === device,
  );
  return (
    <div id="devices" className="jump-to">
      <Panel
        title="Devices of the campaign"
        aside={
          <select aria-label="State" className="fit" value={state} onChange={(event) => goQuery({ state: event.target.value })}>
            <option value="">every state</option>
            {[...new Set([...inOrder(states).map(([name]) => name), ...(state ? [state] : [])])].map((name) => (
              <option key={name} value={name}>
                {words(name)}
              </option>
            ))}
          </select>
        }
        flush
      >
        <VirtualList<Attempt>
          label="Attempts"
          path={state ? "attempts" : `${path}/attempts`}
          query={state ? `campaign=${encodeURIComponent(id)}&state=${encodeURIComponent(state)}` : ""}
          rowKey={(row) => row.device}
          empty={<p>{state ? `None is ${words(state)} now.` : "No attempts yet."}</p>}
          patch={(row, event) => (event.kind === "attempt" && event.data.campaign === id && event.data.device === row.device ? event.data : null)}
          columns={[
            { name: "Device", width: "minmax(90px, 2fr)", phone: true, cell: (row) => <Link href={`/devices/${encodeURIComponent(row.device)}`}>{row.device}</Link> },
            { name: "State", width: "minmax(100px, 1fr)", phone: true, cell: (row) => <State state={row.state} /> },
            { name: "Wave", width: "60px", cell: (row) => row.wave },
            { name: "Runs", width: "minmax(80px, 1fr)", cell: (row) => row.version ?? "–" },
            { name: "Why", width: "minmax(100px, 3fr)", cell: (row) => <span title={row.reason}>{row.reason || "–"}</span> },
            {
              name: "Explain", width: "72px", phone: true,
              cell: (row) => (
                <button className="button small" onClick={() => setDevice(row.device)}>
                  Explain<span className="hidden-visually"> {row.device}</span>
                </button>
              ),
            },
          ]}
        />
        {device && (
          <div style={{ borderTop: "1px solid var(--line)" }} role="status">
            <h3 style={{ padding: "10px 14px 0" }}>{device}</h3>
            {explained.error && <Trouble error={explained.error} />}
            {explained.data && <FindingList rows={explained.data} />}
          </div>
        )}
      </Panel>
    </div>
  );
}

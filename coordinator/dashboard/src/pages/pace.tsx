// How far a campaign is, how fast it goes, and when it may end.

import { useMemo, type ReactNode } from "react";
import { inOrder, number, percent, sum, tone, words } from "../format";
import { changes, campaignEnds, ended, note, perMinute, told, waveEnds, type Estimate } from "../pace";
import { Figures, Panel, State, StateBar, useNow } from "../parts/ui";
import { goQuery } from "../router";
import type { Campaign, Policy } from "../types";
import { End } from "./ends";

const BAD = ["failed", "timed_out", "quarantined", "rolled_back"];

export function Progress({ campaign, policy }: { campaign: Campaign; policy: Policy | null }) {
  const now = useNow(2_000);
  const samples = useMemo(() => note(campaign), [campaign]);
  const all = sum(campaign.states);
  const good = (campaign.states.success ?? 0) + (campaign.states.skipped ?? 0);
  const bad = BAD.reduce((count, state) => count + (campaign.states[state] ?? 0), 0);
  const gate = policy?.rules.gate as { soak_s?: number } | undefined;
  const whole = campaignEnds(campaign, samples, now, gate?.soak_s ?? null);
  const wave = waveEnds(campaign, samples, now);
  const { possession } = campaign;
  return (
    <>
      <Figures
        rows={[
          ["State", <State key="s" state={campaign.state} />],
          ["Done", percent(good, all), `${number(good)} of ${number(all)}`],
          ["Went wrong", bad ? <span className="tag bad big">{number(bad)}</span> : "0", bad ? percent(bad, all) : undefined],
          ["Left to do", number(all - ended(campaign.states)), campaign.held.length ? `${number(campaign.held.length)} more held by the plan` : "none held by the plan"],
          ...(possession ? [["Images proven", `${number(possession.proven)} of ${number(possession.nodes)}`, "nodes"] as [string, string, string]] : []),
          ...(whole ? [["Ends", <End key="e" estimate={whole} now={now} />, whole.known ? `in ${told(whole)}` : undefined] as [string, ReactNode, string | undefined]] : []),
        ]}
      />
      <Panel title="Devices by state" aside={<span className="quiet small">{number(all)} in all</span>} flush>
        <div className="body">
          <StateBar states={campaign.states} tall />
        </div>
        <StateTable campaign={campaign} rates={whole ? changes(samples, now) : {}} live={whole !== null} />
        {whole && (
          <dl className="facts ends">
            {wave && <EndRow name={`Wave ${campaign.wave} ends`} estimate={wave} now={now} />}
            <EndRow name="Campaign ends" estimate={whole} now={now} />
          </dl>
        )}
      </Panel>
    </>
  );
}

function EndRow({ name, estimate, now }: { name: string; estimate: Estimate; now: number }) {
  return (
    <>
      <dt>{name}</dt>
      <dd>
        <strong>
          <End estimate={estimate} now={now} />
        </strong>{" "}
        <span className="quiet small">{estimate.known ? `in ${told(estimate)}: ${estimate.basis}` : `because ${estimate.why}`}</span>
      </dd>
    </>
  );
}

function StateTable({ campaign, rates, live }: { campaign: Campaign; rates: Record<string, number>; live: boolean }) {
  const all = sum(campaign.states);
  // A state that was left a moment ago stays in the table for as long as its change is told.
  const states = { ...Object.fromEntries(Object.keys(rates).map((state) => [state, 0])), ...campaign.states };
  const rows = inOrder(Object.fromEntries(Object.keys(states).map((state) => [state, 1]))).map(([state]) => state);
  if (rows.length === 0) return <p className="quiet pad">The plan has no devices.</p>;
  return (
    <table className="tight">
      <thead>
        <tr>
          <th scope="col">State</th>
          <th scope="col" className="num">Devices</th>
          <th scope="col" className="num">Share</th>
          {live && <th scope="col" className="num">Change</th>}
        </tr>
      </thead>
      <tbody>
        {rows.map((state) => (
          <tr key={state}>
            <th scope="row">
              <a
                className={`key ${tone(state)}`}
                href={`?state=${state}`}
                onClick={(event) => {
                  event.preventDefault();
                  goQuery({ state });
                  document.getElementById("devices")?.scrollIntoView();
                }}
              >
                <i aria-hidden="true" /> {words(state)}
              </a>
            </th>
            <td className="num">{number(states[state] ?? 0)}</td>
            <td className="num quiet">{percent(states[state] ?? 0, all)}</td>
            {live && <td className="num quiet">{rates[state] ? perMinute(rates[state]) : "–"}</td>}
          </tr>
        ))}
      </tbody>
    </table>
  );
}

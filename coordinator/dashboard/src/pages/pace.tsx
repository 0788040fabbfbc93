// How far a campaign is, how fast it goes, and when it may end.

import { useMemo, type ReactNode } from "react";
import { number, percent, sum, tone, words } from "../format";
import { GROUPS, changes, campaignEnds, ended, note, perMinute, rowsOf, told, waveEnds, type Estimate } from "../pace";
import { Figures, Panel, State, StateBar, useNow } from "../parts/ui";
import { goQuery } from "../router";
import type { Campaign, Policy } from "../types";
import { End } from "./ends";

const BAD = ["failed", "timed_out", "quarantined"];

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
          ["Went back", number(campaign.states.rolled_back ?? 0), campaign.states.rolled_back ? "to the version before" : undefined],
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
            <EndRow name={`Wave ${campaign.wave} ends`} estimate={wave ?? { known: false, why: "it is not open" }} now={now} />
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
  const show = (state: string) => {
    goQuery({ state });
    document.getElementById("devices")?.scrollIntoView();
  };
  return (
    <table className="tight">
      <thead>
        <tr>
          <th scope="col">State</th>
          <th scope="col" className="num">Devices</th>
          <th scope="col" className="num wide-only">Share</th>
          {live && <th scope="col" className="num">Change</th>}
          <th scope="col" className="wide-only">Which</th>
        </tr>
      </thead>
      <tbody>
        {rowsOf(campaign.states, rates).map((row) => (
          <tr key={row.name} className={row.count === 0 ? "none" : ""}>
            <th scope="row">
              <span className={`key ${tone(row.states[0]?.[0] ?? GROUPS.find(([name]) => name === row.name)?.[1][0] ?? row.name)}`}>
                <i aria-hidden="true" />{" "}
                {row.count > 0 ? (
                  <a
                    href={`?state=${row.states[0]![0]}`}
                    onClick={(event) => {
                      event.preventDefault();
                      show(row.states[0]![0]);
                    }}
                  >
                    {words(row.name)}
                  </a>
                ) : (
                  words(row.name)
                )}
              </span>
            </th>
            <td className="num">{number(row.count)}</td>
            <td className="num wide-only">{row.count ? percent(row.count, all) : "–"}</td>
            {live && <td className="num">{row.rate ? perMinute(row.rate) : "–"}</td>}
            <td className="wide-only quiet">{row.states.length > 1 || (row.states[0] && words(row.states[0][0]) !== row.name) ? row.states.map(([state, count]) => `${number(count)} ${words(state)}`).join(", ") : ""}</td>
          </tr>
        ))}
      </tbody>
    </table>
  );
}

import { Suspense, lazy } from "react";
import { list } from "../api";
import { number, percent, sum } from "../format";
import { useLoaded } from "../live";
import { campaignEnds, note, told } from "../pace";
import { Await, Empty, Figures, PageHead, Panel, State, StateBar, useNow } from "../parts/ui";
import { Link, goQuery, useQuery } from "../router";
import { useMay } from "../session";
import type { Campaign } from "../types";
import { End } from "./ends";

const CampaignPage = lazy(() => import("./campaign").then((module) => ({ default: module.CampaignPage })));
const CreatePage = lazy(() => import("./create").then((module) => ({ default: module.CreatePage })));

const MOST = 1000;
const RUNNING = ["active", "paused", "rolling_back"];
const WAITING = ["pending_approval", "scheduled"];

export function CampaignsPage({ rest }: { rest: string }) {
  if (rest === "") return <CampaignList />;
  return <Suspense fallback={<p className="loading">Loading…</p>}>{rest === "new" ? <CreatePage /> : <CampaignPage key={rest} id={rest} />}</Suspense>;
}

function CampaignList() {
  const may = useMay("campaign:draft");
  const search = useQuery().get("q") ?? "";
  const loaded = useLoaded("campaigns", (signal) => list<Campaign>("campaigns", MOST, signal), (event) => event.kind === "campaign" || event.kind === "attempt", 1_500);
  return (
    <>
      <PageHead title="Campaigns" sub="Who gets which release, wave by wave.">
        {may && (
          <Link className="button primary" href="/campaigns/new">
            New campaign
          </Link>
        )}
      </PageHead>
      <Await of={loaded}>
        {({ items, more }) => {
          const word = search.toLowerCase();
          const shown = items.filter((campaign) => `${campaign.id} ${campaign.state.replaceAll("_", " ")} ${campaign.reason}`.toLowerCase().includes(word));
          const group = (states: string[] | null) =>
            shown.filter((campaign) => (states ? states.includes(campaign.state) : ![...RUNNING, ...WAITING].includes(campaign.state)));
          const running = items.filter((campaign) => RUNNING.includes(campaign.state));
          const devices = running.map((campaign) => sum(campaign.states)).reduce((all, count) => all + count, 0);
          return (
            <>
              <Figures
                rows={[
                  ["Running", number(running.length), devices ? `${number(devices)} devices` : undefined],
                  ["Waiting for approval", number(items.filter((campaign) => campaign.state === "pending_approval").length)],
                  ["Ready to start", number(items.filter((campaign) => campaign.state === "scheduled").length)],
                  ["Ended", number(group(null).length)],
                ]}
              />
              <div className="search">
                <input type="search" aria-label="Search campaigns" placeholder="Search campaigns by name, state or reason" value={search} onChange={(event) => goQuery({ q: event.target.value })} />
              </div>
              {items.length === 0 && (
                <section className="panel">
                  <Empty>
                    <p>No campaigns yet.</p>
                    <p className="small">
                      {may ? "Draft one with “New campaign”; approvers sign it with their own keys." : "Log in as an operator to draft one, or use firmesh campaign create."}
                    </p>
                  </Empty>
                </section>
              )}
              <CampaignTable title="Running" rows={group(RUNNING)} isRunning />
              <CampaignTable title="Waiting" rows={group(WAITING)} />
              <CampaignTable title="Ended" rows={group(null)} />
              {items.length > 0 && shown.length === 0 && <p className="quiet">Nothing matches “{search}”.</p>}
              {more && <p className="quiet">Only the first {number(MOST)} campaigns are shown; older ones can be archived.</p>}
            </>
          );
        }}
      </Await>
    </>
  );
}

function CampaignTable({ title, rows, isRunning = false }: { title: string; rows: Campaign[]; isRunning?: boolean }) {
  if (rows.length === 0) return null;
  return (
    <Panel title={title} aside={<span className="quiet small">{number(rows.length)}</span>} flush>
      <div className="scroll-x">
        <table className="stacked">
          <thead>
            <tr>
              <th scope="col">Campaign</th>
              <th scope="col">State</th>
              <th scope="col" className="num">
                Waves open
              </th>
              <th scope="col" style={{ width: "26%" }}>
                Devices
              </th>
              <th scope="col" className="num">
                Done
              </th>
              {isRunning && <th scope="col">Ends</th>}
              <th scope="col">Why</th>
            </tr>
          </thead>
          <tbody>
            {rows.map((campaign) => {
              const all = sum(campaign.states);
              const good = (campaign.states.success ?? 0) + (campaign.states.skipped ?? 0);
              return (
                <tr key={campaign.id}>
                  <th scope="row">
                    <Link href={`/campaigns/${campaign.id}`}>{campaign.id}</Link>
                  </th>
                  <td>
                    <State state={campaign.state} />
                  </td>
                  <td className="num" data-label="Waves open">
                    {campaign.waves.length ? `${campaign.waves.filter((wave) => wave.open).length} of ${campaign.waves.length}` : "–"}
                  </td>
                  <td>
                    <StateBar states={campaign.states} />
                  </td>
                  <td className="num" data-label="Done">
                    {percent(good, all)}
                  </td>
                  {isRunning && (
                    <td data-label="Ends">
                      <Ends campaign={campaign} />
                    </td>
                  )}
                  <td className="quiet">{campaign.reason}</td>
                </tr>
              );
            })}
          </tbody>
        </table>
      </div>
    </Panel>
  );
}

/** Without the soaks: the rules are not in a list of campaigns. The campaign's own page has them. */
function Ends({ campaign }: { campaign: Campaign }) {
  const now = useNow(5_000);
  const estimate = campaignEnds(campaign, note(campaign), now, null);
  if (!estimate) return <>–</>;
  return (
    <span title={estimate.known ? `in ${told(estimate)}: ${estimate.basis}` : estimate.why}>
      <End estimate={estimate} now={now} />
    </span>
  );
}

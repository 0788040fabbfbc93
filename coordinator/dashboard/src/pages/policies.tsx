// The rules that approvers have signed, campaign by campaign: nobody changes them afterwards.

import { list } from "../api";
import { number } from "../format";
import { useLoaded } from "../live";
import { Await, Panel, State } from "../parts/ui";
import { describe } from "../rules";
import { Link } from "../router";
import type { Policy } from "../types";

const MOST = 200;
const SHOWN = ["strategy", "caps", "gate"];

export function Policies() {
  const loaded = useLoaded("policies", (signal) => list<Policy>("policies", MOST, signal), (event) => event.kind === "campaign", 5_000);
  return (
    <Panel title="Policies" aside={<span className="quiet small">signed with the manifest; a change is another campaign</span>} flush>
      <Await of={loaded}>
        {({ items, more }) =>
          items.length === 0 ? (
            <p className="quiet pad">No campaigns yet: each brings its own rules, signed by its approvers.</p>
          ) : (
            <>
              <div className="scroll-x">
                <table className="stacked">
                  <thead>
                    <tr>
                      <th scope="col">Campaign</th>
                      <th scope="col">State</th>
                      <th scope="col">Strategy</th>
                      <th scope="col">Caps</th>
                      <th scope="col">Gate</th>
                      <th scope="col">Goes back by itself</th>
                    </tr>
                  </thead>
                  <tbody>
                    {items.map(({ campaign, state, rules }) => (
                      <tr key={campaign}>
                        <th scope="row">
                          <Link href={`/campaigns/${encodeURIComponent(campaign)}`}>{campaign}</Link>
                        </th>
                        <td>
                          <State state={state} />
                        </td>
                        {SHOWN.map((name) => (
                          <td key={name} className="long" data-label={name[0]!.toUpperCase() + name.slice(1)}>{rules[name] ? describe(rules[name], name) : "–"}</td>
                        ))}
                        <td data-label="Goes back by itself">{rules.automatic_rollback === true ? "yes" : "no"}</td>
                      </tr>
                    ))}
                  </tbody>
                </table>
              </div>
              {more && <p className="quiet small pad line">The first {number(MOST)}.</p>}
            </>
          )
        }
      </Await>
    </Panel>
  );
}

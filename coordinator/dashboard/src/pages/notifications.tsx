// Who is told what happens, how far each has come, and telling them again. Where they are stands in the coordinator's
// configuration, with its secrets: the API shows it, and does not change it.

import { useEffect, useState } from "react";
import { read, send } from "../api";
import { ago, moment, number, plural } from "../format";
import { useLoaded } from "../live";
import { Await, Dialog, Form, Panel, State, Trouble, useNow } from "../parts/ui";
import { useMay } from "../session";
import type { Destination } from "../types";

/** Backlogs change without an event of the stream. */
const LOOK_MS = 10_000;

export function Notifications() {
  const may = useMay("notification:send");
  const loaded = useLoaded("notifications", (signal) => read<{ items: Destination[] }>("notifications", signal));
  const [replaying, setReplaying] = useState<Destination | null>(null);
  const [told, setTold] = useState<{ name: string; what: string } | null>(null);
  const [error, setError] = useState<Error | null>(null);
  const [busy, setBusy] = useState("");
  const now = useNow();
  const { reload } = loaded;
  const some = (loaded.data?.items.length ?? 0) > 0;
  useEffect(() => {
    if (!some) return;
    const timer = setInterval(() => {
      if (!document.hidden) reload();
    }, LOOK_MS);
    return () => clearInterval(timer);
    // `reload` is another function every time, and does the same.
    // eslint-disable-next-line react-hooks/exhaustive-deps
  }, [some]);
  const test = (name: string) => {
    setBusy(name);
    setError(null);
    setTold(null);
    send<{ id: string }>("POST", `notifications/${encodeURIComponent(name)}/test`)
      .then(({ id }) => setTold({ name, what: `a test was delivered, as ${id}.` }), setError)
      .finally(() => {
        setBusy("");
        reload();
      });
  };
  return (
    <Panel title="Notifications" aside={<span className="quiet small">as the coordinator's configuration has them</span>} flush>
      {error && <div className="pad"><Trouble error={error} /></div>}
      {told && <div className="pad"><div className="note good" role="status"><strong>{told.name}</strong>: {told.what}</div></div>}
      <Await of={loaded}>
        {({ items }) =>
          items.length === 0 ? (
            <p className="quiet pad">
              Nobody is told. Whoever runs the coordinator adds <code>[[notifications]]</code> to its configuration: a webhook, mail, PagerDuty, Opsgenie or any REST service.
            </p>
          ) : (
            <table className="stacked">
              <thead>
                <tr>
                  <th scope="col" style={{ width: "24%" }}>Who</th>
                  <th scope="col">State</th>
                  <th scope="col" className="num">Waiting</th>
                  <th scope="col" className="num">Delivered</th>
                  <th scope="col" className="num">Refused</th>
                  <th scope="col" className="num">Given up</th>
                  <th scope="col">Last</th>
                  {may && <th scope="col"><span className="hidden-visually">What to do</span></th>}
                </tr>
              </thead>
              <tbody>
                {items.map((one) => (
                  <tr key={one.name}>
                    <th scope="row">
                      {one.name}
                      <span className="quiet small below any">{one.kind}, {one.target}</span>
                    </th>
                    <td>
                      <State state={one.failing_since ? "failed" : one.backlog > 0 ? "running" : "completed"} label={one.failing_since ? "does not get through" : one.backlog > 0 ? "delivering" : "up to date"} />
                      {one.failing_since && <span className="small below any">since {moment(one.failing_since)}{one.last_error ? `: ${one.last_error.reason}` : ""}{one.next_attempt ? `; next try ${moment(one.next_attempt)}` : ""}</span>}
                    </td>
                    <td className="num" data-label="Waiting">{one.backlog >= 10_000 ? "10,000 or more" : number(one.backlog)}</td>
                    <td className="num" data-label="Delivered">{number(one.delivered)}</td>
                    <td className="num" data-label="Refused">{number(one.refused)}</td>
                    <td className="num" data-label="Given up">{number(one.given_up)}</td>
                    <td className="nowrap" data-label="Last">{ago(one.last_delivered, now)}</td>
                    {may && (
                      <td>
                        <div className="actions">
                          <button className="button small" disabled={busy !== ""} onClick={() => test(one.name)}>
                            {busy === one.name ? "Sending…" : "Send a test"}
                            <span className="hidden-visually"> to {one.name}</span>
                          </button>
                          <button className="button small" onClick={() => setReplaying(one)}>
                            Tell again<span className="hidden-visually"> {one.name}</span>
                          </button>
                        </div>
                      </td>
                    )}
                  </tr>
                ))}
              </tbody>
            </table>
          )
        }
      </Await>
      {replaying && (
        <Replay
          of={replaying}
          close={(what) => {
            if (what) setTold({ name: replaying.name, what });
            setReplaying(null);
            reload();
          }}
        />
      )}
    </Panel>
  );
}

const HOURS = [1, 6, 24, 72];

function Replay({ of, close }: { of: Destination; close: (what?: string) => void }) {
  const [hours, setHours] = useState(1);
  const run = () => {
    const since = new Date(Date.now() - hours * 3_600_000).toISOString().replace(/\.\d+Z$/, "Z");
    return send<{ from: number; newest: number }>("POST", `notifications/${encodeURIComponent(of.name)}/replay`, { since });
  };
  return (
    <Dialog title={`Tell ${of.name} again?`} close={() => close()}>
      <Form action="Tell it again" run={run} done={({ from, newest }) => close(`it is told ${plural(newest - from + 1, "event")} again, from number ${from}.`)} close={() => close()}>
        <p>Messages keep their ids, so that a receiver that knows them already can leave them out.</p>
        <label className="field">
          <span>What happened in the last</span>
          <select value={hours} onChange={(event) => setHours(Number(event.target.value))}>
            {HOURS.map((one) => (
              <option key={one} value={one}>
                {plural(one, "hour")}
              </option>
            ))}
          </select>
        </label>
      </Form>
    </Dialog>
  );
}

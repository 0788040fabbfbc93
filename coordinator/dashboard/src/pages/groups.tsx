// Groups of devices: by a rule, or by name.

import { useState } from "react";
import { list, send } from "../api";
import { plural } from "../format";
import { useLoaded } from "../live";
import { EditDialog } from "../parts/edit";
import { Await, Confirm, Dialog, Form, Panel } from "../parts/ui";
import { Link } from "../router";
import { useMay } from "../session";
import type { Group } from "../types";

export function Groups() {
  const may = useMay("group:write");
  const loaded = useLoaded("groups", (signal) => list<Group>("device-groups", 1000, signal));
  const [making, setMaking] = useState(false);
  const [editing, setEditing] = useState<Group | null>(null);
  const [removing, setRemoving] = useState<Group | null>(null);
  return (
    <Panel title="Groups of devices" aside={may && <button className="button small" onClick={() => setMaking(true)}>New group</button>} flush>
      <Await of={loaded}>
        {({ items }) =>
          items.length === 0 ? (
            <p className="quiet pad">No groups yet. A group names devices: by a rule, such as all below a site, or one by one.</p>
          ) : (
            <table className="stacked">
              <thead>
                <tr>
                  <th scope="col">Group</th>
                  <th scope="col">Who</th>
                  <th scope="col">What for</th>
                  {may && <th scope="col"><span className="hidden-visually">What to do</span></th>}
                </tr>
              </thead>
              <tbody>
                {items.map((group) => (
                  <tr key={group.id}>
                    <th scope="row">{group.id}</th>
                    <td>{group.filter ? <Link href={`/devices?filter=${encodeURIComponent(group.filter)}`}><code>{group.filter}</code></Link> : plural(group.members ?? 0, "device")}</td>
                    <td>{group.description || <span className="quiet">–</span>}</td>
                    {may && (
                      <td>
                        <div className="actions end">
                          <button className="button small" onClick={() => setEditing(group)}>
                            Edit<span className="hidden-visually"> {group.id}</span>
                          </button>
                          <button className="button small danger" onClick={() => setRemoving(group)}>
                            Remove<span className="hidden-visually"> {group.id}</span>
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
      {making && <NewGroup close={() => { setMaking(false); loaded.reload(); }} />}
      {editing && (editing.filter ? <Rule group={editing} close={() => { setEditing(null); loaded.reload(); }} /> : <Members group={editing} close={() => { setEditing(null); loaded.reload(); }} />)}
      {removing && (
        <Confirm
          title={`Remove the group ${removing.id}?`}
          word={removing.id}
          what="The devices stay as they are."
          action="Remove"
          danger
          close={() => setRemoving(null)}
          run={async () => {
            await send("DELETE", `device-groups/${encodeURIComponent(removing.id)}`, undefined, { "If-Match": `"v${removing.version}"` });
            loaded.reload();
          }}
        />
      )}
    </Panel>
  );
}

function Rule({ group, close }: { group: Group; close: () => void }) {
  return (
    <EditDialog<Group, { filter: string; description: string }>
      title={`Edit ${group.id}`}
      path={`device-groups/${encodeURIComponent(group.id)}`}
      start={({ filter, description }) => ({ filter: filter ?? "", description })}
      body={(form) => form}
      close={close}
      fields={(form, put) => (
        <>
          <label className="field"><span>Devices for which this holds</span><input value={form.filter} onChange={(event) => put({ filter: event.target.value })} required spellCheck={false} autoFocus /></label>
          <label className="field"><span>What for</span><input value={form.description} onChange={(event) => put({ description: event.target.value })} /></label>
        </>
      )}
    />
  );
}

const names = (text: string) => text.split(/[\s,]+/).filter(Boolean);

/** Who is added and who goes: the list itself may be long. */
function Members({ group, close }: { group: Group; close: () => void }) {
  const [form, setForm] = useState({ add: "", remove: "" });
  const run = () => send("POST", `device-groups/${encodeURIComponent(group.id)}/devices`, { add: names(form.add), remove: names(form.remove) }, { "If-Match": `"v${group.version}"` });
  return (
    <Dialog title={`Members of ${group.id}`} close={close}>
      <Form action="Save" working="Saving…" disabled={!form.add.trim() && !form.remove.trim()} run={run} done={close} close={close}>
        <p className="quiet">{plural(group.members ?? 0, "device")} at the moment.</p>
        <label className="field"><span>Devices to add</span><textarea rows={3} value={form.add} onChange={(event) => setForm({ ...form, add: event.target.value })} spellCheck={false} autoFocus /></label>
        <label className="field"><span>Devices to take out</span><textarea rows={3} value={form.remove} onChange={(event) => setForm({ ...form, remove: event.target.value })} spellCheck={false} /></label>
      </Form>
    </Dialog>
  );
}

function NewGroup({ close }: { close: () => void }) {
  const [form, setForm] = useState({ id: "", by: "filter", filter: "", devices: "", description: "" });
  const run = () => {
    const { id, description } = form;
    return send("POST", "device-groups", form.by === "filter" ? { id, description, filter: form.filter } : { id, description, devices: names(form.devices) });
  };
  return (
    <Dialog title="New group" close={close}>
      <Form run={run} done={close} close={close}>
        <label className="field"><span>Name</span><input value={form.id} onChange={(event) => setForm({ ...form, id: event.target.value })} required autoFocus /></label>
        <label className="field">
          <span>Who is in it</span>
          <select value={form.by} onChange={(event) => setForm({ ...form, by: event.target.value })}>
            <option value="filter">devices for which a rule holds</option>
            <option value="devices">devices by name</option>
          </select>
        </label>
        {form.by === "filter" ? (
          <label className="field"><span>The rule</span><input value={form.filter} onChange={(event) => setForm({ ...form, filter: event.target.value })} placeholder='path under "eu/fra1"' required spellCheck={false} /></label>
        ) : (
          <label className="field"><span>Their names</span><textarea rows={4} value={form.devices} onChange={(event) => setForm({ ...form, devices: event.target.value })} placeholder="r1-n1-bmc, r1-n2-bmc" required spellCheck={false} /></label>
        )}
        <label className="field"><span>What for</span><input value={form.description} onChange={(event) => setForm({ ...form, description: event.target.value })} /></label>
      </Form>
    </Dialog>
  );
}

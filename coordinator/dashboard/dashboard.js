// Reads everything, then follows the events. With `#token=...` in the address, every request carries the token.
"use strict";
const token = new URLSearchParams(location.hash.slice(1)).get("token");
const headers = token ? { Authorization: `Bearer ${token}` } : {};
const state = { campaigns: new Map(), nodes: new Map(), devices: new Map() };

const ask = async (path) => {
  const answer = await fetch(path, { headers });
  if (!answer.ok) throw new Error((await answer.json().catch(() => null))?.detail ?? answer.statusText);
  return answer;
};
const read = async (path) => (await ask(path)).json();
// A list page by page, as far as it is shown: the next one's query stands in the header `Link`.
const list = async (path, most) => {
  const items = [];
  for (let query = "?limit=1000"; query && items.length < most;) {
    const answer = await ask(path + query);
    items.push(...(await answer.json()).items);
    query = /<(\?[^>]*)>; rel="next"/.exec(answer.headers.get("Link") ?? "")?.[1];
  }
  return items;
};
const bytes = (count) => {
  const unit = count < 1 ? 0 : Math.min(4, Math.floor(Math.log2(count) / 10));
  return `${(count / 1024 ** unit).toFixed(unit ? 1 : 0)} ${["B", "KiB", "MiB", "GiB", "TiB"][unit]}`;
};
const ends = ["success", "skipped", "failed", "timed_out", "quarantined", "rolled_back", "cancelled", "pending", "waiting_window"];
const bar = (states) => {
  const box = document.createElement("div");
  box.className = "bar";
  const total = Object.values(states).reduce((sum, count) => sum + count, 0) || 1;
  for (const [name, count] of Object.entries(states)) {
    const part = document.createElement("i");
    part.className = ends.includes(name) ? name : "running";
    part.style.width = `${(100 * count) / total}%`;
    part.title = `${count} ${name}`;
    box.append(part);
  }
  box.title = Object.entries(states).map(([name, count]) => `${count} ${name}`).join(", ");
  return box;
};
const fill = (id, rows) => {
  const body = document.querySelector(`#${id} tbody`);
  body.replaceChildren(...rows.map((cells) => {
    const row = document.createElement("tr");
    for (const cell of cells) row.insertCell().append(cell ?? "");
    return row;
  }));
};

let drawing = false;
const draw = () => {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    fill("campaigns", [...state.campaigns.values()].map((c) => [c.id, c.state, `${c.wave + 1} of ${c.waves.length}`, bar(c.states),
      `${c.possession.proven} of ${c.possession.nodes} nodes`, c.reason]));
    fill("nodes", [...state.nodes.values()].map((n) => {
      const [held, total] = n.holdings.reduce(([a, b], h) => [a + h.pieces, b + h.pieces_total], [0, 0]);
      return [n.node, n.path, n.last_seen ?? (n.enrolled ? "never" : "not enrolled"), `${held} / ${total}`,
        bytes(n.traffic.from_origin), bytes(n.traffic.from_rack), bytes(n.traffic.from_other_racks), bytes(n.traffic.reused),
        Object.entries(n.banned).map(([peer, why]) => `${peer}: ${why}`).join("; ")];
    }));
    fill("devices", [...state.devices.values()].slice(0, 2000).map((d) => [d.facts.device, `${d.facts.vendor} ${d.facts.model}`,
      d.attempt?.version ?? d.facts.version ?? "silent", d.node, d.attempt?.state, d.attempt?.reason]));
  });
};

const link = (text) => { document.querySelector("#link").textContent = text; };
const reload = async () => {
  const [about, campaigns, nodes, devices] = await Promise.all([
    read("api/v1/about"), list("api/v1/campaigns", 2000), list("api/v1/nodes", 2000), list("api/v1/devices", 2000)]);
  document.querySelector("#version").textContent = about.version;
  state.campaigns = new Map(campaigns.map((c) => [c.id, c]));
  state.nodes = new Map(nodes.map((n) => [n.node, n]));
  state.devices = new Map(devices.map((d) => [d.facts.device, d]));
  draw();
};
const follow = () => {
  // EventSource sends no headers: with a token, poll instead.
  if (token) return setInterval(() => reload().then(() => link("live"), (error) => link(error.message)), 2000);
  const source = new EventSource("api/v1/events");
  let due = null;
  source.onopen = () => { link("live"); reload().catch((error) => link(error.message)); };
  source.onerror = () => link("reconnecting");
  // An event says that something changed; what it is now is read, at most twice a second.
  const changed = () => { due ??= setTimeout(() => { due = null; reload().catch((error) => link(error.message)); }, 500); };
  source.onmessage = changed;
  source.addEventListener("reload", changed);
};
follow();

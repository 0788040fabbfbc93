// Numbers, times and states for people.

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

export function bytes(count: number): string {
  const unit = count < 1024 ? 0 : Math.min(UNITS.length - 1, Math.floor(Math.log2(count) / 10));
  return `${(count / 1024 ** unit).toFixed(unit ? 1 : 0)} ${UNITS[unit]}`;
}

const whole = new Intl.NumberFormat("en");
export const number = (count: number) => whole.format(count);
export const plural = (count: number, one: string, many = `${one}s`) => `${number(count)} ${count === 1 ? one : many}`;

/** Rounded so that 100 % is said only of all, and 0 % only of none. */
export function percent(part: number, all: number): string {
  if (all === 0) return "–";
  const share = (100 * part) / all;
  if (part < all && share > 99.9) return "99.9 %";
  if (part > 0 && share < 0.1) return "0.1 %";
  return `${share >= 10 || Number.isInteger(share) ? Math.floor(share) : share.toFixed(1)} %`;
}

export function ago(time: string | null, now = Date.now()): string {
  if (!time) return "never";
  const seconds = Math.max(0, Math.round((now - Date.parse(time)) / 1000));
  if (seconds < 60) return `${seconds} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 172_800) return `${Math.floor(seconds / 3600)} h ago`;
  return `${Math.floor(seconds / 86_400)} days ago`;
}

export function duration(seconds: number): string {
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172_800) return `${(seconds / 3600).toFixed(1)} h`;
  return `${(seconds / 86_400).toFixed(1)} days`;
}

export const moment = (time: string) => new Date(time).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "medium" });

export const words = (name: string) => name.replaceAll("_", " ");
export const short = (digest: string) => `${digest.slice(0, 12)}…`;

/** What is behind the last slash. */
export const leaf = (path: string) => path.slice(path.lastIndexOf("/") + 1);
export const releaseName = (target: string) => target.replace(/^firmware\//, "");

/** The rack of a node's place. */
export const rackOf = (path: string) => path.split("/").slice(0, 3).join("/");

/** One of the few kinds that colours and shapes tell apart. */
export type Tone = "good" | "busy" | "wait" | "warn" | "bad" | "idle";

const TONES: Record<string, Tone> = {
  success: "good", skipped: "good", completed: "good", compliant: "good", pass: "good", approved: "good", succeeded: "good",
  active: "busy", downloading: "busy", verifying: "busy", staged: "busy", installing: "busy", rebooting: "busy", validating: "busy",
  running: "busy",
  pending: "wait", scheduled: "wait", waiting_window: "wait", pending_approval: "wait", registered: "wait", unknown: "wait", draft: "wait",
  paused: "warn", hold: "warn", rolled_back: "warn", rolling_back: "warn", blocked: "warn", behind: "bad", ahead: "warn", deprecated: "warn",
  offline: "warn", timed_out: "bad", failed: "bad", fail: "bad", quarantined: "bad", revoked: "bad", interrupted: "warn",
  cancelled: "idle", idle: "idle", disabled: "idle", not_covered: "idle",
};
export const tone = (state: string): Tone => TONES[state] ?? "idle";

const ORDER = [
  "success", "skipped", "validating", "rebooting", "installing", "staged", "verifying", "downloading", "blocked", "waiting_window",
  "pending", "registered", "idle", "disabled", "cancelled", "offline", "rolled_back", "timed_out", "failed", "quarantined",
];
/** States with their counts in the order of a device's way, ends last. */
export function inOrder(states: Record<string, number>): [string, number][] {
  const place = (state: string) => (ORDER.indexOf(state) + ORDER.length + 1) % (ORDER.length + 1);
  return Object.entries(states)
    .filter(([, count]) => count > 0)
    .sort(([a], [b]) => place(a) - place(b));
}

export const sum = (counts: Record<string, number>) => Object.values(counts).reduce((all, count) => all + count, 0);
export function add(into: Record<string, number>, from: Record<string, number>): Record<string, number> {
  for (const [name, count] of Object.entries(from)) into[name] = (into[name] ?? 0) + count;
  return into;
}

/** A text in the filter language. */
export const quoted = (text: string) => `"${text.replaceAll("\\", "\\\\").replaceAll('"', '\\"')}"`;

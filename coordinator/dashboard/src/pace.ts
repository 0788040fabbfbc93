// How fast a campaign goes and when it may end, from nothing but the counts that this page has seen. Where they do not say
// enough, the answer is why there is no estimate, never a number that nobody can stand behind.

import { duration, number, plural } from "./format";
import type { Campaign, Counts } from "./types";

/** What campaigns looked like, by the clock of this browser: another clock's times cannot be subtracted from it. */
export interface Sample {
  at: number;
  states: Counts;
  /** How many devices of each wave had ended. */
  ended: number[];
  wave: number;
}

/** Further back says little about now. */
export const WINDOW_MS = 15 * 60_000;
const SAMPLES_MAX = 400;
/** Fewer ends are chance. */
const ENDS_MIN = 3;
const SPAN_MIN_MS = 15_000;
const CAMPAIGNS_MAX = 50;

const ENDS = ["success", "skipped", "failed", "rolled_back", "timed_out", "quarantined", "cancelled"];
export const ended = (states: Counts) => ENDS.reduce((count, state) => count + (states[state] ?? 0), 0);
const sum = (counts: Counts) => Object.values(counts).reduce((all, count) => all + count, 0);

const sampleOf = (campaign: Campaign, at: number): Sample => ({
  at,
  states: campaign.states,
  ended: campaign.waves.map((wave) => ended(wave.states)),
  wave: campaign.wave,
});

const same = (a: Counts, b: Counts) => {
  const names = new Set([...Object.keys(a), ...Object.keys(b)]);
  return [...names].every((name) => (a[name] ?? 0) === (b[name] ?? 0));
};

/**
 * The samples with one more. When most devices begin again (they go back, say) that is a new story; one that is tried
 * again, or an answer that was overtaken on its way, is not.
 */
export function push(samples: Sample[], sample: Sample): Sample[] {
  const last = samples.at(-1);
  if (last && sample.at < last.at) return samples;
  if (last && same(last.states, sample.states) && last.wave === sample.wave) return samples;
  if (last && ended(sample.states) < ended(last.states) / 2) return [sample];
  const floor = sample.at - WINDOW_MS;
  // One from before the window stays: it says how things stood when the window began.
  const first = Math.max(0, samples.findLastIndex((one) => one.at <= floor));
  const kept = samples.slice(first);
  const thinned = kept.length < SAMPLES_MAX ? kept : kept.filter((_, place) => place % 2 === 0 || place === kept.length - 1);
  return [...thinned, sample];
}

export interface Pace {
  /** Devices that ended. */
  ends: number;
  /** In so many milliseconds. */
  over: number;
  /** Since the last one. */
  quiet: number;
}

/** Ends within the window, of the whole campaign or of one wave of it. */
export function paceOf(samples: Sample[], now: number, wave?: number): Pace | null {
  const count = (sample: Sample) => (wave === undefined ? ended(sample.states) : (sample.ended[wave] ?? 0));
  // A wave's pace begins when the wave was seen to be open.
  const relevant = wave === undefined ? samples : samples.slice(Math.max(0, samples.findIndex((one) => one.wave >= wave)));
  const first = relevant[0];
  const last = relevant.at(-1);
  if (!first || !last) return null;
  const floor = now - WINDOW_MS;
  const base = relevant.findLast((one) => one.at <= floor) ?? first;
  let moved = base.at;
  for (let place = 1; place < relevant.length; place++) {
    if (count(relevant[place]!) > count(relevant[place - 1]!)) moved = relevant[place]!.at;
  }
  return { ends: Math.max(0, count(last) - count(base)), over: now - Math.max(base.at, floor), quiet: now - moved };
}

/** Devices that came into a state or left it, per minute; only states that have changed. */
export function changes(samples: Sample[], now: number): Record<string, number> {
  const pace = paceOf(samples, now);
  if (!pace || pace.over < SPAN_MIN_MS) return {};
  const last = samples.at(-1)!;
  const base = samples.findLast((one) => one.at <= now - WINDOW_MS) ?? samples[0]!;
  const found: Record<string, number> = {};
  for (const state of new Set([...Object.keys(base.states), ...Object.keys(last.states)])) {
    const change = (last.states[state] ?? 0) - (base.states[state] ?? 0);
    if (change !== 0) found[state] = (change * 60_000) / pace.over;
  }
  return found;
}

export type Estimate =
  | { known: true; seconds: number; from: number; to: number | null; basis: string }
  | { known: false; why: string };

/** So many devices at this pace: as wide as so few ends make it (one standard deviation of a count). */
function at(pace: Pace, left: number, pause: number, basis: string): Estimate {
  const perSecond = pace.ends / (pace.over / 1000);
  const spread = 1 / Math.sqrt(pace.ends);
  return {
    known: true,
    seconds: left / perSecond + pause,
    from: left / (perSecond * (1 + spread)) + pause,
    to: spread < 1 ? left / (perSecond * (1 - spread)) + pause : null,
    basis,
  };
}

/** Why no estimate can be made of a pace; nothing, if one can. */
function unclear(pace: Pace | null): string | null {
  if (!pace || pace.over < SPAN_MIN_MS) return "this page has only begun to watch";
  const watched = `in the ${duration(pace.over / 1000)} that this page has watched`;
  if (pace.ends === 0) return `no device has ended ${watched}`;
  if (pace.ends < ENDS_MIN) return `only ${plural(pace.ends, "device has", "devices have")} ended ${watched}`;
  const between = pace.over / pace.ends;
  if (pace.quiet > Math.max(120_000, 6 * between)) return `nothing has ended for ${duration(pace.quiet / 1000)}`;
  return null;
}

const WHY: Partial<Record<Campaign["state"], string>> = {
  pending_approval: "it waits for its approvers",
  scheduled: "it is not started",
  paused: "it is paused",
};

const basisOf = (pace: Pace) => `${plural(pace.ends, "device")} ended in ${duration(pace.over / 1000)}`;

/** When the wave that is open now may be through. Null where that is no question. */
export function waveEnds(campaign: Campaign, samples: Sample[], now: number): Estimate | null {
  const wave = campaign.waves[campaign.wave];
  if (!wave?.open || (campaign.state !== "active" && campaign.state !== "paused")) return null;
  const left = wave.devices - ended(wave.states);
  if (left <= 0) return { known: false, why: "all its devices have ended: its gate decides" };
  if (campaign.state === "paused") return { known: false, why: WHY.paused! };
  const pace = paceOf(samples, now, campaign.wave);
  const why = unclear(pace);
  return why ? { known: false, why } : at(pace!, left, 0, basisOf(pace!));
}

/**
 * When the campaign may be through: what is left at the pace of now, and the soak behind each wave. What gates, people and
 * windows take on top nobody knows. Null when it has ended.
 */
export function campaignEnds(campaign: Campaign, samples: Sample[], now: number, soak: number | null): Estimate | null {
  if (["completed", "rolled_back", "failed", "cancelled"].includes(campaign.state)) return null;
  const standing = WHY[campaign.state];
  if (standing) return { known: false, why: standing };
  if (campaign.state === "rolling_back") return { known: false, why: "devices go back, in an order that the counts do not tell" };
  const left = sum(campaign.states) - ended(campaign.states);
  if (left <= 0) return { known: false, why: "every device has ended: what is left is the last gate" };
  const gate = campaign.waves[campaign.wave]?.gate;
  if (gate === "fail") return { known: false, why: `the gate behind wave ${campaign.wave} has failed` };
  const open = campaign.waves.filter((wave) => wave.open).reduce((count, wave) => count + wave.devices - ended(wave.states), 0);
  const own = paceOf(samples, now, campaign.wave);
  // Between two waves the pace is the last one's, until its last device had ended.
  const between = open === 0 ? own && paceOf(samples, now - own.quiet, campaign.wave) : null;
  if (open === 0 && gate !== "pass") return { known: false, why: `the gate behind wave ${campaign.wave} has to open the next one` };
  // The pace of the wave that is open says more than that of the ones before.
  const pace = open === 0 ? between : unclear(own) ? paceOf(samples, now) : own;
  const why = unclear(pace);
  if (why) return { known: false, why };
  const closed = campaign.waves.filter((wave) => !wave.open).length;
  const soaks = soak === null ? 0 : closed * soak;
  const more = [
    ...(soaks > 0 ? [`with ${plural(closed, "soak")} of ${duration(soak!)}`] : []),
    ...(closed > 0 ? ["without what gates, approvers and windows may take"] : []),
  ];
  return at(pace!, left, soaks, [basisOf(pace!), ...more].join(", "));
}

/** What people ask for, in the order of a device's way: always the same rows, so that nothing moves while counts do. */
export const GROUPS: [name: string, states: string[]][] = [
  ["not begun", ["pending"]],
  ["waiting", ["waiting_window", "blocked"]],
  ["fetching", ["downloading", "verifying", "staged"]],
  ["updating", ["installing", "rebooting", "validating"]],
  ["done", ["success", "skipped"]],
  ["went back", ["rolled_back"]],
  ["failed", ["failed", "timed_out"]],
  ["quarantined", ["quarantined"]],
  ["cancelled", ["cancelled"]],
];

export interface Row { name: string; count: number; states: [state: string, count: number][]; rate: number }

/** Counts by group. A state that this page does not know has a row of its own. */
export function rowsOf(states: Counts, rates: Record<string, number>): Row[] {
  const known = new Set(GROUPS.flatMap(([, names]) => names));
  const others = Object.keys(states).filter((state) => !known.has(state));
  return [...GROUPS, ...others.map((state): [string, string[]] => [state, [state]])].map(([name, names]) => {
    const present = names.map((state): [string, number] => [state, states[state] ?? 0]).filter(([, count]) => count > 0);
    return { name, count: present.reduce((sum, [, count]) => sum + count, 0), states: present, rate: names.reduce((sum, state) => sum + (rates[state] ?? 0), 0) };
  });
}

/** `about 12 min (8 min to 20 min)`. */
export function told(estimate: Estimate): string {
  if (!estimate.known) return "not known";
  const most = estimate.to === null ? "or much more" : `to ${duration(estimate.to)}`;
  return `${duration(estimate.from)} ${most}`;
}

/** `+4.2/min`. */
export function perMinute(change: number): string {
  const size = Math.abs(change);
  const digits = size >= 100 ? number(Math.round(size)) : size.toFixed(1);
  return digits === "0.0" ? "< 0.1/min" : `${change < 0 ? "−" : "+"}${digits}/min`;
}

const known = new Map<string, Sample[]>();

/** Remembers what a campaign looks like, for as long as this tab is open. */
export function note(campaign: Campaign, now = Date.now()): Sample[] {
  const before = known.get(campaign.id) ?? [];
  const after = push(before, sampleOf(campaign, now));
  if (!known.has(campaign.id) && known.size >= CAMPAIGNS_MAX) known.delete(known.keys().next().value!);
  known.set(campaign.id, after);
  return after;
}

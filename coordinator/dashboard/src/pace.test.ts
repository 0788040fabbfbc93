import { describe, expect, it } from "vitest";
import { type Sample, GROUPS, campaignEnds, changes, note, paceOf, perMinute, push, rowsOf, told, waveEnds } from "./pace";
import type { Campaign, CampaignState, Counts } from "./types";

const at = (seconds: number, states: Counts, ended: number[] = [], wave = 0): Sample => ({ at: seconds * 1000, states, ended, wave });

const campaign = (state: CampaignState, waves: [devices: number, states: Counts, open: boolean][], wave = 0): Campaign => ({
  id: "spring",
  state,
  wave,
  waves: waves.map(([devices, states, open], place) => ({ wave: place, devices, states, open, gate: "unknown" })),
  states: waves.reduce<Counts>((all, [, states]) => {
    for (const [name, count] of Object.entries(states)) all[name] = (all[name] ?? 0) + count;
    return all;
  }, {}),
  held: [],
  reason: "",
});

/** So many devices that end one after the other, `every` seconds. */
const steady = (count: number, all: number, every: number) =>
  Array.from({ length: count + 1 }, (_, place) => at(place * every, { success: place, pending: all - place }, [place])).reduce<Sample[]>(push, []);

describe("what is remembered", () => {
  it("only what has changed, in the order of the clock", () => {
    const one = push([], at(0, { pending: 2 }));
    expect(push(one, at(5, { pending: 2, success: 0 }))).toBe(one);
    expect(push(one, at(-5, { pending: 1, success: 1 }))).toBe(one);
    expect(push(one, at(5, { pending: 1, success: 1 }))).toHaveLength(2);
  });

  it("the window, and how things stood when it began", () => {
    const samples = steady(200, 200, 30);
    // 15 minutes are thirty of them, and the one before.
    expect(samples.length).toBeLessThanOrEqual(33);
    expect(paceOf(samples, samples.at(-1)!.at)!.ends).toBe(30);
  });

  it("a bounded number of them", () => {
    expect(steady(5_000, 5_000, 0.1).length).toBeLessThanOrEqual(402);
  });

  it("most devices that begin again begin a new story, one that is tried again does not", () => {
    expect(push(steady(5, 10, 10), at(60, { pending: 10 }))).toEqual([at(60, { pending: 10 })]);
    const again = push(steady(5, 10, 10), at(60, { success: 4, pending: 6 }, [4]));
    expect(again).toHaveLength(7);
    expect(paceOf(again, 60_000)).toEqual({ ends: 4, over: 60_000, quiet: 10_000 });
  });
});

describe("the end of a campaign", () => {
  it("is what is left at the pace that was seen, as wide as chance makes it", () => {
    const samples = steady(9, 100, 10);
    const now = campaign("active", [[100, { success: 9, pending: 91 }, true]]);
    const found = campaignEnds(now, samples, 90_000, null)!;
    if (!found.known) throw new Error(found.why);
    expect(found.seconds).toBeCloseTo(910);
    expect(found.from).toBeCloseTo(682.5);
    expect(found.to).toBeCloseTo(1365);
    expect(found.basis).toBe("9 devices ended in 90 s");
    expect(told(found)).toBe("11 min to 23 min");
  });

  it("counts the soaks that are to come, and says what it leaves out", () => {
    const samples = steady(10, 10, 6);
    const now = campaign("active", [[20, { success: 10, pending: 10 }, true], [20, { pending: 20 }, false]]);
    const found = campaignEnds(now, samples, 60_000, 600)!;
    if (!found.known) throw new Error(found.why);
    expect(found.seconds).toBeCloseTo(30 * 6 + 600);
    expect(found.basis).toContain("with 1 soak of 10 min");
    expect(found.basis).toContain("without what gates, approvers and windows may take");
  });

  it("is not known where the counts do not tell it, and it says why", () => {
    const running = campaign("active", [[10, { success: 2, installing: 8 }, true]]);
    const why = (samples: Sample[], now: number, one = running) => {
      const found = campaignEnds(one, samples, now, null);
      return found && !found.known ? found.why : found;
    };
    expect(why([], 0)).toBe("this page has only begun to watch");
    expect(why([at(0, { success: 2, installing: 8 })], 60_000)).toBe("no device has ended in the 60 s that this page has watched");
    expect(why(steady(2, 10, 30), 60_000)).toBe("only 2 devices have ended in the 60 s that this page has watched");
    expect(why(steady(8, 10, 10), 500_000)).toBe("nothing has ended for 7 min");
    expect(why(steady(8, 10, 10), 80_000, campaign("paused", [[10, { success: 8, pending: 2 }, true]]))).toBe("it is paused");
    expect(why(steady(8, 20, 10), 80_000, campaign("active", [[8, { success: 8 }, true], [12, { pending: 12 }, false]]))).toBe(
      "the gate behind wave 0 has to open the next one",
    );
    expect(campaignEnds(campaign("completed", [[1, { success: 1 }, true]]), [], 0, null)).toBeNull();
  });

  it("goes on at the last wave's pace while its gate has passed and the next one waits", () => {
    const samples = steady(8, 20, 10);
    const soaking = campaign("active", [[8, { success: 8 }, true], [12, { pending: 12 }, false]]);
    soaking.waves[0]!.gate = "pass";
    // The quiet since the last end is the soak's, and says nothing of the pace.
    const found = campaignEnds(soaking, samples, 500_000, 600)!;
    if (!found.known) throw new Error(found.why);
    expect(found.seconds).toBeCloseTo(12 * 10 + 600);
    expect(waveEnds(soaking, samples, 500_000)).toEqual({ known: false, why: "all its devices have ended: its gate decides" });
  });

  it("follows the wave that is open, not the small one before it", () => {
    // One a minute in the first wave, then ten a minute.
    let samples: Sample[] = [];
    for (let place = 0; place <= 3; place++) samples = push(samples, at(place * 60, { success: place, pending: 103 - place }, [place, 0], 0));
    for (let place = 1; place <= 10; place++) samples = push(samples, at(180 + place * 6, { success: 3 + place, pending: 100 - place }, [3, place], 1));
    const now = campaign("active", [[3, { success: 3 }, true], [100, { success: 10, pending: 90 }, true]], 1);
    const [whole, wave] = [campaignEnds(now, samples, 240_000, null)!, waveEnds(now, samples, 240_000)!];
    if (!whole.known || !wave.known) throw new Error("both are known");
    expect(wave.seconds).toBeCloseTo(90 * 6);
    expect(whole.seconds).toBeCloseTo(wave.seconds);
  });
});

it("states change by so many a minute", () => {
  const found = changes(steady(6, 10, 10), 60_000);
  expect(found).toEqual({ success: 6, pending: -6 });
  expect([perMinute(6), perMinute(-0.25), perMinute(0.01), perMinute(1234)]).toEqual(["+6.0/min", "−0.3/min", "< 0.1/min", "+1,234/min"]);
});

it("what a tab has seen of a campaign stays while it is open", () => {
  const running = campaign("active", [[10, { success: 1, pending: 9 }, true]]);
  note(running, 1_000);
  expect(note({ ...running, states: { success: 2, pending: 8 } }, 2_000)).toHaveLength(2);
});

it("counts have the same rows whatever they are, and a state of a later coordinator is not lost", () => {
  expect(rowsOf({}, {}).map((row) => row.name)).toEqual(GROUPS.map(([name]) => name));
  const rows = rowsOf({ installing: 2, rebooting: 1, success: 7, melting: 4 }, { installing: 1.5, validating: -0.5 });
  expect(rows.find((row) => row.name === "updating")).toEqual({ name: "updating", count: 3, states: [["installing", 2], ["rebooting", 1]], rate: 1 });
  expect(rows.at(-1)).toEqual({ name: "melting", count: 4, states: [["melting", 4]], rate: 0 });
});

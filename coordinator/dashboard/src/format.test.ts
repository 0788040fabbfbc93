import { expect, it } from "vitest";
import { bytes, inOrder, percent, quoted, rackOf } from "./format";
import { asFilter } from "./pages/fleet";

it("all is said of all only, and none of none", () => {
  expect(percent(999_999, 1_000_000)).toBe("99.9 %");
  expect(percent(1, 1_000_000)).toBe("0.1 %");
  expect([percent(0, 10), percent(10, 10), percent(0, 0), percent(1, 3)]).toEqual(["0 %", "100 %", "–", "33 %"]);
});

it("bytes are counted in powers of 1024", () => {
  expect([bytes(0), bytes(1023), bytes(1024), bytes(1.5 * 2 ** 40)]).toEqual(["0 B", "1023 B", "1.0 KiB", "1.5 TiB"]);
});

it("states stand in the order of a device's way, those that are not known last", () => {
  expect(inOrder({ failed: 1, new_state: 1, pending: 2, success: 3, skipped: 0 }).map(([state]) => state)).toEqual(["success", "pending", "failed", "new_state"]);
});

it("a name becomes a filter, and what it has of quotes stays text", () => {
  expect(asFilter(" r1-bmc.2 ")).toBe('device == "r1-bmc.2"');
  expect(asFilter('model == "R1"')).toBe('model == "R1"');
  expect(quoted('a"b\\c')).toBe('"a\\"b\\\\c"');
  expect(rackOf("eu/fra1/r1/n1")).toBe("eu/fra1/r1");
});

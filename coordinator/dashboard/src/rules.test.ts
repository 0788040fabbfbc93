import { expect, it } from "vitest";
import { describe, told } from "./rules";

it("rules are read as people say them", () => {
  expect(describe({ kind: "canary", shares: [1000, 5000, 10000] })).toBe("canary, shares 10\u00a0%, 50\u00a0%, 100\u00a0%");
  expect(describe({ advance: 9900, rollback: 9050, sample_min: 1, soak_s: 3600 })).toBe("advance 99\u00a0%, rollback 90.5\u00a0%, sample min 1, soak 60 min");
  expect(describe({ per_rack: 3, total: 100 })).toBe("per rack 3, total 100");
});

it("what says nothing is left out, and no is said of what is off", () => {
  expect(told({ constraints: {}, automatic_rollback: true, caps: { total: 2 } })).toEqual([["automatic rollback", "yes"], ["caps", "total 2"]]);
});

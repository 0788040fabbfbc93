// The rules of a campaign as people read them.

import { duration, moment, words } from "./format";

/** In hundredths of a percent, as manifests have it. */
const SHARES = ["shares", "advance", "rollback"];

/** JSON as people read it: `canary, shares 10 %, 50 %, 100 %`. */
export function describe(value: unknown, name = ""): string {
  if (Array.isArray(value)) return value.map((one) => describe(one, name)).join(", ");
  if (value && typeof value === "object") {
    const { kind, ...rest } = value as Record<string, unknown>;
    const parts = Object.entries(rest).map(([inner, one]) => `${words(inner.replace(/_s$/, ""))} ${describe(one, inner)}`);
    return [...(typeof kind === "string" ? [words(kind)] : []), ...parts].join(", ");
  }
  if (typeof value === "number" && SHARES.includes(name)) return `${value / 100}\u00a0%`;
  if (typeof value === "number" && name.endsWith("_s")) return duration(value);
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value === "string" && /^\d{4}-\d\d-\d\dT[\d:.]+Z$/.test(value)) return moment(value);
  return String(value);
}

/** The rules that say something, each with its name. */
export const told = (rules: Record<string, unknown>): [string, string][] =>
  Object.entries(rules)
    .filter(([, value]) => !(value && typeof value === "object" && Object.keys(value).length === 0))
    .map(([name, value]) => [words(name), describe(value, name)]);

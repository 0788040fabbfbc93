// When something may end, as the time of day.

import type { Estimate } from "../pace";

/** The time of day, and the day if it is another one. */
function clock(at: number, now: number): string {
  const when = new Date(at);
  const time = when.toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" });
  return when.toDateString() === new Date(now).toDateString() ? time : `${when.toLocaleDateString("en-GB", { day: "numeric", month: "short" })}, ${time}`;
}

export function End({ estimate, now }: { estimate: Estimate; now: number }) {
  return estimate.known ? <>about {clock(now + estimate.seconds * 1000, now)}</> : <span className="quiet">not known</span>;
}

// Whatever page is open: an estimate needs to have seen how a campaign went.

import { useEvents } from "./live";
import { note } from "./pace";

export function useWatched(): void {
  useEvents((event) => {
    if (event !== "reload" && event.kind === "campaign") note(event.data);
  });
}

// Who works here. The proof is kept for this tab only, and forgotten with it.

import { create } from "zustand";
import type { Who } from "./types";

const KEY = "firmesh-token";

interface Session {
  token: string | null;
  who: Who | null;
  /** Why somebody has to log in (again), if so. */
  asks: string | null;
  login: (token: string, who: Who) => void;
  known: (who: Who) => void;
  expired: () => void;
  logout: () => void;
  ask: (why: string) => void;
  dismiss: () => void;
}

const stored = () => {
  try {
    return sessionStorage.getItem(KEY);
  } catch {
    return null;
  }
};
const store = (token: string | null) => {
  try {
    if (token) sessionStorage.setItem(KEY, token);
    else sessionStorage.removeItem(KEY);
  } catch {
    // Without storage the token lasts until the page is loaded again.
  }
};

export const session = create<Session>((set) => ({
  token: stored(),
  who: null,
  asks: null,
  login: (token, who) => {
    store(token);
    set({ token, who, asks: null });
  },
  known: (who) => set({ who }),
  expired: () => {
    store(null);
    set({ token: null, who: null, asks: "Your login has expired or was revoked. Log in again to go on." });
  },
  logout: () => {
    store(null);
    set({ token: null, who: null, asks: null });
  },
  ask: (why) => set({ asks: why }),
  dismiss: () => set({ asks: null }),
}));

/** Whether one may do this somewhere at least; the coordinator decides in the end. */
export const useMay = (permission: string) => session((state) => state.who?.permissions.includes(permission) ?? false);

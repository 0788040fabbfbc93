// Addresses of pages, over the history API.

import { useEffect, useSyncExternalStore, type AnchorHTMLAttributes } from "react";

const listeners = new Set<() => void>();
const subscribe = (listener: () => void) => {
  listeners.add(listener);
  addEventListener("popstate", listener);
  return () => {
    listeners.delete(listener);
    removeEventListener("popstate", listener);
  };
};

export const usePath = () => useSyncExternalStore(subscribe, () => location.pathname);
export const useQuery = () => {
  const search = useSyncExternalStore(subscribe, () => location.search);
  return new URLSearchParams(search);
};

let isNew = false;
/** Whether somebody has just gone to this page: its heading takes the focus, once. */
export function isNewPage(): boolean {
  const was = isNew;
  isNew = false;
  return was;
}

export function go(to: string, replace = false): void {
  if (replace) history.replaceState(null, "", to);
  else history.pushState(null, "", to);
  isNew = !replace;
  listeners.forEach((listener) => listener());
  if (!replace) scrollTo(0, 0);
}

/** The query of this page, changed: what is empty is left out. */
export function goQuery(changes: Record<string, string>): void {
  const query = new URLSearchParams(location.search);
  for (const [name, value] of Object.entries(changes)) {
    if (value) query.set(name, value);
    else query.delete(name);
  }
  const text = query.toString();
  go(location.pathname + (text ? `?${text}` : ""), true);
}

export function Link({ href = "/", onClick, ...rest }: AnchorHTMLAttributes<HTMLAnchorElement>) {
  return (
    <a
      href={href}
      onClick={(event) => {
        onClick?.(event);
        if (event.defaultPrevented || event.metaKey || event.ctrlKey || event.shiftKey || event.button !== 0) return;
        event.preventDefault();
        go(href);
      }}
      {...rest}
    />
  );
}

export function useTitle(title: string): void {
  useEffect(() => {
    document.title = `${title} · Firmesh`;
  }, [title]);
}

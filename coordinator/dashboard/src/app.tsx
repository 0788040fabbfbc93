// The shell: navigation, theme, who works here, the state of the connection, shortcuts.

import { Suspense, lazy, useEffect, useRef, useState, type ComponentType } from "react";
import { read } from "./api";
import { link, follow } from "./live";
import { Login, ReturnPage } from "./login";
import { BACK } from "./oidc";
import { CampaignsPage } from "./pages/campaigns";
import { Dialog } from "./parts/ui";
import { Link, go, usePath } from "./router";
import { session } from "./session";
import type { Who } from "./types";
import { useWatched } from "./watched";

const page = <K extends string>(load: () => Promise<Record<K, ComponentType<{ rest: string }>>>, name: K) =>
  lazy(() => load().then((module) => ({ default: module[name] })));

const PAGES: [string, string, string, ComponentType<{ rest: string }>][] = [
  ["campaigns", "Campaigns", "c", CampaignsPage],
  ["fleet", "Fleet", "f", page(() => import("./pages/fleet"), "FleetPage")],
  ["mesh", "Mesh", "m", page(() => import("./pages/mesh"), "MeshPage")],
  ["devices", "Devices", "d", page(() => import("./pages/devices"), "DevicesPage")],
  ["artifacts", "Artifacts", "a", page(() => import("./pages/artifacts"), "ArtifactsPage")],
  ["audit", "Audit", "u", page(() => import("./pages/audit"), "AuditPage")],
  ["compliance", "Compliance", "o", page(() => import("./pages/compliance"), "CompliancePage")],
  ["settings", "Settings", "s", page(() => import("./pages/settings"), "SettingsPage")],
];

export function App() {
  const path = usePath();
  const token = session((state) => state.token);
  const [help, setHelp] = useState(false);
  const [first = "", ...more] = path.split("/").filter(Boolean).map(decodeURIComponent);
  const here = PAGES.find(([id]) => id === (first || "campaigns"));

  useEffect(() => {
    follow();
    read<Who>("auth/whoami").then(session.getState().known, () => {
      if (!session.getState().token) session.getState().ask("This coordinator wants to know who you are.");
    });
  }, [token]);
  useShortcuts(setHelp);
  const nav = useRef<HTMLElement>(null);
  // On a phone the pages do not all fit beside each other.
  useEffect(() => {
    const [row, current] = [nav.current, nav.current?.querySelector<HTMLElement>("[aria-current=page]")];
    if (row && current) row.scrollLeft = current.offsetLeft - (row.clientWidth - current.offsetWidth) / 2;
  }, [here]);
  useWatched();

  const Page = here?.[3];
  return (
    <>
      <a className="skip" href="#main">
        Skip to the page
      </a>
      <div className="shell">
        <header className="side">
          <Link className="brand" href="/">
            <img src="/favicon.svg" alt="" />
            Firmesh
          </Link>
          <nav className="nav" aria-label="Pages" ref={nav}>
            {PAGES.map(([id, name]) => (
              <Link key={id} href={`/${id}`} aria-current={id === here?.[0] ? "page" : undefined}>
                {name}
              </Link>
            ))}
          </nav>
          <Foot help={() => setHelp(true)} />
        </header>
        <main className="main" id="main">
          <Suspense fallback={<p className="loading">Loading…</p>}>
            {path === BACK ? (
              <ReturnPage />
            ) : Page ? (
              <Page rest={more.join("/")} />
            ) : (
              <>
                <h1 tabIndex={-1}>No such page</h1>
                <p>
                  There is nothing at <code>{path}</code>. <Link href="/">Go to the campaigns</Link>
                </p>
              </>
            )}
          </Suspense>
        </main>
      </div>
      <Away />
      <Login />
      {help && <Shortcuts close={() => setHelp(false)} />}
    </>
  );
}

function Foot({ help }: { help: () => void }) {
  const who = session((state) => state.who);
  const token = session((state) => state.token);
  const state = link((link) => link.state);
  const roles = [...new Set(who?.grants.map((grant) => grant.role) ?? [])].join(", ");
  return (
    <div className="side-foot">
      <span className="link-state" role="status" data-link={state}>
        <span className={state === "live" ? "dot" : "dot away"} aria-hidden="true" />
        <span className="link-name">{state === "live" ? "Live" : state === "connecting" ? "Connecting…" : "Reconnecting…"}</span>
      </span>
      <span className="only-wide" data-who>
        {who ? `${who.name}${roles ? ` (${roles})` : ""}` : " "}
      </span>
      <div className="row">
        {token ? (
          <button className="button small" onClick={() => session.getState().logout()}>
            Log out
          </button>
        ) : (
          <button className="button small" onClick={() => session.getState().ask("")}>
            Log in
          </button>
        )}
        <ThemeButton />
        <button className="button small only-wide" onClick={help} aria-keyshortcuts="?">
          Keys
        </button>
      </div>
    </div>
  );
}

const THEMES = ["system", "light", "dark"] as const;
const NAMES: Record<string, string> = { system: "Auto", light: "Light", dark: "Dark" };

function ThemeButton() {
  const [theme, setTheme] = useState<string>(() => document.documentElement.dataset.theme ?? "system");
  const next = THEMES[(THEMES.findIndex((one) => one === theme) + 1) % THEMES.length]!;
  return (
    <button
      className="button small"
      aria-label={`${NAMES[theme]} theme, change to ${NAMES[next]}`}
      onClick={() => {
        setTheme(next);
        try {
          if (next === "system") localStorage.removeItem("firmesh-theme");
          else localStorage.setItem("firmesh-theme", next);
        } catch {
          // Kept for this page only.
        }
        if (next === "system") delete document.documentElement.dataset.theme;
        else document.documentElement.dataset.theme = next;
      }}
    >
      {NAMES[theme]}
    </button>
  );
}

/** Said beside the page, not in it: nothing moves when the connection goes and comes. */
function Away() {
  const { state, since } = link();
  const [late, setLate] = useState(false);
  useEffect(() => {
    setLate(false);
    if (state === "live") return;
    const timer = setTimeout(() => setLate(true), 700);
    return () => clearTimeout(timer);
  }, [state, since]);
  if (state === "live" || !late) return null;
  return (
    <div className="away-note" role="status">
      <strong>Reconnecting…</strong> What you see is from {new Date(since).toLocaleTimeString("en-GB")}.
    </div>
  );
}

function useShortcuts(setHelp: (help: boolean) => void): void {
  useEffect(() => {
    let isGo = false;
    const listen = (event: KeyboardEvent) => {
      const at = event.target as HTMLElement;
      if (event.ctrlKey || event.metaKey || event.altKey || at.closest("input, textarea, select, dialog")) return;
      const wasGo = isGo;
      isGo = false;
      const to = wasGo && PAGES.find(([, , key]) => key === event.key);
      if (to) go(`/${to[0]}`);
      else if (event.key === "g") isGo = true;
      else if (event.key === "?") setHelp(true);
      else if (event.key === "/") {
        const search = document.querySelector<HTMLInputElement>("main input[type=search]");
        if (search) search.focus();
        else go("/devices");
      } else return;
      event.preventDefault();
    };
    addEventListener("keydown", listen);
    return () => removeEventListener("keydown", listen);
  }, [setHelp]);
}

function Shortcuts({ close }: { close: () => void }) {
  return (
    <Dialog title="Keys" close={close}>
      <dl className="facts">
        {[["/", "search, or go to the devices"], ["?", "this help"], ...PAGES.map(([, name, key]) => [`g ${key}`, name])].map(([keys, what]) => (
          <div key={keys} style={{ display: "contents" }}>
            <dt>
              <kbd>{keys}</kbd>
            </dt>
            <dd>{what}</dd>
          </div>
        ))}
      </dl>
      <div className="actions">
        <button className="button" onClick={close}>
          Close
        </button>
      </div>
    </Dialog>
  );
}

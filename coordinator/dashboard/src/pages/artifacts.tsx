// Images and releases: what is here, who has signed for it, and bringing in more.

import { useRef, useState } from "react";
import { list, read, send } from "../api";
import { bytes, duration, moment, number, percent, releaseName, short } from "../format";
import { useLoaded } from "../live";
import { Await, Command, Confirm, Empty, Facts, Figures, PageHead, Panel, State, Trouble } from "../parts/ui";
import { Link, goQuery, useQuery } from "../router";
import { useMay } from "../session";
import type { Artifact, Firmware, MeshNode, Upload } from "../types";
import { upload, type Progress } from "../upload";
import { Replicas } from "./replicas";
import { StartSync, Syncs } from "./sync";

export function ArtifactsPage({ rest }: { rest: string }) {
  return rest ? <FirmwarePage key={rest} name={rest} /> : <Everything />;
}

/** What can be planned with comes first. */
const ORDER = ["approved", "draft", "deprecated", "revoked"];

function Everything() {
  const search = useQuery().get("q") ?? "";
  const mayImport = useMay("artifact:import");
  const loaded = useLoaded(
    "artifacts",
    async (signal) => {
      const [firmware, artifacts, uploads] = await Promise.all([
        list<Firmware>("firmware", 2000, signal),
        list<Artifact>("artifacts", 2000, signal),
        list<Upload>("uploads", 200, signal),
      ]);
      return { firmware: firmware.items, artifacts: artifacts.items, uploads: uploads.items };
    },
    (event) => event.kind === "artifact",
  );
  return (
    <>
      <PageHead title="Artifacts and releases" sub="Images as bytes, and the releases that people have signed for them." />
      <Await of={loaded}>
        {({ firmware, artifacts, uploads }) => {
          const word = search.toLowerCase();
          const inOrder = firmware.toSorted((a, b) => ORDER.indexOf(a.state) - ORDER.indexOf(b.state) || a.name.localeCompare(b.name, "en", { numeric: true }));
          const shown = inOrder.filter(({ name, state, release }) => `${name} ${state} ${release.info.vendor} ${release.info.models.join(" ")} ${release.info.version}`.toLowerCase().includes(word));
          const named = new Set(firmware.map((one) => one.release.artifact.sha256));
          const unnamed = artifacts.filter((artifact) => !named.has(artifact.sha256));
          const waiting = uploads.filter((one) => !one.artifact);
          return (
            <>
              <Figures
                rows={[
                  ["Images", number(artifacts.length), bytes(artifacts.reduce((sum, artifact) => sum + artifact.length, 0))],
                  ["Releases", number(firmware.filter((one) => one.state === "approved").length), "approved"],
                  ["Drafts", number(firmware.filter((one) => one.state === "draft").length)],
                  ["On their way", number(waiting.length)],
                ]}
              />
              {mayImport ? (
                <div className="cols">
                  <Uploader done={loaded.reload} />
                  <StartSync />
                </div>
              ) : (
                <div className="note">Bringing images in needs the role admin. Log in, or at a terminal: <code>firmesh artifact import FILE</code></div>
              )}
              <Syncs done={loaded.reload} />
              {waiting.length > 0 && <Waiting uploads={waiting} done={loaded.reload} />}
              <div className="search">
                <input type="search" aria-label="Search releases" placeholder="Search by name, vendor, model or version" value={search} onChange={(event) => goQuery({ q: event.target.value })} />
              </div>
              <Panel title="Releases" flush>
                {shown.length === 0 && <Empty>{firmware.length ? "Nothing matches." : "No releases yet."}</Empty>}
                {shown.length > 0 && (
                  <div className="scroll-x">
                    <table className="stacked">
                      <thead>
                        <tr>
                          <th scope="col">Release</th>
                          <th scope="col">State</th>
                          <th scope="col">For</th>
                          <th scope="col">Version</th>
                          <th scope="col" className="num">Size</th>
                          <th scope="col">Image</th>
                        </tr>
                      </thead>
                      <tbody>
                        {shown.slice(0, 500).map((one) => (
                          <tr key={one.name}>
                            <th scope="row">
                              <Link href={`/artifacts/${encodeURIComponent(one.name)}`}>{one.name}</Link>
                            </th>
                            <td><State state={one.state} /></td>
                            <td>{one.release.info.vendor} {one.release.info.models.join(", ")} {one.release.info.component}</td>
                            <td data-label="Version">{one.release.info.version}</td>
                            <td className="num" data-label="Size">{bytes(one.release.artifact.length)}</td>
                            <td>{one.stored ? "here" : <State state="blocked" label="missing" />}</td>
                          </tr>
                        ))}
                      </tbody>
                    </table>
                  </div>
                )}
              </Panel>
              {unnamed.length > 0 && (
                <Panel title="Images without a release" flush>
                  <table>
                    <thead>
                      <tr>
                        <th scope="col">SHA-256</th>
                        <th scope="col" className="num">Size</th>
                      </tr>
                    </thead>
                    <tbody>
                      {unnamed.slice(0, 200).map((artifact) => (
                        <tr key={artifact.id}>
                          <th scope="row" className="mono">{artifact.sha256}</th>
                          <td className="num">{bytes(artifact.length)}</td>
                        </tr>
                      ))}
                    </tbody>
                  </table>
                </Panel>
              )}
            </>
          );
        }}
      </Await>
    </>
  );
}

function Uploader({ done }: { done: () => void }) {
  const [progress, setProgress] = useState<(Progress & { name: string; began: number; from: number }) | null>(null);
  const [error, setError] = useState<Error | null>(null);
  const [made, setMade] = useState<Upload | null>(null);
  const stop = useRef<AbortController | null>(null);
  const start = (file: File) => {
    const turn = new AbortController();
    stop.current = turn;
    setError(null);
    setMade(null);
    upload(
      file,
      (now) =>
        setProgress((before) => ({ ...now, name: file.name, ...(before && before.step !== "reading" && now.step !== "reading" ? { began: before.began, from: before.from } : { began: Date.now(), from: now.done }) })),
      turn.signal,
    )
      .then((made) => {
        setMade(made);
        done();
      })
      .catch((failure: Error) => {
        if (!turn.signal.aborted) setError(failure);
      })
      .finally(() => setProgress(null));
  };
  const passed = progress ? (Date.now() - progress.began) / 1000 : 0;
  const rate = progress && passed > 1 ? (progress.done - progress.from) / passed : 0;
  return (
    <Panel title="Bring an image in">
      {!progress && (
        <label className="field">
          <span>File</span>
          <input type="file" onChange={(event) => event.target.files?.[0] && start(event.target.files[0])} />
          <small>Sent in parts of 8 MiB. Broken off, it goes on where the coordinator has it: choose the same file again.</small>
        </label>
      )}
      {progress && (
        <div className="stack">
          <p role="status">
            {progress.step === "reading" ? "Reading" : progress.step === "waiting" ? "Waiting to go on with" : "Sending"} {progress.name}: {bytes(progress.done)} of {bytes(progress.total)} ({percent(progress.done, progress.total)})
            {rate > 0 && progress.step === "sending" ? `, ${bytes(rate)}/s, ${duration((progress.total - progress.done) / rate)} left` : ""}
          </p>
          <progress value={progress.done} max={progress.total} aria-label={`Progress of ${progress.name}`} />
          <div className="actions">
            <button className="button" onClick={() => stop.current?.abort()}>
              Stop for now
            </button>
          </div>
        </div>
      )}
      {error && <Trouble error={error} />}
      {made?.artifact && (
        <div className="note good stack">
          <p>
            It is here: <code>{short(made.sha256)}</code>, {bytes(made.length)}. A release names what it is for, and release keys sign it, offline:
          </p>
          <Command line={`firmesh release add ${made.filename ?? "FILE"} --vendor VENDOR --model MODEL --component COMPONENT --version VERSION`} />
        </div>
      )}
    </Panel>
  );
}

function Waiting({ uploads, done }: { uploads: Upload[]; done: () => void }) {
  const [error, setError] = useState<Error | null>(null);
  const may = useMay("artifact:import");
  return (
    <Panel title="On their way" flush>
      {error && <Trouble error={error} />}
      <table className="stacked">
        <thead>
          <tr>
            <th scope="col">File</th>
            <th scope="col">Here</th>
            <th scope="col">Forgotten</th>
            {may && <th scope="col"><span className="hidden-visually">What to do</span></th>}
          </tr>
        </thead>
        <tbody>
          {uploads.map((one) => (
            <tr key={one.id}>
              <th scope="row">{one.filename ?? short(one.sha256)}</th>
              <td>{percent(one.offset, one.length)} of {bytes(one.length)}</td>
              <td>{moment(one.expires)}</td>
              {may && (
                <td>
                  <button className="button small" onClick={() => void send("DELETE", `uploads/${one.id}`, undefined, { "Tus-Resumable": "1.0.0" }).then(done, setError)}>
                    Forget<span className="hidden-visually"> {one.filename ?? one.sha256}</span>
                  </button>
                </td>
              )}
            </tr>
          ))}
        </tbody>
      </table>
    </Panel>
  );
}

function FirmwarePage({ name }: { name: string }) {
  const path = `firmware/${encodeURIComponent(name)}`;
  const mayWrite = useMay("release:write");
  const [asked, setAsked] = useState<"deprecate" | "restore" | "delete" | null>(null);
  const [why, setWhy] = useState("");
  const loaded = useLoaded(path, async (signal) => {
    const firmware = await read<Firmware>(path, signal);
    const [verdict, nodes] = await Promise.all([
      read<Record<string, unknown>>(`verdicts/${firmware.release.artifact.sha256}`, signal).catch(() => null),
      list<MeshNode>("nodes", 4000, signal),
    ]);
    return { firmware, verdict, nodes: nodes.items.filter((node) => node.enrolled && !node.revoked), more: nodes.more };
  }, (event) => event.kind === "node", 5_000);
  return (
    <Await of={loaded}>
      {({ firmware, verdict, nodes, more }) => {
        const holders = nodes.filter((node) => node.holdings.some((one) => one.artifact === firmware.release.artifact.id && one.pieces === one.pieces_total)).length;
        const { info, artifact } = firmware.release;
        const provenance = info.provenance as { kind?: string } | undefined;
        return (
          <>
            <PageHead title={firmware.name} crumbs={[["Artifacts", "/artifacts"]]} sub={`${info.vendor} ${info.models.join(", ")} ${info.component} ${info.version}`}>
              {mayWrite && firmware.state === "approved" && <button className="button" onClick={() => setAsked("deprecate")}>Deprecate</button>}
              {mayWrite && firmware.state === "deprecated" && <button className="button" onClick={() => setAsked("restore")}>Take the mark away</button>}
              {mayWrite && firmware.state === "draft" && <button className="button danger" onClick={() => setAsked("delete")}>Remove the draft</button>}
            </PageHead>
            <Figures
              rows={[
                ["State", <State key="s" state={firmware.state} />],
                ["Size", bytes(artifact.length)],
                ["At the origin", firmware.stored ? "yes" : "no"],
                ["Whole at nodes", number(holders), `of ${number(nodes.length)}${more ? " looked at" : ""}`],
              ]}
            />
            {firmware.reason && <div className="note warn">{firmware.reason}</div>}
            <div className="cols">
              <Panel title="What it is">
                <Facts
                  rows={[
                    ["Target", releaseName(firmware.release.target)],
                    ["SHA-256", <code key="s">{artifact.sha256}</code>],
                    ["BLAKE3", <code key="b">{artifact.id}</code>],
                    ["Security epoch", info.security_epoch],
                    ["From versions", info.from_versions?.join(", ") || "any"],
                    ["Going back", info.reversibility.replaceAll("_", " ")],
                    ...(firmware.source ? ([["Mirrored from", firmware.source]] as [string, string][]) : []),
                    ...(firmware.created ? ([["Drafted", moment(firmware.created)]] as [string, string][]) : []),
                  ]}
                />
                {firmware.release_notes && <pre style={{ whiteSpace: "pre-wrap", margin: 0 }}>{firmware.release_notes}</pre>}
              </Panel>
              <Panel title="Signatures and provenance">
                {firmware.state === "draft" ? (
                  <>
                    <p>Nobody has signed for it: no device takes it. Where the release keys are:</p>
                    <Command line="firmesh release sign --key KEY && firmesh release publish" />
                  </>
                ) : (
                  <p>Release keys have signed for it by their threshold; nodes check that themselves. Who: <Link href="/settings">Settings, signatures</Link>.</p>
                )}
                {provenance ? <pre className="mono" style={{ whiteSpace: "pre-wrap", margin: 0, overflowWrap: "anywhere" }}>{JSON.stringify(provenance, null, 2)}</pre> : <p className="quiet">The release names no vendor signature and no SBOM.</p>}
                {verdict && (
                  <>
                    <h3>What this coordinator's policy said</h3>
                    <pre className="mono" style={{ whiteSpace: "pre-wrap", margin: 0, overflowWrap: "anywhere" }}>{JSON.stringify(verdict, null, 2)}</pre>
                  </>
                )}
              </Panel>
            </div>
            <Replicas artifact={firmware.release.artifact} nodes={nodes} stored={firmware.stored} more={more} />
            {asked && (
              <Confirm
                title={asked === "deprecate" ? `Deprecate ${name}?` : asked === "restore" ? `Plan with ${name} again?` : `Remove the draft ${name}?`}
                word={name}
                what={asked === "deprecate" ? "Nothing is planned with it any more. Campaigns that run go on." : asked === "restore" ? "Campaigns may name it again." : "The image stays."}
                action={asked === "deprecate" ? "Deprecate" : asked === "restore" ? "Take the mark away" : "Remove"}
                danger={asked === "delete"}
                close={() => setAsked(null)}
                run={async () => {
                  if (asked === "delete") {
                    await send("DELETE", path);
                    location.assign("/artifacts");
                    return;
                  }
                  await send("POST", `${path}/deprecate`, asked === "deprecate" ? { reason: why || "no reason given" } : {});
                  loaded.reload();
                }}
              >
                {asked === "deprecate" && (
                  <label className="field">
                    <span>Why</span>
                    <input value={why} onChange={(event) => setWhy(event.target.value)} required />
                  </label>
                )}
              </Confirm>
            )}
          </>
        );
      }}
    </Await>
  );
}

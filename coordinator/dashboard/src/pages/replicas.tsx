// Where an image is replicated: at the origin, and in which racks.

import { placePath } from "../api";
import { bytes, number, percent, plural } from "../format";
import { Panel, State } from "../parts/ui";
import { replicasOf } from "../replicas";
import { Link } from "../router";
import type { Artifact, MeshNode } from "../types";

const MOST = 300;

export function Replicas({ artifact, nodes, stored, more }: { artifact: Artifact; nodes: MeshNode[]; stored: boolean; more: boolean }) {
  const racks = replicasOf(artifact.id, nodes);
  const holding = racks.filter((rack) => rack.total > 0);
  return (
    <Panel title="Where it is" aside={<Link href={`/mesh?image=${artifact.id}`}>Watch it in the mesh</Link>} flush>
      <table className="stacked">
        <thead>
          <tr>
            <th scope="col">Place</th>
            <th scope="col">State</th>
            <th scope="col" className="num">Whole</th>
            <th scope="col" className="num">In part</th>
            <th scope="col" className="num">Nodes</th>
            <th scope="col" style={{ width: "30%" }}>How much</th>
          </tr>
        </thead>
        <tbody>
          <tr>
            <th scope="row">Origin</th>
            <td>
              <State state={stored ? "completed" : "blocked"} label={stored ? "whole" : "missing"} />
            </td>
            <td className="num" data-label="Whole">{stored ? "1" : "0"}</td>
            <td className="num" data-label="In part">–</td>
            <td className="num" data-label="Nodes">–</td>
            <td className="quiet">{bytes(artifact.length)}</td>
          </tr>
          {holding.slice(0, MOST).map((rack) => (
            <tr key={rack.path}>
              <th scope="row">
                <Link href={`/fleet/${placePath(rack.path)}`}>{rack.path}</Link>
              </th>
              <td>
                <State state={rack.pieces === rack.total ? "completed" : "downloading"} label={rack.whole === rack.nodes ? "whole everywhere" : rack.whole > 0 ? "whole at some" : "on its way"} />
              </td>
              <td className="num" data-label="Whole">{number(rack.whole)}</td>
              <td className="num" data-label="In part">{number(rack.part)}</td>
              <td className="num" data-label="Nodes">{number(rack.nodes)}</td>
              <td>
                <div className="measure">
                  <progress value={rack.pieces} max={rack.total} aria-label={`Pieces at ${rack.path}`} />
                  <span className="num">{percent(rack.pieces, rack.total)}</span>
                </div>
              </td>
            </tr>
          ))}
        </tbody>
      </table>
      <p className="quiet small pad line">
        {holding.length === 0 ? "No node holds any of it yet: nodes fetch what an approved campaign names for their devices." : racks.length === holding.length ? "Every rack has some of it." : `${plural(racks.length - holding.length, "rack has", "racks have")} nothing of it.`}
        {holding.length > MOST ? ` The first ${MOST} of ${number(holding.length)} racks.` : ""}
        {more ? " Not all nodes were looked at." : ""}
      </p>
    </Panel>
  );
}

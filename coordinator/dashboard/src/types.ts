// The parts of the public API (`/api/v1/openapi.json`) that the pages use.

export type Counts = Record<string, number>;

export type CampaignState =
  | "pending_approval" | "scheduled" | "active" | "paused" | "rolling_back"
  | "completed" | "rolled_back" | "failed" | "cancelled";

export interface Wave {
  wave: number;
  devices: number;
  states: Counts;
  open: boolean;
  gate: "unknown" | "pass" | "hold" | "fail";
}

export interface Campaign {
  id: string;
  state: CampaignState;
  wave: number;
  waves: Wave[];
  states: Counts;
  possession?: { nodes: number; proven: number; wrong_proofs?: Counts };
  held: { device: string; reason: string }[];
  reason: string;
}

/** What approvers were asked between two waves. */
export interface WaveApproval { wave: number; approved?: boolean; reason?: string; by?: string[] }

export interface Explanation { subject: string; finding: string; evidence: string[] }

export interface Attempt {
  campaign: string;
  device: string;
  wave: number;
  state: string;
  attempt?: number;
  reason: string;
  version: string | null;
}

export interface Device {
  facts: {
    device: string;
    vendor: string;
    model: string;
    component: string;
    version: string | null;
    executor: string;
    labels?: Record<string, string>;
  };
  node: string | null;
  path: string;
  last_seen: string | null;
  status: string;
  phase: string;
  enabled: boolean;
  attempt: Attempt | null;
  registration?: { hardware_id?: string; region: string; tags?: string[]; metadata?: Record<string, unknown>; registered: string; mismatch?: string; held?: string };
  /** What it says of itself; nothing is decided by it. */
  said?: {
    at: string;
    status?: { status?: string; version?: string; progress?: number; message?: string };
    validation?: { version: string; ok: boolean; message?: string };
  };
  /** By name only; absent where it has none. */
  credentials_profile?: string;
}

/** What came one way between two racks, or two nodes; without `from` it came from the origin. */
export interface MeshLink { from?: string; to: string; bytes: number }
export interface MeshLinks { links: MeshLink[]; left_out: number; unnamed_bytes: number }

/** What was said to a device in an attempt. */
export interface Transcript {
  number: number;
  campaign: string;
  kind: string;
  state: string;
  ended: string;
  node: string;
  exchanges: number;
  bytes: number;
  sha256: string;
  kept_bytes: number;
  left_out: number;
}

/** What is not known is null. */
export interface DeviceHealth {
  online: boolean | null;
  cpuUsage: number | null;
  memoryUsage: number | null;
  uptime: number | null;
  lastHeartbeat: string | null;
  applicationMetrics: { sensorReadings: Record<string, number> | null; errorRate: number | null };
  selfReported: string | null;
}

export interface Update {
  campaign: string;
  device: string;
  wave: number;
  release: string;
  from_version: string;
  state: string;
  progress: number;
  reason: string;
  version: string | null;
  ended: string | null;
}

export interface Traffic {
  from_origin: number;
  from_rack: number;
  from_other_racks: number;
  to_rack: number;
  to_other_racks: number;
  verification_failures: number;
  fetched_again: number;
  reused: number;
}

export interface MeshNode {
  node: string;
  path: string;
  enrolled: boolean;
  revoked: boolean;
  last_seen: string | null;
  holdings: { artifact: string; pieces: number; pieces_total: number }[];
  traffic: Traffic;
  banned: Record<string, string>;
  audit_fork?: string;
}

export interface Place {
  path: string;
  nodes: number;
  nodes_silent: number;
  devices: number;
  statuses: Counts;
  versions: Record<string, Counts>;
}

export interface Artifact { id: string; sha256: string; length: number }

export interface Release {
  target: string;
  artifact: Artifact;
  info: {
    vendor: string;
    models: string[];
    component: string;
    version: string;
    security_epoch: number;
    from_versions?: string[];
    reversibility: string;
    provenance?: unknown;
  };
}

export interface Firmware {
  name: string;
  state: "draft" | "approved" | "deprecated" | "revoked";
  reason?: string;
  release: Release;
  stored: boolean;
  release_notes: string;
  source?: string;
  created?: string;
}

export interface Upload {
  id: string;
  filename?: string;
  sha256: string;
  length: number;
  offset: number;
  expires: string;
  artifact?: Artifact;
}

export interface Baseline {
  id: string;
  description: string;
  filter?: string;
  releases: string[];
  missing?: string[];
  /** By which rules devices that drift are brought back. */
  reconcile?: Record<string, unknown>;
  version: number;
}

export interface Reconciled { drifted: number; drafted: boolean; draft?: { id: string }; reason: string }

export interface Compliance { baseline: string; devices: number; states: Counts; sites: Record<string, Counts> }

export interface Drift {
  device: string;
  path: string;
  component: string;
  version: string | null;
  wanted: string | null;
  release: string | null;
  state: string;
}

export interface Policy { campaign: string; state: CampaignState; plan_sha256: string; rules: Record<string, unknown> }

export interface Windows {
  campaign: string;
  state: CampaignState;
  windows: { zone: string; days?: string[]; from?: string; duration_s: number; recurs?: { dtstart: string; rrule?: string }; only?: unknown }[];
  blackouts: { from: string; until: string }[];
}

export interface Group { id: string; description: string; filter?: string; members?: number; version: number }

/** Who is told what happens, and how far he has come. */
export interface Destination {
  name: string;
  kind: string;
  target: string;
  backlog: number;
  last_delivered: string | null;
  last_error: { at: string; number: number; reason: string } | null;
  failing_since: string | null;
  next_attempt: string | null;
  delivered: number;
  refused: number;
  given_up: number;
}

export interface ApiKey {
  id: string;
  name: string;
  role: string;
  created: string;
  created_by: string;
  expires: string;
  revoked?: string;
}

export interface Who {
  name: string;
  means: string;
  grants: { role: string; limits: Record<string, string[]> }[];
  groups: string[];
  expires?: string;
  permissions: string[];
}

export interface Oidc { issuer: string; client_id: string; scopes: string[]; authorization_endpoint?: string }
export interface LoginMethods { passwords: boolean; oidc?: Oidc }

export interface AuditEntry { entry: string; leaf: string; document?: string }

export interface SyncResult { listed: number; fetched: number; bytes: number; unchanged: number; drafted: number; failed: { url: string; problem: string }[] }

export interface Operation {
  id: string;
  kind: string;
  subject: string;
  state: "running" | "succeeded" | "failed" | "interrupted";
  started: string;
  ended?: string;
  progress: string;
  result?: SyncResult;
  problem?: string;
}

export type LiveEvent =
  | { id: number; at: string; kind: "campaign"; data: Campaign }
  | { id: number; at: string; kind: "attempt"; data: Attempt }
  | { id: number; at: string; kind: "node"; data: MeshNode }
  | { id: number; at: string; kind: "artifact"; data: Artifact };

//! Every bound that a stranger's bytes meet, each with its reason.

/// Names become file names, URL segments and label values; 64 bytes hold an asset tag with room to spare.
pub const NAME_BYTES_MAX: usize = 64;

/// `region/site/hall/row/rack/chassis/host/node` is the deepest path anybody drew.
pub const PATH_SEGMENTS_MAX: usize = 8;

/// The largest artifact: a multi-gigabyte vendor bundle (a Service Pack ISO is about 10 GB).
pub const ARTIFACT_BYTES_MAX: u64 = 32 << 30;

/// Root metadata is fetched before anything bounds it; python-tuf and the specification use the same order of size.
pub const ROOT_BYTES_MAX: u64 = 512 << 10;

/// Timestamp metadata is a handful of lines.
pub const TIMESTAMP_BYTES_MAX: u64 = 16 << 10;

/// Snapshot metadata when the timestamp does not give its length.
pub const SNAPSHOT_BYTES_MAX: u64 = 2 << 20;

/// Targets metadata when the snapshot does not give its length: 100,000 targets at about 700 bytes each.
pub const TARGETS_BYTES_MAX: u64 = 80 << 20;

/// New roots accepted in one refresh: more rotations than a fleet sees in its life, few enough to end soon.
pub const ROOT_ROTATIONS_MAX: usize = 256;

/// Keys of one role and signatures of one file: a threshold among more people than this is never met.
pub const SIGNATURES_MAX: usize = 64;

/// A campaign manifest names rules, not devices (those stand in its plan).
pub const MANIFEST_BYTES_MAX: u64 = 1 << 20;

/// A plan of 100,000 devices at about 200 bytes each, with room for reasons.
pub const PLAN_BYTES_MAX: u64 = 64 << 20;

/// Devices of one campaign; larger fleets use child campaigns.
pub const PLAN_DEVICES_MAX: usize = 100_000;

/// Servers of one provisioning campaign: how each stands is kept in the campaign's record, which is written as a whole.
pub const SERVERS_MAX: usize = 10_000;

/// Components of one server that a campaign has releases for: the largest have some sixty.
pub const SERVER_COMPONENTS_MAX: usize = 128;

/// Waves of one plan.
pub const WAVES_MAX: usize = 1_000;

/// A DSSE envelope (permit, report, node record), base64 included: 100,000 device names at most.
pub const ENVELOPE_BYTES_MAX: usize = 16 << 20;

/// Evidence for a gate in one envelope: a hundred reports with the longest of reasons.
pub const EVIDENCE_BYTES_MAX: u64 = 1 << 20;

/// Labels of one device: power, cooling, cluster, unit, and some of an operator's own.
pub const LABELS_MAX: usize = 16;

/// Caps by fault domain, or rules of redundancy, in one campaign.
pub const DOMAIN_RULES_MAX: usize = 16;

/// Releases that a device goes over on its way to another. Vendors' longest chains have three or four; every one is an
/// install, and its whole way has to fit a window.
pub const HOPS_MAX: usize = 8;

/// Rules about other components in one release.
pub const REQUIREMENTS_MAX: usize = 32;

/// Members of one site's mesh: a hall has at most 250 racks, one node each; doubled so that growth never trips it.
pub const PEERS_MAX: usize = 512;

/// Checkpoints of the audit log that a node has heard of and not seen proven: one per view of a forked log, and some to
/// spare.
pub const AUDIT_HEARD_MAX: usize = 16;

/// Devices behind one node.
pub const NODE_DEVICES_MAX: usize = 1_000;

/// A reason shown to people: a sentence or two, never a transcript.
pub const REASON_BYTES_MAX: usize = 2_000;

/// Delegated roles asked for one target: python-tuf stops at the same number.
pub const ROLES_VISITED_MAX: usize = 32;

/// Bits that choose a hash bin; the specification's extension (TAP 15) has no more.
pub const SUCCINCT_BITS_MAX: u32 = 32;

/// A file name that a version in front, `.json` behind and a temporary suffix still fit on every file system (255).
pub const FILE_NAME_BYTES_MAX: usize = 200;

/// Challenges in one answer to a sync: both images of every component of a node's devices. More of them come when these
/// are answered.
pub const CHALLENGES_MAX: usize = 64;

/// Answers to challenges in one sync. Each costs the coordinator 4 MiB of reads; the others follow in the next.
pub const ANSWERS_MAX: usize = 8;

/// A name of a profile of credentials: a few words.
pub const PROFILE_NAME_BYTES_MAX: usize = 128;

/// A transcript, gzipped: some hundred exchanges of a failed attempt have a tenth of it.
pub const TRANSCRIPT_PACKED_BYTES_MAX: usize = 256 << 10;

/// A transcript, unpacked: what nodes keep of one by default.
pub const TRANSCRIPT_BYTES_MAX: usize = 4 << 20;

/// Transcripts of one device that a coordinator keeps.
pub const TRANSCRIPTS_MAX: usize = 3;

/// Peers that a node names as those that have fed it: a rack has a dozen nodes, and an importer a few sources beside them.
pub const FEEDERS_MAX: usize = 16;

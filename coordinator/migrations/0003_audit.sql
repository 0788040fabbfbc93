-- The audit log. `entry` is the exact text that is hashed, `leaf` its hash; the other columns only help to find it.
CREATE TABLE audit_entries (
    idx INTEGER PRIMARY KEY, entry TEXT NOT NULL, leaf BLOB NOT NULL, kind TEXT NOT NULL,
    campaign TEXT, device TEXT, node TEXT, document TEXT
) STRICT;
CREATE INDEX audit_by_campaign ON audit_entries (campaign, kind, device) WHERE campaign IS NOT NULL;
CREATE INDEX audit_by_node ON audit_entries (node) WHERE node IS NOT NULL;
CREATE INDEX audit_metadata ON audit_entries (idx) WHERE kind = 'metadata';
-- What entries name by digest; plans stand in their own table.
CREATE TABLE audit_documents (sha256 TEXT PRIMARY KEY, bytes BLOB NOT NULL) STRICT;
-- The checkpoint of the whole log: written together with its last entry. There is one row.
CREATE TABLE audit_checkpoint (one INTEGER PRIMARY KEY CHECK (one = 1), note TEXT NOT NULL) STRICT;

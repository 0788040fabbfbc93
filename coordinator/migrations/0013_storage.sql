-- The hashes of the whole tiles (256 entries) of the audit log, so that a start needs to read only what came last. They are as
-- good as the checkpoint's signature, which their root is compared with.
CREATE TABLE audit_tiles (tile INTEGER PRIMARY KEY, hash BLOB NOT NULL) STRICT;
-- Campaigns that ended long ago: what was stored of their devices lies in compressed files beside the images. `purged` is 1 once
-- it is here no more. A name in this table is never given to another campaign.
CREATE TABLE archived (
    campaign TEXT PRIMARY KEY, at INTEGER NOT NULL, purged INTEGER NOT NULL, record TEXT NOT NULL
) STRICT;
-- What a node has signed is found by its digest: a key that has all of a long report in it is too long for some databases. Of the
-- reports from before, the end serves as digest, which has the signature.
CREATE TABLE reports_digested (
    node TEXT NOT NULL, sequence INTEGER NOT NULL, digest TEXT NOT NULL, envelope TEXT NOT NULL,
    PRIMARY KEY (node, sequence, digest)
) STRICT, WITHOUT ROWID;
INSERT INTO reports_digested SELECT node, sequence, substr(envelope, length(envelope) - 150, 151), envelope FROM reports;
DROP TABLE reports;
ALTER TABLE reports_digested RENAME TO reports;

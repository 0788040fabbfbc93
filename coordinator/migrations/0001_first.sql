-- Everything the coordinator has promised to remember. Documents are stored as the exact text they came as.
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
-- What nodes fetch, by file name.
CREATE TABLE metadata (file TEXT PRIMARY KEY, bytes BLOB NOT NULL) STRICT;
-- What a client trusts after fetching it: the floor for the next publication.
CREATE TABLE trusted (file TEXT PRIMARY KEY, bytes BLOB NOT NULL) STRICT;
CREATE TABLE manifests (campaign TEXT PRIMARY KEY, bytes BLOB NOT NULL) STRICT;
CREATE TABLE plans (sha256 TEXT PRIMARY KEY, bytes BLOB NOT NULL) STRICT;
CREATE TABLE artifacts (id TEXT PRIMARY KEY, sha256 TEXT NOT NULL, length INTEGER NOT NULL) STRICT;
CREATE TABLE nodes (node TEXT PRIMARY KEY, record TEXT NOT NULL) STRICT;
CREATE TABLE devices (device TEXT PRIMARY KEY, record TEXT NOT NULL) STRICT;
CREATE TABLE campaigns (campaign TEXT PRIMARY KEY, record TEXT NOT NULL) STRICT;
CREATE TABLE attempts (
    campaign TEXT NOT NULL, device TEXT NOT NULL, record TEXT NOT NULL, PRIMARY KEY (campaign, device)
) STRICT;
CREATE TABLE permits (
    campaign TEXT NOT NULL, sequence INTEGER NOT NULL, record TEXT NOT NULL, PRIMARY KEY (campaign, sequence)
) STRICT;
-- Every report as it was signed, whether or not it changed anything.
CREATE TABLE reports (
    node TEXT NOT NULL, sequence INTEGER NOT NULL, envelope TEXT NOT NULL, PRIMARY KEY (node, sequence)
) STRICT;

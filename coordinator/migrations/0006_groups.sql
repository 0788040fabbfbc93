-- Devices that operators have named together. The version is taken from a counter that never goes back, so that a group
-- that was removed and made again has no version it had before.
CREATE TABLE device_groups (id TEXT PRIMARY KEY, version INTEGER NOT NULL, record TEXT NOT NULL) STRICT;

-- What identifies a device to people lies in `identity`, sealed with a key of the device's own. NULL: not sealed yet, as the version
-- before left it; the next leader does so, and empties `hardware_id`, which nobody writes any more.
CREATE TABLE registrations_sealed (
    device TEXT PRIMARY KEY, hardware_id TEXT UNIQUE, enabled INTEGER NOT NULL, version INTEGER NOT NULL,
    record TEXT NOT NULL, identity BLOB
) STRICT;
INSERT INTO registrations_sealed (device, hardware_id, enabled, version, record)
    SELECT device, hardware_id, enabled, version, record FROM registrations;
DROP TABLE registrations;
ALTER TABLE registrations_sealed RENAME TO registrations;
CREATE INDEX registrations_disabled ON registrations (device) WHERE enabled = 0;
CREATE INDEX registrations_unsealed ON registrations (device) WHERE identity IS NULL;
-- The keys, each good for one device; that of nobody ('') makes the digests. Both tables may be kept out of backups.
CREATE TABLE identity_keys (device TEXT PRIMARY KEY, key BLOB NOT NULL) STRICT;
-- Keyed digests of what identifies devices, by which they are found.
CREATE TABLE identity_digests (device TEXT NOT NULL, digest TEXT NOT NULL, PRIMARY KEY (device, digest)) STRICT;
CREATE INDEX identity_digests_by_digest ON identity_digests (digest);
-- Devices of which only the name is left, in what was signed. No other device is ever given it.
CREATE TABLE erased_devices (device TEXT PRIMARY KEY, at INTEGER NOT NULL) STRICT;
